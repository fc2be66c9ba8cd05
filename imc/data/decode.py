"""One image file to one square of bytes. What fails is an :class:`UnreadableError` with a reason to count it under."""

from __future__ import annotations

import contextlib
import math
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

# What Pillow reads by itself. Left out: formats that it hands to other programs (EPS) or leaves to plug-ins.
Image.init()
FORMATS = tuple(
    name
    for name in (
        *("JPEG", "PNG", "WEBP", "AVIF", "TIFF", "BMP", "DIB", "GIF", "PPM", "JPEG2000"),
        *("TGA", "ICO", "PCX", "SGI", "QOI", "DDS", "PSD"),
    )
    if name in Image.OPEN
)
SUFFIXES = frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in (*FORMATS, "MPO"))
MAX_PIXELS = 1 << 27  # 134 megapixels; decoded with transparency that takes about 1.5 GB
LARGE_PIXELS = 1 << 24  # images above this are decoded one at a time, so that threads do not multiply their memory
GREY = ("1", "L", "LA", "La", "I;16", "I;16L", "I;16B", "I;16N")
WIDE = ("I", "F")
ORIENTATION = 0x0112  # the EXIF tag
TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


_large = threading.Lock()


class UnreadableError(Exception):
    """The message is the reason, in words that also fit many files."""


@dataclass(frozen=True)
class Header:
    """What the first bytes of an image say: width and height in pixels, before any rotation, and if it is grey."""

    width: int
    height: int
    grey: bool


def read_header(path: Path) -> Header:
    """The size and kind of an image, without decoding it.

    Raises:
        UnreadableError: it is none, or too large.
    """
    with _open(path) as image:
        return Header(image.width, image.height, grey=image.mode in GREY)


def decode(path: Path, size: int, channels: int) -> NDArray[np.uint8]:
    """The centre square of an image, turned as its EXIF orientation says: uint8 [size, size, channels].

    The short side is resized to ``size`` by an antialiased bilinear filter. Transparent pixels are shown on white, of
    16-bit grey the upper 8 bits are kept, of animations the first frame.

    Args:
        path: the file.
        size: side in pixels.
        channels: 1 (grey) or 3 (red, green, blue).

    Raises:
        UnreadableError: it cannot be decoded to its end.
    """
    with _open(path) as image:
        try:
            short = min(image.size)
            # JPEG decodes to a fraction of the size at a fraction of the cost; twice the size is left for the filter.
            image.draft(None, tuple(math.ceil(side * 2 * size / short) for side in image.size))
            turn = TRANSPOSITIONS.get(_orientation(image))
            with _large if image.width * image.height > LARGE_PIXELS else contextlib.nullcontext():
                square = _centre(_plain(image, "L" if channels == 1 else "RGB"), size)
            if turn is not None:
                square = square.transpose(turn)
            return np.asarray(square).reshape(size, size, channels)
        except UnreadableError:
            raise
        except Exception as error:  # decoders raise anything, from SyntaxError to struct.error, for damaged files
            raise UnreadableError("damaged or cut short") from error


def _open(path: Path) -> Image.Image:
    try:
        image = Image.open(path, formats=FORMATS)
    except UnidentifiedImageError:
        reason = "empty" if path.stat().st_size == 0 else "not images"
        raise UnreadableError(reason) from None
    except Image.DecompressionBombError:
        raise UnreadableError(f"over {MAX_PIXELS >> 20} x 2^20 pixels") from None
    except OSError as error:
        raise UnreadableError("cannot be opened" if error.strerror else "damaged or cut short") from error
    except Exception as error:
        raise UnreadableError("damaged or cut short") from error
    if image.width * image.height > MAX_PIXELS:
        image.close()
        raise UnreadableError(f"over {MAX_PIXELS >> 20} x 2^20 pixels")
    if image.mode in WIDE:
        image.close()
        raise UnreadableError("of 32 bits a pixel, which have no known range")
    return image


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # a damaged EXIF block says nothing about the pixels
        return 1


def _centre(image: Image.Image, size: int) -> Image.Image:
    short = min(image.size)
    left, top = (image.width - short) / 2, (image.height - short) / 2
    return image.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + short, top + short))


def _plain(image: Image.Image, mode: str) -> Image.Image:
    """The image decoded, in 8 bits, grey or colour, without transparency."""
    image.load()
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        foreground = image.convert("RGBA")
        image = Image.new("RGBA", image.size, "white")
        image.alpha_composite(foreground)
    return image if image.mode == mode else image.convert(mode)
