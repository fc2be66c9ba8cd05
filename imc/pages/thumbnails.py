"""Many small pictures as few files: sheets of them, in JPEG, made while they are asked for."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imc.data import Images
from imc.data.decode import UnreadableError, decode_whole
from imc.data.folders import Skipped, read_in_threads
from imc.data.pixel_bits import PixelBits

DEFAULT_SIDES = (160, 128, 96)  # pixels; the first of which one page holds all
SMALL = 64  # pictures up to this side have much detail in each pixel, and take more bytes for it
BYTES_A_PIXEL, BYTES_A_SMALL_PIXEL = 0.3, 0.8  # of photographs, by which a page's size is told beforehand
QUALITY, QUALITY_OF_SMALL = 82, 90
SHEET = 1300  # pixels, about the longest side of a sheet
GAP = 2  # pixels between the pictures of a sheet, so that none is seen at the edge of another
GROUND = 242  # grey around pictures that are no squares, as the page's
LOOKED_AT = 64  # pictures, spread over all, by which the side of small ones is found


@dataclass(frozen=True)
class Sheet:
    """Pictures that follow one another, row by row.

    Attributes:
        first, count: which of all pictures.
        columns: of the sheet.
        content: a JPEG file.
    """

    first: int
    count: int
    columns: int
    content: bytes

    def without_content(self) -> Sheet:
        """The same where its file lies elsewhere."""
        return replace(self, content=b"")

    def size(self, side: int) -> tuple[int, int]:
        """Width and height, of pictures of this side."""
        rows = -(-self.count // self.columns)
        return self.columns * (side + GAP) - GAP, rows * (side + GAP) - GAP


class Pictures:
    """What a page shows of each image: the original in its file, else the pixels that are known.

    Args:
        images: of the data set.
        originals: the file of each; None: they are no files.
        pixel_bits: what scales pixels of over 8 bits in files.
    """

    def __init__(self, images: Images, originals: Sequence[Path] | None, pixel_bits: PixelBits) -> None:
        self.known, self.originals, self.bits = images.shown, originals, pixel_bits
        self.count = len(images.images)
        sample = range(0, self.count, max(1, self.count // LOOKED_AT))
        sides = [max(self._size(index)) for index in sample]
        self.longest = max(sides, default=0)  # pixels, of the pictures looked at

    def __bool__(self) -> bool:
        """Whether there is anything to show."""
        return self.longest > 0

    def __call__(self, index: int, side: int) -> NDArray[np.uint8]:
        """A picture, uint8 [h, w, 3], its longer side at most ``side``; grey where its file cannot be read."""
        if self.originals is not None:
            try:
                return decode_whole(self.originals[index], side, self.bits)
            except UnreadableError:
                pass
        if self.known is None:
            return np.full((side, side, 3), GROUND, np.uint8)
        pixels = self.known[index].numpy()
        if max(pixels.shape[:2]) > side:
            image = Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels)
            image.thumbnail((side, side), Image.Resampling.BILINEAR)
            pixels = np.asarray(image).reshape(image.height, image.width, -1)
        return np.broadcast_to(pixels, (*pixels.shape[:2], 3))

    def _size(self, index: int) -> tuple[int, int]:
        if self.originals is not None:
            try:
                with Image.open(self.originals[index]) as image:
                    return image.size
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
                pass
        return (0, 0) if self.known is None else (self.known.shape[2], self.known.shape[1])


def expected_bytes(count: int, side: int) -> int:
    """About how many bytes the thumbnails of so many photographs take."""
    return round(count * side * side * (BYTES_A_SMALL_PIXEL if side <= SMALL else BYTES_A_PIXEL))


def make_sheets(pictures: Pictures, order: Sequence[int], sizes: Iterable[int], side: int) -> Iterator[Sheet]:
    """The sheets of all pictures, one in memory at a time, and the few that threads decode ahead.

    Args:
        pictures: where they come from.
        order: their numbers, in the order of the sheets.
        sizes: how many of them belong to each group; no sheet holds those of two.
        side: of a picture, pixels.
    """
    decoded = _decoded(pictures, order, side)
    columns = max(4, min(20, SHEET // (side + GAP)))
    first = 0
    for size in sizes:
        for start in range(0, size, columns * columns):
            count = min(columns * columns, size - start)
            width = min(columns, count)
            content = _sheet(islice(decoded, count), count, width, side)
            yield Sheet(first, count, width, content)
            first += count


def _decoded(pictures: Pictures, order: Sequence[int], side: int) -> Iterator[NDArray[np.uint8]]:
    if pictures.originals is None:
        return (pictures(index, side) for index in order)
    names = list(map(str, order))
    found = read_in_threads(lambda name: pictures(int(name), side), names, "thumbnails", Skipped())
    return (picture for _, picture in found)


def _sheet(pictures: Iterable[NDArray[np.uint8]], count: int, columns: int, side: int) -> bytes:
    rows, pitch = -(-count // columns), side + GAP
    canvas = np.full((rows * pitch - GAP, columns * pitch - GAP, 3), GROUND, np.uint8)
    for number, picture in enumerate(pictures):
        height, width = picture.shape[:2]
        top = number // columns * pitch + (side - height) // 2
        left = number % columns * pitch + (side - width) // 2
        canvas[top : top + height, left : left + width] = picture
    return jpeg(canvas, small=side <= SMALL)


def jpeg(pixels: NDArray[np.uint8], *, small: bool) -> bytes:
    """Pixels uint8 [h, w, 3] as a JPEG file; of ``small`` pictures with all of their colour."""
    buffer = io.BytesIO()
    settings = {"quality": QUALITY_OF_SMALL, "subsampling": 0} if small else {"quality": QUALITY}
    Image.fromarray(pixels).save(buffer, "JPEG", **settings)
    return buffer.getvalue()
