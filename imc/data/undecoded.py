"""The images of a folder, left in their files until they are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from imc.data.decode import Header, decode, read_header
from imc.data.folders import FolderImages, Skipped, listing, nothing, read_in_threads
from imc.data.pixel_bits import PixelBits
from imc.text import printable


class Undecoded:
    """A :data:`imc.data.folders.Reader` of whose images only the headers are read.

    Attributes:
        folder: where they lie.
        names: [M] paths relative to the folder; number k of what was read is ``names[k]``.
        bits: what scales pixels of over 8 bits.
        small: how many have a shorter side than they will be used at.

    Args:
        side: at which the images will be used, pixels.
        pixel_bits: see :mod:`imc.data.pixel_bits`; None: those of the largest value.
    """

    def __init__(self, side: int, pixel_bits: int | None = None) -> None:
        self.bits = PixelBits(pixel_bits)
        self.side = side
        self.small = 0
        self.folder = Path()
        self.names: list[str] = []
        self._wide: set[int] = set()

    def __call__(self, folder: Path, within: Sequence[str]) -> FolderImages:
        skipped = Skipped()
        return self.read(folder, [name for name, _ in listing(folder, within, skipped)], skipped)

    def read(self, folder: Path, found: Sequence[str], skipped: Skipped) -> FolderImages:
        """The same of these files in the folder; ``skipped`` takes those that cannot be read."""
        self.folder = folder
        for name, header in read_in_threads(lambda name: read_header(folder / name), found, "read sizes", skipped):
            self._meet(name, header)
        if not self.names:
            raise nothing(folder, skipped)
        files = tuple(map(printable, self.names))
        return FolderImages(torch.arange(len(files)), files, str(self.bits), skipped, self.bits.found)

    def _meet(self, name: str, header: Header) -> None:
        if header.largest is not None:
            self.bits.meet(header.largest)
            self._wide.add(len(self.names))
        self.small += min(header.width, header.height) < self.side
        self.names.append(name)

    def content(self, number: int) -> bytes:
        """What decides an image: the bytes of its file, and how its pixels are scaled.

        Raises:
            OSError: the file cannot be read.
        """
        scale = f"{self.bits.bits} bits".encode() if number in self._wide else b""
        return (self.folder / self.names[number]).read_bytes() + scale

    def decode(self, number: int, side: int, interpolation: str) -> NDArray[np.uint8]:
        """The centre square of an image: uint8 [side, side, 3]; see :func:`imc.data.decode.decode`.

        Raises:
            UnreadableError: it cannot be decoded to its end.
        """
        return decode(self.folder / self.names[number], side, 3, self.bits, interpolation)
