"""Files that are no images to read: each kind under a name of its own, with what to do, by suffix or by content."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import containers
import layouts
import numpy as np
import pytest
from containers import png, saved

from imc.data import formats, load
from imc.data.decode import UnreadableError, decode, read_header
from imc.text import counted

PIXELS = layouts.draw(1, 32, 3, 1)[0][0]
HEIC = b"\0\0\0\x1cftypheic\0\0\0\0mif1heic" + bytes(64)

BY_SUFFIX = {
    "IMG_1.DNG": formats.RAW,
    "IMG_1.cr2": formats.RAW,
    "DSC_1.NEF": formats.RAW,
    "logo.svg": formats.DRAWINGS,
    "scan.PDF": formats.DRAWINGS,
    "film.mov": formats.VIDEOS,
    "photo.jxl": formats.JPEG_XL,
    "more.npy": formats.ARRAYS,
    "more.zip": formats.ARCHIVES,
    "work.xcf": formats.EDITORS,
    "slice.dcm": formats.SCIENCE,
    "notes.txt": formats.OTHER,
    "README": formats.OTHER,
}
BY_CONTENT: dict[str, tuple[bytes, str]] = {
    "HEIC": (HEIC, formats.HEIC),
    "HEIF by its other brand": (HEIC.replace(b"ftypheic", b"ftypmif1"), formats.HEIC),
    "JPEG XL": (b"\xff\x0a\xfa\x7f", formats.JPEG_XL),
    "JPEG XL in a container": (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(32), formats.JPEG_XL),
    "CR3": (b"\0\0\0\x18ftypcrx " + bytes(32), formats.RAW),
    "MP4": (b"\0\0\0\x18ftypisom" + bytes(32), formats.VIDEOS),
    "PDF": (b"%PDF-1.7\n", formats.DRAWINGS),
    "SVG": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", formats.DRAWINGS),
    "SVG with a declaration": (b"\xef\xbb\xbf<?xml version='1.0'?>\n<!-- x --><svg/>", formats.DRAWINGS),
    "NumPy": (b"\x93NUMPY\1\0", formats.ARRAYS),
    "gzip": (gzip.compress(png(PIXELS)), formats.ARCHIVES),
    "DICOM": (bytes(128) + b"DICM" + bytes(32), formats.SCIENCE),
    "a PAM": (b"P7\nWIDTH 1\nHEIGHT 1\nDEPTH 1\nMAXVAL 255\nENDHDR\n\0", formats.VARIANT),
    "a PFM of colour": (b"PF\n1 1\n-1.0\n" + bytes(12), formats.VARIANT),
    "a TIFF of 64-bit floats": (containers.tiff(PIXELS[..., 0].astype(np.float64), sample_format=3), formats.VARIANT),
    "the start of a JPEG": (saved(PIXELS, "JPEG")[:12], formats.VARIANT),
    "the start of a PNG": (png(PIXELS)[:12], formats.VARIANT),
    "texts": (b"hello", formats.NO_IMAGE),
    "nothing": (b"", formats.EMPTY),
}


@pytest.mark.parametrize("name", BY_SUFFIX)
def test_a_file_of_another_suffix_is_counted_under_its_kind(name: str, tmp_path: Path) -> None:
    (tmp_path / "good.png").write_bytes(png(PIXELS))
    (tmp_path / name).write_bytes(saved(PIXELS, "TIFF"))  # as raw files are, with a small copy of the picture first
    assert f"skipped 1: {counted(1, BY_SUFFIX[name])} (such as '{name}')" in load(str(tmp_path)).note


@pytest.mark.parametrize("read", [read_header, lambda path: decode(path, 8, 3)], ids=["header", "pixels"])
@pytest.mark.parametrize("kind", BY_CONTENT)
def test_a_file_with_the_suffix_of_an_image_is_counted_by_its_content(
    kind: str, read: Callable[[Path], object], tmp_path: Path
) -> None:
    content, reason = BY_CONTENT[kind]
    (tmp_path / "x.jpg").write_bytes(content)
    with pytest.raises(UnreadableError) as error:
        read(tmp_path / "x.jpg")
    assert str(error.value) == reason


@pytest.mark.parametrize("suffix", ["heic", "HEIF", "avif", "jpg", "tif"])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_the_content_decides_what_a_file_is(kind: str, suffix: str, tmp_path: Path) -> None:
    (tmp_path / f"x.{suffix}").write_bytes(saved(PIXELS, kind))
    assert load(str(tmp_path)).train.files == (f"x.{suffix}",)


def test_heic_without_its_reader_says_what_to_install(tmp_path: Path) -> None:
    if "HEIF" in formats.FORMATS:
        pytest.skip("pillow-heif is installed")
    (tmp_path / "good.png").write_bytes(png(PIXELS))
    (tmp_path / "IMG_1.HEIC").write_bytes(HEIC)
    assert "1 HEIC image, which needs `pip install pillow-heif` (such as 'IMG_1.HEIC')" in load(str(tmp_path)).note


def test_heic_is_read_where_its_reader_is_installed(tmp_path: Path) -> None:
    if "HEIF" not in formats.FORMATS:
        pytest.skip("pillow-heif is not installed")
    blocks = PIXELS[:4, :4].repeat(16, axis=0).repeat(16, axis=1)
    (tmp_path / "IMG_1.HEIC").write_bytes(saved(blocks, "HEIF", quality=-1, chroma=444))
    shown = load(str(tmp_path), image_size=64).train.images[0].numpy()
    np.testing.assert_allclose(shown.astype(int), blocks.astype(int), atol=3)
