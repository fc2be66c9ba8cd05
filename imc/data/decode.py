"""One image file to one square of bytes. What fails is an :class:`UnreadableError` with a reason to count it under."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageFile, UnidentifiedImageError, features

from imc.data.formats import FORMATS, NO_IMAGE, VARIANT, reason_by_content
from imc.data.orientation import remaining_turn, turned_by_reader
from imc.data.pixel_bits import PixelBits
from imc.data.wide import UnknownRangeError, UnsupportedError, WidePixels, is_grey, is_wide, wide_pixels

MAX_PIXELS = 1 << 27  # 134 megapixels; of 16 bits with transparency they take 3.8 GB (8 times what 17 were seen to)
LARGE_PIXELS = 1 << 24  # images above this are decoded one at a time, so that threads do not multiply their memory
GREY = ("1", "L", "LA", "La")
FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
UNKNOWN_RANGE = "of 32 bits a pixel, neither fractions 0..1 nor whole numbers 0..65535"
DAMAGED = "damaged or cut short"


_large = threading.Lock()


class UnreadableError(Exception):
    """The message is the reason, in words that also fit many files."""


@dataclass(frozen=True)
class Header:
    """What an image says about itself: width and height in pixels, and if it is grey.

    ``largest`` is the largest value of the pixels where they have over 8 bits and the file does not say what is white.
    """

    width: int
    height: int
    grey: bool
    largest: int | None


@dataclass(frozen=True)
class Kind:
    """Whether an image is grey, and its shorter side in pixels."""

    grey: bool
    short_side: int


def decoders() -> dict[str, str]:
    """The libraries that decide an image's pixels, with their versions."""
    found = {name: features.version(name) for name in ("jpg", "libjpeg_turbo", "webp", "avif", "littlecms2")}
    return {"pillow": PIL.__version__, **{name: version for name, version in found.items() if version}}


def read_kind(path: Path) -> Kind:
    """What an image is, without decoding it.

    Raises:
        UnreadableError: it is none, or too large.
    """
    with _open(path) as image, _decoding(image):
        return Kind(image.mode in GREY or is_grey(image), min(image.size))


def read_header(path: Path) -> Header:
    """The size and kind of an image, without decoding it unless its pixels have over 8 bits.

    Raises:
        UnreadableError: it is none, or too large.
    """
    with _open(path) as image, _decoding(image):
        grey, largest = image.mode in GREY or is_grey(image), None
        if is_wide(image):
            largest = _largest(wide_pixels(image, path))
        return Header(image.width, image.height, grey, largest)


def decode(
    path: Path, size: int, channels: int, bits: PixelBits | None = None, interpolation: str = "bilinear"
) -> NDArray[np.uint8]:
    """The centre square of an image, turned upright: uint8 [size, size, channels].

    The short side is resized to ``size`` by an antialiased filter. Transparent pixels are shown on white, of
    animations and of several pages the first is read. Colour profiles are not applied.

    Args:
        path: the file.
        size: side in pixels.
        channels: 1 (grey) or 3 (red, green, blue).
        bits: what pixels of over 8 bits are scaled by where the file does not say what is white; it meets their
            largest value. Default: 16 bits.
        interpolation: the filter: bilinear or bicubic.

    Raises:
        UnreadableError: it cannot be decoded to its end.
    """
    with _upright(path, 2 * size, min, bits, "L" if channels == 1 else "RGB") as (image, turn):
        square = _centre(image, size, FILTERS[interpolation])
        return np.asarray(square if turn is None else square.transpose(turn)).reshape(size, size, channels)


def decode_whole(path: Path, side: int, bits: PixelBits | None = None) -> NDArray[np.uint8]:
    """A whole image for the eye, turned upright: uint8 [h, w, 3], the longer of both at most ``side``.

    Smaller images keep their size. For the rest see :func:`decode`.

    Raises:
        UnreadableError: it cannot be decoded to its end.
    """
    with _upright(path, 2 * side, max, bits, "RGB") as (image, turn):
        image.thumbnail((side, side), FILTERS["bilinear"])
        return np.asarray(image if turn is None else image.transpose(turn))


@contextlib.contextmanager
def _upright(
    path: Path, enough: int, measured: Callable[[tuple[int, int]], int], bits: PixelBits | None, mode: str
) -> Iterator[tuple[Image.Image, Image.Transpose | None]]:
    """A decoded image of 8 bits without transparency, and how it has yet to be turned.

    Args:
        enough: pixels; JPEG decodes to a fraction of the size at a fraction of the cost, down to this.
        measured: the side that has to have them, of width and height.
    """
    bits = PixelBits(16) if bits is None else bits
    with _open(path) as image, _decoding(image):
        length = measured(image.size)
        image.draft(None, (math.ceil(image.width * enough / length), math.ceil(image.height * enough / length)))
        shown: Image.Image = image
        upright = turned_by_reader(image)
        if is_wide(image):
            wide = wide_pixels(image, path)
            largest = _largest(wide)
            if largest is not None:
                bits.meet(largest)
            shown = wide.image(bits.bits)
        else:
            image.load()
        yield _plain(shown, mode), None if upright else remaining_turn(image)


def _open(path: Path) -> ImageFile.ImageFile:
    try:
        image = Image.open(path, formats=FORMATS)
    except Image.DecompressionBombError:
        raise UnreadableError(f"over {MAX_PIXELS >> 20} x 2^20 pixels") from None
    except Exception as error:
        if isinstance(error, OSError) and error.strerror:
            raise UnreadableError("cannot be opened") from error
        unknown = NO_IMAGE if isinstance(error, UnidentifiedImageError) else DAMAGED
        raise UnreadableError(reason_by_content(path) or unknown) from None
    image.filename = ""  # or Pillow maps the file into memory, which it does at the wrong size for a turned TIFF
    if image.width * image.height > MAX_PIXELS:
        image.close()
        raise UnreadableError(f"over {MAX_PIXELS >> 20} x 2^20 pixels")
    return image


@contextlib.contextmanager
def _decoding(image: Image.Image) -> Iterator[None]:
    """Large images one at a time; what goes wrong is a reason."""
    try:
        with _large if image.width * image.height > LARGE_PIXELS else contextlib.nullcontext():
            yield
    except UnknownRangeError:
        raise UnreadableError(UNKNOWN_RANGE) from None
    except UnsupportedError:
        raise UnreadableError(VARIANT) from None
    except Exception as error:  # decoders raise anything, from SyntaxError to struct.error, for damaged files
        raise UnreadableError(DAMAGED) from error


def _largest(wide: WidePixels) -> int | None:
    return None if wide.white is not None else int(wide.colour.max())


def _centre(image: Image.Image, size: int, resampling: Image.Resampling) -> Image.Image:
    short = min(image.size)
    left, top = (image.width - short) / 2, (image.height - short) / 2
    return image.resize((size, size), resampling, box=(left, top, left + short, top + short))


def _plain(image: Image.Image, mode: str) -> Image.Image:
    """A loaded image of 8 bits, grey or colour, without transparency."""
    if image.mode == "LAB":
        transform = ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")
        image = transform.apply(image)
    if image.mode in ("La", "RGBa"):
        image = image.convert(image.mode.upper())
    if image.has_transparency_data:
        foreground = image.convert("RGBA")
        image = Image.new("RGBA", image.size, "white")
        image.alpha_composite(foreground)
    return image if image.mode == mode else image.convert(mode)
