"""Pixels of over 8 bits, in every container that holds them: one scale for a data set, and what is transparent."""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from containers import chunk, png, saved, tiff
from numpy.typing import NDArray
from PIL import Image

from imc.data import load
from imc.data.decode import UnreadableError, decode, read_header
from imc.errors import UserError

Pixels = NDArray[Any]
SIDE = 32


def portable(pixels: Pixels, kind: str, maximum: int) -> bytes:
    """P2, P3, P5 or P6."""
    header = f"{kind}\n# a comment\n{pixels.shape[1]} {pixels.shape[0]}\n{maximum}\n".encode()
    if kind in ("P2", "P3"):
        return header + " ".join(map(str, pixels.reshape(-1).tolist())).encode() + b"\n"
    return header + pixels.astype(">u2" if maximum > 255 else np.uint8).tobytes()


def opaque(pixels: Pixels) -> Pixels:
    return np.dstack([pixels, np.full(pixels.shape[:2], np.iinfo(pixels.dtype).max, pixels.dtype)])


GREY: dict[str, Callable[[Pixels], bytes]] = {
    "PNG": png,
    "PNG, interlaced": lambda p: png(p, interlaced=True),
    "PNG, with opacity": lambda p: png(opaque(p)),
    "PNG, with opacity, interlaced": lambda p: png(opaque(p), interlaced=True),
    "TIFF": tiff,
    "TIFF, other byte order": lambda p: tiff(p, order=">"),
    "TIFF, LZW": lambda p: saved(p, "TIFF", compression="tiff_lzw"),
    "TIFF, Deflate": lambda p: saved(p, "TIFF", compression="tiff_adobe_deflate"),
    "TIFF, 32 bits": lambda p: tiff(p.astype(np.uint32)),
    "TIFF, floats": lambda p: tiff(p.astype(np.float32), sample_format=3),
    "TIFF, signed": lambda p: tiff(p.astype(np.int32), sample_format=2),
    "PGM": lambda p: portable(p, "P5", 65535),
    "PGM of texts": lambda p: portable(p, "P2", 65535),
}
COLOUR: dict[str, Callable[[Pixels], bytes]] = {
    "PNG": png,
    "PNG, interlaced": lambda p: png(p, interlaced=True),
    "PNG, with opacity": lambda p: png(opaque(p)),
    "TIFF": tiff,
    "TIFF, other byte order": lambda p: tiff(p, order=">"),
    "TIFF, with opacity": lambda p: tiff(opaque(p), opacity=2),
    "TIFF, multiplied by opacity": lambda p: tiff(opaque(p), opacity=1, order=">"),
    "TIFF, a fourth channel of no meaning": lambda p: tiff(opaque(p), opacity=0),
    "PPM": lambda p: portable(p, "P6", 65535),
}
ALL = [(name, write, ()) for name, write in GREY.items()] + [(name, write, (3,)) for name, write in COLOUR.items()]


def ramp(bits: int, channels: tuple[int, ...] = ()) -> Pixels:
    """Values of this many bits, the smallest and the largest among them."""
    values = np.random.default_rng(bits).integers(0, 1 << bits, (SIDE, SIDE, *channels)).astype(np.uint16)
    values.reshape(-1)[[0, 1]] = 0, (1 << bits) - 1
    return values


def bytes_of(values: Pixels, white: float) -> Pixels:
    return np.rint(values.astype(np.float64) * 255 / white).reshape(*values.shape[:2], -1)


@pytest.mark.parametrize("bits", [8, 9, 10, 12, 14, 16])
@pytest.mark.parametrize(("container", "write", "channels"), ALL, ids=lambda part: part if type(part) is str else None)
def test_the_largest_value_decides_what_is_white(
    container: str, write: Callable[[Pixels], bytes], channels: tuple[int, ...], bits: int, tmp_path: Path
) -> None:
    values = ramp(bits, channels)
    (tmp_path / "a.png").write_bytes(write(values))
    data = load(str(tmp_path))
    np.testing.assert_array_equal(data.train.images[0].numpy(), bytes_of(values, (1 << bits) - 1))
    assert data.train.pixel_bits == bits
    assert f"values up to {(1 << bits) - 1:,} taken as {bits} bits" in data.note


