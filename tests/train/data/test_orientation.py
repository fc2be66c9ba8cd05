"""Every container that may hold an orientation, in all eight: the decoded pixels are those of the upright image."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import containers
import numpy as np
import pytest
from containers import ASCII, LONG, RATIONAL, chunk, exif, jpeg_with, png, raw_profile, saved, stored, tiff, turned, xmp
from numpy.typing import NDArray
from PIL import Image

from imc.data.decode import decode
from imc.data.formats import FORMATS

Pixels = NDArray[Any]
EXIF, XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"
ATTRIBUTE, QUOTED, ELEMENT = (
    'tiff:Orientation="{}"',
    "tiff:Orientation = '{}'",
    "<tiff:Orientation>{}</tiff:Orientation>",
)


def jpeg(pixels: Pixels) -> bytes:
    return saved(pixels, "JPEG", quality=100, subsampling=0)


def tiff_of_pillow(pixels: Pixels | Image.Image, orientation: int, **options: Any) -> bytes:
    return saved(pixels, "TIFF", tiffinfo={containers.ORIENTATION: orientation}, **options)


def avif(pixels: Pixels, block: bytes) -> bytes:
    return saved(pixels, "AVIF", exif=EXIF + block, quality=100, subsampling="4:4:4")


def tga(pixels: Pixels, orientation: int) -> bytes:
    """The four flips, which its header can say, of pixels that are stored from the top left."""
    height, width = pixels.shape[:2]
    origin = {1: 0x20, 2: 0x30, 3: 0x10, 4: 0x00}[orientation]
    header = struct.pack("<BBBHHBHHHHBB", 0, 0, 2, 0, 0, 0, 0, 0, width, height, 24, origin)
    return header + pixels[..., ::-1].tobytes()


# The file with pixels as they are stored, and the orientation to show them in.
CONTAINERS: dict[str, Callable[[Pixels, int], bytes]] = {
    "JPEG, EXIF": lambda p, o: jpeg_with(EXIF + exif(o), jpeg(p)),
    "JPEG, EXIF of the other byte order": lambda p, o: jpeg_with(EXIF + exif(o, order=">"), jpeg(p)),
    "JPEG, EXIF of 32 bits": lambda p, o: jpeg_with(EXIF + exif(o, kind=LONG), jpeg(p)),
    "JPEG, XMP": lambda p, o: jpeg_with(XMP + xmp(o, ATTRIBUTE), jpeg(p)),
    "JPEG, XMP in single quotes": lambda p, o: jpeg_with(XMP + xmp(o, QUOTED), jpeg(p)),
    "JPEG, XMP as an element": lambda p, o: jpeg_with(XMP + xmp(o, ELEMENT), jpeg(p)),
    "JPEG, EXIF against XMP": lambda p, o: jpeg_with(
        EXIF + exif(o), jpeg_with(XMP + xmp(containers.INVERSE[9 - o]), jpeg(p))
    ),
    "MPO": lambda p, o: saved(
        Image.fromarray(p), "MPO", exif=EXIF + exif(o), save_all=True, append_images=[Image.new("RGB", (8, 8))],
        quality=100, subsampling=0,
    ),
    "PNG, eXIf": lambda p, o: png(p, before=chunk(b"eXIf", exif(o))),
    "PNG, eXIf behind the pixels": lambda p, o: png(p, after=chunk(b"eXIf", exif(o))),
    "PNG, raw profile exif": lambda p, o: png(p, before=raw_profile("exif", EXIF + exif(o))),
    "PNG, raw profile exif behind": lambda p, o: png(p, after=raw_profile("exif", EXIF + exif(o))),
    "PNG, raw profile APP1": lambda p, o: png(p, before=raw_profile("APP1", EXIF + exif(o))),
    "PNG, raw profile APP1 of XMP": lambda p, o: png(p, before=raw_profile("APP1", XMP + xmp(o))),
    "PNG, raw profile xmp": lambda p, o: png(p, before=raw_profile("xmp", xmp(o))),
    "PNG, XMP": lambda p, o: png(p, before=chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp(o))),
    "PNG, XMP behind": lambda p, o: png(p, after=chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp(o))),
    "PNG, 16 bits": lambda p, o: png(p.astype(np.uint16) * 257, after=chunk(b"eXIf", exif(o))),
    "PNG, grey of 16 bits": lambda p, o: png(p[..., 0].astype(np.uint16) * 257, before=chunk(b"eXIf", exif(o))),
    "APNG": lambda p, o: saved(
        p, "PNG", exif=exif(o), save_all=True, append_images=[Image.new("RGB", p.shape[1::-1])]
    ),
    "WebP, EXIF": lambda p, o: saved(p, "WEBP", exif=EXIF + exif(o), lossless=True),
    "WebP, XMP": lambda p, o: saved(p, "WEBP", xmp=xmp(o), lossless=True),
    "WebP, animated": lambda p, o: saved(
        p, "WEBP", exif=EXIF + exif(o), lossless=True, save_all=True, append_images=[Image.new("RGB", p.shape[1::-1])]
    ),
    "TIFF": tiff_of_pillow,
    "TIFF, LZW": lambda p, o: tiff_of_pillow(p, o, compression="tiff_lzw"),
    "TIFF, JPEG": lambda p, o: tiff_of_pillow(p, o, compression="jpeg", quality=100),
    "TIFF, BigTIFF": lambda p, o: tiff_of_pillow(p, o, big_tiff=True),
    "TIFF, grey": lambda p, o: tiff(p[..., 0], orientation=o),
    "TIFF, transparent": lambda p, o: tiff(np.dstack([p, np.full_like(p[..., :1], 255)]), opacity=2, orientation=o),
    "TIFF, palette": lambda p, o: tiff_of_pillow(Image.fromarray(p).quantize(256), o),
    "TIFF, CMYK": lambda p, o: tiff_of_pillow(Image.fromarray(p).convert("CMYK"), o),
    "TIFF, other byte order": lambda p, o: tiff(p, order=">", orientation=o),
    "TIFF, two pages": lambda p, o: saved(
        Image.fromarray(p), "TIFF", tiffinfo={containers.ORIENTATION: o}, save_all=True,
        append_images=[Image.new("RGB", (8, 8))],
    ),
    "TIFF, colour of 16 bits": lambda p, o: tiff(p.astype(np.uint16) * 257, orientation=o),
    "TIFF, grey of 16 bits": lambda p, o: tiff(p[..., 0].astype(np.uint16) * 257, orientation=o),
    "TIFF, grey of 16 bits, LZW": lambda p, o: tiff_of_pillow(
        p[..., 0].astype(np.uint16) * 257, o, compression="tiff_lzw"
    ),
    "TIFF, floats": lambda p, o: tiff(p[..., 0].astype(np.float32) / 255, sample_format=3, orientation=o),
    "TIFF, XMP": lambda p, o: saved(p, "TIFF", tiffinfo={700: xmp(o)}),
    "AVIF, from EXIF": lambda p, o: avif(p, exif(o)),
    "HEIF": lambda p, o: saved(p, "HEIF", exif=EXIF + exif(o), quality=-1, chroma=444),
    "TGA": tga,
}  # fmt: skip
NEEDS = {"AVIF, from EXIF": "AVIF", "HEIF": "HEIF"}
CLOSE = 12  # of the lossy ones, on blocks of one colour


@pytest.fixture
def upright() -> Pixels:
    """64 x 96 pixels in blocks of 16, no two of the eight turns of which are alike."""
    blocks = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    return blocks.repeat(16, axis=0).repeat(16, axis=1)


def shown(folder: Path, content: bytes, channels: int = 3) -> Pixels:
    """What is decoded, at a quarter of the size: JPEG's decoder then halves it."""
    (folder / "image").write_bytes(content)
    return decode(folder / "image", 16, channels).astype(int)


