"""The pixels of image files of more than 8 bits, of which Pillow gives colour only the upper half."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from imc.data.pixel_bits import LARGEST, Range, as_bytes

GREY = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")  # modes of Pillow
RAW_MODE = re.compile(r"(LA|RGBA|RGBa|RGBX|RGB|CMYK);16([BLN])")
UNPACKING = ("zip", "raw", "libtiff")  # the decoders that take those
BITS_PER_SAMPLE, PHOTOMETRIC, PLANAR_CONFIGURATION = 258, 262, 284  # tags of TIFF


class UnknownRangeError(Exception):
    """Numbers of 32 bits that are neither fractions 0..1 nor whole numbers of 16 bits."""


class UnsupportedError(Exception):
    """A variant that Pillow decodes to something else than what the file holds."""


@dataclass(frozen=True)
class WidePixels:
    """The pixels of one image.

    Attributes:
        colour: uint16 or float32 [H, W], or uint16 [H, W, 3] (RGB) or [H, W, 4] (CMYK).
        opacity: uint8 [H, W], or None.
        white: the value of ``colour`` that the file says is full; None: it does not say.
        inverted: whether 0 is white.
    """

    colour: NDArray[Any]
    opacity: NDArray[np.uint8] | None
    white: float | None
    inverted: bool

    def image(self, bits: int) -> Image.Image:
        """In 8 bits; where the file does not say what is full, 2^bits - 1 is."""
        pixels = as_bytes(self.colour, self.white or (1 << bits) - 1)
        shown = Image.fromarray(255 - pixels if self.inverted else pixels)
        if pixels.shape[2:] == (4,):
            shown = Image.frombytes("CMYK", shown.size, pixels.tobytes())
        if self.opacity is not None:
            shown.putalpha(Image.fromarray(self.opacity))
        return shown


def is_wide(image: ImageFile.ImageFile) -> bool:
    """Whether an image that is not loaded yet has more than 8 bits a sample."""
    return image.mode in GREY or _layout(image) is not None or _has_separate_planes(image)


def is_grey(image: ImageFile.ImageFile) -> bool:
    """Whether it has those and is grey, with or without opacity."""
    layout = _layout(image)
    return image.mode in GREY or (layout is not None and layout[0] == "LA")


def wide_pixels(image: ImageFile.ImageFile, path: Path) -> WidePixels:
    """The pixels of an image for which :func:`is_wide` holds, opened from this file; the image is then loaded.

    Raises:
        UnknownRangeError, UnsupportedError: see there.
        Exception: whatever Pillow raises for a damaged file.
    """
    if _has_separate_planes(image):
        raise UnsupportedError
    layout, white, opacity = _layout(image), _stated_white(image), None
    if layout is None:
        values, white = _grey(image, white)
    else:
        values = _pairs(image, path, layout[0]).view({"B": ">u2", "L": "<u2", "N": "=u2"}[layout[1]])[..., 0]
        values = values.astype(np.uint16, copy=False)
        if layout[0] in ("LA", "RGBA", "RGBa"):
            values, alpha = values[..., :-1], values[..., -1]
            if layout[0] == "RGBa":
                values = _unmultiplied(values, alpha)
            values = values[..., 0] if layout[0] == "LA" else values
            opacity = as_bytes(alpha, LARGEST)
    key = image.info.get("transparency")  # of PNG: the value that is clear
    if opacity is None and isinstance(key, int | tuple):
        clear = values == np.array(key)
        opacity = np.where(clear if values.ndim == 2 else clear.all(axis=2), 0, 255).astype(np.uint8)
    return WidePixels(values, opacity, white, inverted=_tags(image).get(PHOTOMETRIC) == 0)


def _tags(image: ImageFile.ImageFile) -> Any:
    """Those of a TIFF."""
    return getattr(image, "tag_v2", {})


def _has_separate_planes(image: ImageFile.ImageFile) -> bool:
    """Whether its channels lie one after the other, which Pillow takes for planes of 8 bits."""
    tags = _tags(image)
    return (
        tags.get(PLANAR_CONFIGURATION) == 2 and max(tags.get(BITS_PER_SAMPLE, (1,))) > 8 and len(image.getbands()) > 1
    )


def _layout(image: ImageFile.ImageFile) -> tuple[str, str] | None:
    """Channels and byte order of an image whose samples of 16 bits Pillow would cut to their upper half."""
    if not image.tile:
        return None
    codec, arguments = image.tile[0].codec_name, _arguments(image)
    if codec == "ppm" and image.mode == "RGB" and arguments[1] > 255:
        return "RGB", "B"
    found = RAW_MODE.fullmatch(str(arguments[0])) if arguments else None
    return (found[1], found[2]) if found and codec in UNPACKING else None


def _arguments(image: ImageFile.ImageFile) -> tuple[Any, ...]:
    """What the decoder gets; the first is how the pixels lie in the file."""
    arguments = image.tile[0].args
    return arguments if isinstance(arguments, tuple) else (arguments,)


def _stated_white(image: ImageFile.ImageFile) -> float | None:
    if image.format == "JPEG2000":
        return LARGEST  # to which its decoder scales
    if image.format == "PPM" and image.tile[0].codec_name != "raw":
        maximum = _arguments(image)[1]
        scaled = image.tile[0].codec_name == "ppm_plain"
        return None if maximum == LARGEST else LARGEST if scaled else maximum
    return 4095 if _tags(image).get(BITS_PER_SAMPLE) == (12,) else None


def _grey(image: ImageFile.ImageFile, white: float | None) -> tuple[NDArray[Any], float | None]:
    """The values [H, W], and what is white among them, if the file says so."""
    if image.tile[0].codec_name == "ppm":  # whose decoder works pixel by pixel in Python, and scales
        image.tile = [image.tile[0]._replace(codec_name="raw", args="I;16B")]
    image.load()
    values = np.asarray(image)
    values = values.astype(values.dtype.newbyteorder("="), copy=False)
    if image.mode in ("I", "F"):
        span = Range.of(values)
        if image.mode == "F" and span.fractions:
            return values, 1
        if not span.numbers:
            raise UnknownRangeError
        values = values.astype(np.uint16)
    return values, white


def _pairs(image: ImageFile.ImageFile, path: Path, channels: str) -> NDArray[np.uint8]:
    """The two bytes of each sample as they lie in the file: [H, W, C, 2].

    Pillow has the upper byte of either byte order. Both orders asked for in turn give both bytes.
    """
    if channels == "LA":  # whose four bytes Pillow can be told are four channels
        _unpack(image, "RGBA")
        return np.asarray(image).reshape(image.height, image.width, 2, 2)
    unpacked = channels.replace("RGBa", "RGBA")  # which would divide by the opacity
    assert image.format is not None
    again = Image.open(path, formats=(image.format,))
    pairs = np.empty((image.height, image.width, 3 if channels in ("RGB", "RGBX") else 4, 2), np.uint8)
    with again:
        for position, (part, order) in enumerate(((image, "B"), (again, "L"))):
            _unpack(part, f"{unpacked};16{order}")
            pairs[..., position] = np.asarray(part)
    return pairs


def _unpack(image: ImageFile.ImageFile, raw_mode: str) -> None:
    tiles = []
    for tile in image.tile:
        codec, arguments = tile.codec_name, tile.args[1:] if isinstance(tile.args, tuple) else ()
        if codec == "ppm":
            codec, arguments = "raw", ()
        tiles.append(tile._replace(codec_name=codec, args=(raw_mode, *arguments)))
    image.tile = tiles
    image.load()


def _unmultiplied(values: NDArray[np.uint16], alpha: NDArray[np.uint16]) -> NDArray[np.uint16]:
    whole = np.maximum(alpha, 1)[..., None].astype(np.float32)
    return np.minimum(np.rint(values * (LARGEST / whole)), LARGEST).astype(np.uint16)
