"""The images of a run with the names of their clusters."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from imc.errors import UserError
from imc.files.csv import path_of, read_rows
from imc.runs.names import Names, digest_of_images
from imc.text import counted

NUMBERS = ("index", "cluster", "unsure", "label")  # columns of labels.csv
NAME, FILE, CONFIDENCE = "name", "file", "confidence"


@dataclass(frozen=True)
class Labelled:
    """An image.

    Attributes:
        columns: what labels.csv says about it, by the names there, numbers as numbers.
        name: of its cluster, or of that to which it was moved; None: it has none.
        path: its file; None: it is none.
    """

    columns: dict[str, Any]
    name: str | None = None
    path: Path | None = None

    @property
    def file(self) -> str:
        """Its name in the data set."""
        return str(self.columns[FILE])

    @property
    def confidence(self) -> float:
        """The probability of the cluster, by the model."""
        return float(self.columns[CONFIDENCE])

    @property
    def row(self) -> dict[str, Any]:
        """What a table says about it."""
        return {**self.columns, NAME: self.name or ""}


def read_labelled(path: Path) -> list[Labelled]:
    """The images in a labels.csv, without names and files.

    Raises:
        UserError: it is not there, or damaged.
    """
    try:
        images = []
        for row in read_rows(path):
            columns: dict[str, Any] = {key: value for key, value in row.items() if key != NAME}
            columns |= {key: int(row[key]) for key in NUMBERS if key in row}
            columns |= {FILE: path_of(row[FILE])} if FILE in row else {}
            float(columns[CONFIDENCE]), columns["cluster"]
            images.append(Labelled(columns))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, csv.Error):
        raise UserError(f"{path} is damaged: it has no columns cluster and confidence, of numbers") from None
    return images


def named(images: Sequence[Labelled], names: Names, source: Path) -> list[Labelled]:
    """Images with the names of their clusters.

    Args:
        images: of a run.
        names: for it.
        source: the file that they are from.

    Raises:
        UserError: the names move images of another set to other clusters, or are of other clusters.
    """
    files = [image.file for image in images] if images and FILE in images[0].columns else None
    if names.moved and names.images != digest_of_images(files, len(images)):
        moved = counted(len(names.moved), "image{s}")
        raise UserError(f"{source} moves {moved} of other images than those in labels.csv, by their numbers")
    if any(index >= len(images) for index in names.moved):
        raise UserError(f"{source} moves image {max(names.moved)}, and labels.csv has {len(images)}")
    highest = max((image.columns["cluster"] for image in images), default=0)
    if highest >= names.clusters:
        raise UserError(f"labels.csv is damaged: it has the cluster {highest}, and the run has {names.clusters}")
    return [replace(image, name=names.of_image(index, image.columns["cluster"])) for index, image in enumerate(images)]
