"""Tables: CSV and Parquet, of the columns of labels.csv and the name."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from imc.errors import UserError
from imc.files.csv import Rows
from imc.files.whole import replacing
from imc.handover.labelled import CONFIDENCE, FILE, NAME, Labelled
from imc.text import printable


def write_csv(path: Path, images: Sequence[Labelled], classes: Sequence[str]) -> None:
    """Write a CSV file, as labels.csv is."""
    with replacing(path) as file:
        rows = Rows(file, list(images[0].row))
        for image in images:
            rows.add(*image.row.values())


def require_parquet() -> None:
    """The library that writes Parquet is there.

    Raises:
        UserError: it is not.
    """
    if importlib.util.find_spec("pyarrow") is None:
        raise UserError("--to parquet needs pyarrow, not installed here; pip install pyarrow, or give --to csv")


def write_parquet(path: Path, images: Sequence[Labelled], classes: Sequence[str]) -> None:
    """Write a Parquet file: numbers as such, names as a dictionary, none as null, files with their absolute path."""
    import pyarrow
    from pyarrow import parquet

    columns: dict[str, Any] = {}
    for key in images[0].columns:
        values = [image.columns[key] for image in images]
        columns[key] = [float(value) for value in values] if key == CONFIDENCE else values
    if FILE in columns:
        columns["path"] = [None if image.path is None else printable(str(image.path)) for image in images]
    columns[NAME] = pyarrow.array([image.name for image in images]).dictionary_encode()
    with replacing(path, binary=True) as file:
        parquet.write_table(pyarrow.table(columns), file)