@pytest.mark.parametrize("order", "<>")
def test_compressed_colour_of_16_bits(order: str, tmp_path: Path) -> None:
    values = ramp(12, (3,))
    deflated = zlib.compress(values.astype(f"{order}u2").tobytes())
    (tmp_path / "a.tif").write_bytes(tiff(values, order=order, content=deflated, compression=8))
    np.testing.assert_array_equal(load(str(tmp_path)).train.images[0].numpy(), bytes_of(values, 4095))


@pytest.mark.parametrize("kind", ["P2", "P3", "P5", "P6"])
@pytest.mark.parametrize("maximum", [1, 2, 15, 100, 254, 255, 256, 1000, 1023, 4095, 16383, 65534])
def test_a_portable_map_says_itself_what_is_white(kind: str, maximum: int, tmp_path: Path) -> None:
    channels = (3,) if kind in ("P3", "P6") else ()
    values = np.random.default_rng(maximum).integers(0, maximum // 2 + 1, (SIDE, SIDE, *channels))
    (tmp_path / "a.ppm").write_bytes(portable(values, kind, maximum))
    data = load(str(tmp_path))
    # Pillow's own scaling of texts rounds to 16 bits on the way.
    np.testing.assert_allclose(data.train.images[0].numpy(), bytes_of(values, maximum), atol=kind == "P2")
    assert data.train.pixel_bits is None
    assert "taken as" not in data.note


def test_bits_of_a_pbm(tmp_path: Path) -> None:
    bits = np.random.default_rng(0).integers(0, 2, (SIDE, SIDE)).astype(np.uint8)
    (tmp_path / "a.pbm").write_bytes(f"P4 {SIDE} {SIDE}\n".encode() + np.packbits(bits, axis=1).tobytes())
    (tmp_path / "b.pbm").write_text(f"P1 {SIDE} {SIDE}\n" + "\n".join("".join(map(str, row)) for row in bits.tolist()))
    for image in load(str(tmp_path)).train.images.numpy():
        np.testing.assert_array_equal(image[..., 0], 255 * (1 - bits))


def test_a_tiff_of_12_bits_says_itself_what_is_white(tmp_path: Path) -> None:
    values = ramp(12) // 2
    pairs = values.reshape(-1, 2).astype(np.uint32)
    packed = np.stack([pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1] & 255], axis=1)
    (tmp_path / "a.tif").write_bytes(tiff(values, bits=12, content=packed.astype(np.uint8).tobytes()))
    data = load(str(tmp_path))
    np.testing.assert_array_equal(data.train.images[0].numpy(), bytes_of(values, 4095))
    assert data.train.pixel_bits is None


def test_the_scale_is_one_for_the_data_set(tmp_path: Path) -> None:
    dark, bright, eight = ramp(9), ramp(12), ramp(8).astype(np.uint8)
    for name, pixels in (("a", dark), ("b", bright), ("c", eight)):
        (tmp_path / f"{name}.png").write_bytes(png(pixels))
    data = load(str(tmp_path))
    expected = [bytes_of(dark, 4095), bytes_of(bright, 4095), bytes_of(eight, 255)]
    np.testing.assert_array_equal(data.train.images.numpy(), np.stack(expected))
    assert "values up to 4,095 taken as 12 bits, 0..4,095 as black to white" in data.note
    assert load(str(tmp_path)).note == data.note  # from the cache


def test_the_scale_can_be_chosen(tmp_path: Path) -> None:
    values = ramp(12)
    (tmp_path / "a.png").write_bytes(png(values))
    (tmp_path / "x").mkdir()
    np.save(tmp_path / "x" / "x.npy", values[None])
    for source in (tmp_path, tmp_path / "x" / "x.npy"):
        for bits in (10, 14):
            data = load(str(source), pixel_bits=bits)
            expected = np.minimum(bytes_of(values, (1 << bits) - 1), 255)
            np.testing.assert_array_equal(data.train.images[0].numpy(), expected)
            assert (", larger ones, up to 4,095, white" in data.note) == (bits == 10)


