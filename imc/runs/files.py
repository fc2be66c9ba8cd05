"""The files of a run, read as data whoever wrote them: what a file holds, or one sentence that names it."""

from __future__ import annotations

import csv
import json
import pickle
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from imc.errors import UserError
from imc.files.csv import read_rows

ARCHIVE = b"PK\x03\x04"  # how what torch.save writes begins, since torch 1.6


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        UserError: it is not there, or holds none.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged: it holds no JSON object")
    return content


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


def read_torch_file(path: Path) -> Any:
    """What torch.save wrote, on the CPU. Nothing in it is executed, and no more is unpacked than the file is long.

    Raises:
        ValueError: it cannot be read; the message is the reason, in one line.
    """
    try:
        with path.open("rb") as file:  # a path that torch opened itself would have to be UTF-8
            if file.read(len(ARCHIVE)) == ARCHIVE:
                # torch.load does not look at the sums that torch.save leaves: it takes a flipped bit for a parameter.
                with zipfile.ZipFile(path) as content:
                    require_plain(content.infolist(), path)
                    damaged = content.testzip()
                if damaged is not None:
                    raise ValueError(f"{damaged} in it is damaged")
            file.seek(0)
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:  # torch's message is advice for programmers, with a terminal's codes
        raise ValueError(
            "it is damaged, or holds Python objects, which are not read since that could run code"
        ) from None
    except Exception as error:  # a file that is no pickle makes the reader raise anything
        raise ValueError((str(error) or type(error).__name__).splitlines()[0]) from None


def require_plain(entries: Sequence[zipfile.ZipInfo], path: Path) -> None:
    """Entries of an archive take no more memory than the file is long.

    Raises:
        ValueError: one is compressed, or they say that they are larger.
    """
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise ValueError("it is compressed, which torch.save and np.savez do not do")
    if sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise ValueError("it says that it holds more than the file is long")
