"""Pixels of more than 8 bits as bytes: one rule for the files of a folder and for arrays.

Fractions 0..1 become 0..255. So do whole numbers 0..t where a file states what white is, t (the largest value of a
portable map, the 12 bits of a TIFF). Where none is stated, 16 bits often hold 12; t is then 2^b - 1 with b the bits of
the largest value in the whole data set, at least 8. A run keeps its b for all further images.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

MIN_BITS, MAX_BITS = 8, 16
LARGEST = (1 << MAX_BITS) - 1
CHUNK = 1 << 20  # values converted at a time: an index of uint16 is copied to 64 bits

_meeting = threading.Lock()


@dataclass
class PixelBits:
    """The bits of the pixels whose white nobody states.

    Attributes:
        chosen: by the user, or by the run; None: by the largest value.
        largest: the largest value met; None: no such pixels were met.
    """

    chosen: int | None = None
    largest: int | None = None

    def meet(self, largest: int) -> None:
        """Count in the largest value of an image of such pixels."""
        with _meeting:  # threads decode the images of a folder
            self.largest = max(self.largest or 0, largest)

    @property
    def bits(self) -> int:
        """How many."""
        return self.chosen or max(MIN_BITS, (self.largest or 0).bit_length())

    @property
    def found(self) -> int | None:
        """How many, where there are such pixels."""
        return None if self.largest is None else self.bits

    def __str__(self) -> str:
        if self.largest is None:
            return ""
        white = (1 << self.bits) - 1
        beyond = f", larger ones, up to {self.largest:,}, white" if self.largest > white else ""
        return f"values up to {self.largest:,} taken as {self.bits} bits, 0..{white:,} as black to white{beyond}"


def as_bytes(values: NDArray[Any], white: float) -> NDArray[np.uint8]:
    """Values 0..``white`` as 0..255, rounded; larger ones are 255.

    Args:
        values: whole numbers 0..65535, or floats from 0.
    """
    result = np.empty(values.shape, np.uint8)
    whole = values.dtype.kind in "ui"
    table = np.minimum(np.rint(np.arange(LARGEST + 1) * (255 / white)), 255).astype(np.uint8) if whole else None
    step = max(1, CHUNK // max(1, values[0].size)) if len(values) else 1
    for start in range(0, len(values), step):
        part = values[start : start + step]
        result[start : start + step] = (
            np.minimum(np.rint(part * np.float64(255 / white)), 255) if table is None else table[part]
        )
    return result


@dataclass(frozen=True)
class Range:
    """What numbers of unknown meaning span; NaN and infinity are in no accepted range."""

    low: float
    high: float
    whole: bool

    @classmethod
    def of(cls, values: NDArray[Any]) -> Range:
        """Of an array that is not empty."""
        whole = values.dtype.kind in "bui" or bool((np.isfinite(values) & (values == np.rint(values))).all())
        return cls(values.min().item(), values.max().item(), whole)

    def __or__(self, other: Range) -> Range:
        # A minimum in Python would lose NaN.
        low, high = np.minimum(self.low, other.low).item(), np.maximum(self.high, other.high).item()
        return Range(low, high, self.whole and other.whole)

    @property
    def fractions(self) -> bool:
        """Whether they are 0..1."""
        return self.low >= 0 and self.high <= 1

    @property
    def numbers(self) -> bool:
        """Whether they are whole numbers of 16 bits."""
        return self.whole and self.low >= 0 and self.high <= LARGEST