@pytest.mark.parametrize(
    ("container", "orientation"),
    [(name, orientation) for name in CONTAINERS for orientation in range(1, 5 if name == "TGA" else 9)],
)
def test_pixels_are_those_of_the_upright_image(
    container: str, orientation: int, upright: Pixels, tmp_path: Path
) -> None:
    kind = NEEDS.get(container)
    if kind is not None and kind not in FORMATS:
        pytest.skip(f"{kind} is not read here")
    grey = "grey" in container or "floats" in container
    pixels = np.repeat(upright[..., :1], 3, axis=2) if grey else upright
    expected = shown(tmp_path, png(pixels))
    content = CONTAINERS[container](stored(pixels, orientation), orientation)
    np.testing.assert_allclose(shown(tmp_path, content), expected, atol=CLOSE if "J" in container else 3)


@pytest.mark.parametrize("written", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF", "MPO", "JPEG2000", "GIF", "HEIF"])
def test_what_pillow_can_show_upright_is_upright(written: str, upright: Pixels, tmp_path: Path) -> None:
    """Pillow's own word on what it writes, whatever it makes of an orientation."""
    from PIL import ImageOps

    if written not in (*FORMATS, "MPO"):
        pytest.skip(f"{written} is not read here")
    for orientation in range(1, 9):
        content = saved(stored(upright, orientation), written, exif=EXIF + exif(orientation))
        (tmp_path / "image").write_bytes(content)
        with Image.open(tmp_path / "image") as image:
            expected = ImageOps.exif_transpose(image).convert("RGB")
        np.testing.assert_allclose(shown(tmp_path, content), shown(tmp_path, saved(expected, "PNG")), atol=CLOSE)


BLOCKS = {
    "0": exif(0),
    "9": exif(9),
    "65535": exif(65535),
    "text": exif(b"6\0", kind=ASCII, count=2),
    "a fraction": exif(struct.pack("<I", 26), kind=RATIONAL) + struct.pack("<II", 13, 2),
    "cut short": exif(6)[:15],
    "beyond its end": exif(struct.pack("<I", 1 << 30), count=400),
    "not EXIF": b"nothing of the kind",
    "empty": b"",
}


@pytest.mark.filterwarnings("ignore:.*:UserWarning:PIL")
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("container", ["JPEG", "PNG", "PNG, raw profile", "WEBP"])
def test_an_orientation_that_is_none_turns_nothing(container: str, block: str, upright: Pixels, tmp_path: Path) -> None:
    write = {
        "JPEG": lambda: jpeg_with(EXIF + BLOCKS[block], jpeg(upright)),
        "PNG": lambda: png(upright, before=chunk(b"eXIf", BLOCKS[block])),
        "PNG, raw profile": lambda: png(upright, before=raw_profile("exif", BLOCKS[block])),
        "WEBP": lambda: saved(upright, "WEBP", exif=BLOCKS[block], lossless=True),
    }
    np.testing.assert_allclose(
        shown(tmp_path, write[container]()), shown(tmp_path, png(upright)), atol=CLOSE if container == "JPEG" else 3
    )


def test_of_avif_its_own_property_alone_counts(upright: Pixels, tmp_path: Path) -> None:
    """Not so written for HEIF, whose writer makes that property of what XMP says."""
    if "AVIF" not in FORMATS:
        pytest.skip("AVIF is not read here")
    content = saved(upright, "AVIF", quality=100, subsampling="4:4:4", xmp=xmp(6))
    np.testing.assert_allclose(shown(tmp_path, content), shown(tmp_path, png(upright)), atol=CLOSE)


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_a_tiff_of_no_orientation_is_as_stored(value: int, upright: Pixels, tmp_path: Path) -> None:
    np.testing.assert_array_equal(shown(tmp_path, tiff(upright, orientation=value)), shown(tmp_path, png(upright)))


def test_the_eight_are_eight() -> None:
    pixels = np.arange(6).reshape(2, 3)
    assert len({turned(pixels, orientation).tobytes() + bytes(turned(pixels, orientation).shape)
                for orientation in range(1, 9)}) == 8  # fmt: skip
    for orientation in range(1, 9):
        np.testing.assert_array_equal(turned(stored(pixels, orientation), orientation), pixels)
