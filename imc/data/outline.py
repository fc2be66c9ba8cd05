"""What the presets go by: a data set without its samples."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import median_low

import torch

from imc.data import Dataset, load
from imc.data.decode import Header, UnreadableError, read_header
from imc.data.folders import FolderImages, Skipped, default_size, listing, nothing
from imc.data.named import NAMED
from imc.errors import UserError
from imc.text import printable

LOOKED_AT = 64  # images of a folder whose headers are read, spread over it


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
        scaling: of features, the one that fits their numbers; see :func:`imc.features.scaling.fitting_scaling`.
    """

    name: str
    count: int
    classes: int
    side: int = 0
    channels: int = 0
    columns: tuple[int, ...] | None = None
    scaling: str = "length"


def outline_of(data: Dataset, *, with_test: bool) -> Outline:
    """That of a data set that was read; ``with_test``: its test split is trained on too.

    Raises:
        UserError: it has no image.
    """
    samples, classes = data.train.images, len(data.train.class_names)
    if data.train.are_features:
        return Outline(data.name, len(samples), classes, columns=data.train.columns or (samples.shape[1],))
    if min(samples.shape[:3]) < 1:
        raise UserError(f"{data.name} holds no images")
    count = len(samples) + (len(data.test.images) if with_test and data.test is not None else 0)
    return Outline(data.name, count, classes, side=min(samples.shape[1:3]), channels=samples.shape[3])


def outline_of_source(
    source: str, *, image_size: int | None = None, labels_from_folders: bool = False, with_test: bool = False
) -> Outline:
    """That of a data set that was not: of a published set what was published, of a folder by a few of its images.

    Args:
        source, image_size, labels_from_folders: see :func:`imc.data.load`.
        with_test: the test split is trained on too.

    Raises:
        UserError: it is not there, or cannot be read.
    """
    if source in NAMED:
        entry = NAMED[source]
        count = sum(entry.counts) if with_test else entry.counts[0]
        return Outline(source, count, entry.classes, side=image_size or entry.side, channels=len(entry.statistics[0]))
    folder = _Listed()
    data = load(source, labels_from_folders=labels_from_folders, read=folder)
    if folder.side is None:
        found = outline_of(data, with_test=with_test)
        side, channels, count = found.side, found.channels, found.count
    else:
        side, channels, count = folder.side, folder.channels, len(data.train.images)
        count += len(data.test.images) if with_test and data.test is not None else 0
    return Outline(data.name, count, len(data.train.class_names), side=image_size or side, channels=channels)


def some_headers(folder: Path, names: Sequence[str]) -> list[Header]:
    """Those of a few of the images in a folder."""
    headers = []
    for name in islice(names, 0, None, max(1, len(names) // LOOKED_AT)):
        with suppress(UnreadableError, OSError):
            headers.append(read_header(folder / name))
    return headers


class _Listed:
    """A :data:`imc.data.folders.Reader` that lists the images, and looks at a few.

    Attributes:
        side: at which they would be used, pixels; None: no folder was read.
        channels: that they would have.
    """

    side: int | None = None
    channels = 0

    def __call__(self, folder: Path, within: Sequence[str]) -> FolderImages:
        skipped = Skipped()
        names = [name for name, _ in listing(folder, within, skipped)]
        headers = some_headers(folder, names)
        if not headers:
            raise nothing(folder, skipped)
        self.side = default_size(median_low(min(header.width, header.height) for header in headers))
        self.channels = 1 if all(header.grey for header in headers) else 3
        return FolderImages(torch.arange(len(names)), tuple(map(printable, names)), "", skipped)
