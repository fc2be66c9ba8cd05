"""Metrics and clusters of a run, read as data whoever wrote them: what a file holds, or one sentence that names it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from imc.errors import UserError
from imc.files.csv import read_rows


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The lines of a metrics.jsonl, one for each epoch, all with the same names; none where there is no file.

    Raises:
        UserError: it is damaged.
    """
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
        whole = all(isinstance(line, dict) for line in lines) and all(
            {"epoch", "loss", "lr"} <= line.keys() == lines[-1].keys() for line in lines
        )
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        whole = False
    if not whole or not all(type(value) in (int, float) for line in lines for value in line.values()):
        raise UserError(f"{path} is damaged: its lines are not the numbers of one epoch each")
    return lines


def read_clusters(path: Path) -> NDArray[np.int64]:
    """The cluster of each image [M] in a labels.csv.

    Raises:
        UserError: it is not there, or damaged.
    """
    try:
        return np.array([int(row["cluster"]) for row in read_rows(path)], np.int64)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, OverflowError, csv.Error):
        raise UserError(f"{path} is damaged: it has no column of numbers named cluster") from None