@pytest.mark.parametrize("write", [tiff, lambda p, **o: saved(p, "TIFF")], ids=["TIFF", "by Pillow"])
def test_fractions_are_0_to_1_and_other_ranges_are_refused(write: Callable[..., bytes], tmp_path: Path) -> None:
    fractions = np.random.default_rng(0).random((SIDE, SIDE), np.float32)
    (tmp_path / "a.tif").write_bytes(write(fractions, sample_format=3))
    np.testing.assert_array_equal(load(str(tmp_path)).train.images[0].numpy(), bytes_of(fractions, 1))
    signed = np.full((SIDE, SIDE), -1, np.int32)
    odd = [fractions - 0.5, fractions * 2, fractions * np.nan, fractions + np.inf]
    for values, kind in [*((array, 3) for array in odd), (signed, 2), (signed + 70_000, 2)]:
        (tmp_path / "a.tif").write_bytes(write(values, sample_format=kind))
        with pytest.raises(UserError, match=r"1 of 32 bits a pixel, neither fractions 0\.\.1 nor whole numbers"):
            load(str(tmp_path))


def test_zero_may_be_white(tmp_path: Path) -> None:
    for bits, order, options in ((8, "<", {}), (8, ">", {}), (12, "<", {})):
        values = ramp(bits) if bits > 8 else ramp(8).astype(np.uint8)
        (tmp_path / "a.tif").write_bytes(tiff(values, photometric=0, order=order, **options))
        np.testing.assert_array_equal(
            load(str(tmp_path)).train.images[0].numpy(), 255 - bytes_of(values, (1 << bits) - 1)
        )
    fractions = np.linspace(0, 1, SIDE * SIDE, dtype=np.float32).reshape(SIDE, SIDE)
    (tmp_path / "a.tif").write_bytes(tiff(fractions, photometric=0, sample_format=3))
    np.testing.assert_array_equal(load(str(tmp_path)).train.images[0].numpy(), 255 - bytes_of(fractions, 1))


def transparent_grey(values: Pixels, opacity: Pixels) -> dict[str, bytes]:
    wide, wide_opacity = values.astype(np.uint16) * 257, opacity.astype(np.uint16) * 257
    return {
        "PNG": png(np.dstack([values, opacity])),
        "PNG, 16 bits": png(np.dstack([wide, wide_opacity])),
        "PNG, colour": png(np.dstack([values] * 3 + [opacity])),
        "PNG, colour, 16 bits": png(np.dstack([wide] * 3 + [wide_opacity])),
        "TIFF": tiff(np.dstack([values, opacity]), opacity=2),
        "TIFF, colour": tiff(np.dstack([values] * 3 + [opacity]), opacity=2),
        "TIFF, colour, 16 bits": tiff(np.dstack([wide] * 3 + [wide_opacity]), opacity=2),
        "WebP": saved(np.dstack([values] * 3 + [opacity]), "WEBP", lossless=True, exact=True),
        "TGA": saved(np.dstack([values] * 3 + [opacity]), "TGA"),
    }


def multiplied(values: Pixels, opacity: Pixels) -> dict[str, bytes]:
    by = opacity / 255
    eight = np.rint(values * by).astype(np.uint8)
    wide, wide_opacity = np.rint(values * 257.0 * by).astype(np.uint16), opacity.astype(np.uint16) * 257
    return {
        "TIFF": tiff(np.dstack([eight, opacity]), opacity=1),
        "TIFF, colour": tiff(np.dstack([eight] * 3 + [opacity]), opacity=1),
        "TIFF, colour, 16 bits": tiff(np.dstack([wide] * 3 + [wide_opacity]), opacity=1),
        "TIFF, colour, 16 bits, other byte order": tiff(np.dstack([wide] * 3 + [wide_opacity]), opacity=1, order=">"),
    }


def keyed(values: Pixels) -> dict[str, bytes]:
    """One value (7), or colour, is clear; of 16 bits it is a neighbour of one that is not, of the same upper 8."""
    wide = values.astype(np.uint16) * 257
    wide[values == 6] = 7 * 257 + 1
    palette = Image.fromarray(values).convert("P")
    palette.putpalette(list(np.arange(256).repeat(3)))
    return {
        "PNG": png(values, before=chunk(b"tRNS", b"\0\7")),
        "PNG, colour": png(np.dstack([values] * 3), before=chunk(b"tRNS", b"\0\7" * 3)),
        "PNG, 16 bits": png(wide, before=chunk(b"tRNS", b"\7\7")),
        "PNG, colour, 16 bits": png(np.dstack([wide] * 3), before=chunk(b"tRNS", b"\7\7" * 3)),
        "PNG, palette": saved(palette, "PNG", transparency=7),
        "GIF": saved(palette, "GIF", transparency=7),
    }


