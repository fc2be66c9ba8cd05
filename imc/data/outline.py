"""What the presets go by: a data set without its samples."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Outline:
    """A data set in numbers.

    Attributes:
        name: of the data set.
        count: samples, labelled or not, that are trained on.
        classes: of the labels, 0 without any.
        side: of the images, pixels.
        channels: of the images.
        columns: of each file of features; None: the samples are images.
    """

    name: str
    count: int
    classes: int
    side: int = 0
    channels: int = 0
    columns: tuple[int, ...] | None = None