@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_transparent_shows_white(channels: int, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    values = random.integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
    values[0, :4], values[1, 1] = 7, 255
    opacity = random.integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
    opacity[0, :3] = 0, 255, 1
    mixed = values * (opacity / 255) + 255 - opacity
    cases = [(name, content, mixed) for name, content in transparent_grey(values, opacity).items()]
    cases += [(f"multiplied, {name}", content, mixed) for name, content in multiplied(values, opacity).items()]
    cases += [
        (f"keyed, {name}", content, np.where(values == 7, 255, values)) for name, content in keyed(values).items()
    ]
    for name, content, expected in cases:
        (tmp_path / "image").write_bytes(content)
        shown = decode(tmp_path / "image", SIDE, channels)
        for channel in range(channels):
            np.testing.assert_allclose(
                shown[..., channel], expected, atol=2 if "multiplied" in name else 1, err_msg=name
            )


def test_a_folder_of_grey_with_opacity_is_grey(tmp_path: Path) -> None:
    for name, pixels in (("a", ramp(8).astype(np.uint8)), ("b", ramp(12))):
        (tmp_path / f"{name}.png").write_bytes(png(opaque(pixels)))
        assert read_header(tmp_path / f"{name}.png").grey


def test_inks_and_lab_and_luma_are_shown_as_colours(tmp_path: Path) -> None:
    rgb = Image.fromarray(np.array([[[200, 60, 60], [70, 180, 80], [80, 70, 190], [128, 128, 128]]] * 4, np.uint8))
    rgb = rgb.resize((SIDE, SIDE), Image.Resampling.NEAREST)
    cmyk, luma = rgb.convert("CMYK"), rgb.convert("YCbCr")
    written = {
        "CMYK JPEG": saved(cmyk, "JPEG", quality=100),
        "CMYK TIFF": saved(cmyk, "TIFF"),
        "CMYK TIFF of 16 bits": tiff(np.asarray(cmyk).astype(np.uint16) * 257, photometric=5),
        "YCbCr TIFF": saved(luma, "TIFF"),
        "LAB TIFF": saved(lab(rgb), "TIFF"),
        "progressive JPEG": saved(rgb, "JPEG", progressive=True, quality=100, subsampling=0),
    }
    for name, content in written.items():
        (tmp_path / "image").write_bytes(content)
        np.testing.assert_allclose(
            decode(tmp_path / "image", SIDE, 3).astype(int), np.asarray(rgb).astype(int), atol=6, err_msg=name
        )


def lab(image: Image.Image) -> Image.Image:
    from PIL import ImageCms

    transform = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    return transform.apply(image)


def test_separate_planes_of_16_bits_are_refused(tmp_path: Path) -> None:
    """Pillow reads bytes of them as if they were samples."""
    (tmp_path / "a.tif").write_bytes(tiff(ramp(16, (3,)), planar=True))
    with pytest.raises(UnreadableError, match=r"of a variant of \{its|their\} format"):
        decode(tmp_path / "a.tif", SIDE, 3)


def test_of_jpeg_2000_the_decoder_knows_what_is_white(tmp_path: Path) -> None:
    values = ramp(16)
    (tmp_path / "a.jp2").write_bytes(saved(values, "JPEG2000"))
    data = load(str(tmp_path))
    np.testing.assert_array_equal(data.train.images[0].numpy(), bytes_of(values, 65535))
    assert data.train.pixel_bits is None


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_several_frames_the_first_is_read(kind: str, tmp_path: Path) -> None:
    frames = [Image.new("RGB", (SIDE, SIDE), colour) for colour in ("red", "blue", "green")]
    options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
    content = io.BytesIO()
    frames[0].save(content, kind, save_all=True, append_images=frames[1:], **options)
    (tmp_path / "image").write_bytes(content.getvalue())
    assert (decode(tmp_path / "image", SIDE, 3) == [255, 0, 0]).all()
