"""The folder of a run: which one, and how files get into it."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path
from typing import Any

import torch

from imc.config import Config
from imc.data import name_of
from imc.errors import UserError

RUNS = Path("runs")
RESULT = "result.json"
FILES = ("config.json", "metrics.jsonl", "model.pt", "labels.csv", "confusion.png", "gallery.png", RESULT)


def open_run_folder(config: Config) -> Path:
    """The folder that this run writes to, created.

    With neither ``out`` nor ``name`` given: ``runs/<data>`` (of a path its last part), or the first of
    ``runs/<data>-2``, ``-3``, ... that does not exist. A folder asked for may exist if it holds no result, or with
    ``overwrite``; files of an earlier run in it are then removed, so that nothing in it is of two runs. Other files are
    left alone.

    Raises:
        UserError: the folder holds a result, or cannot be created.
    """
    try:
        if config.out is None and config.name is None and not config.overwrite:
            return _next_free(RUNS / name_of(config.data))
        folder = Path(config.out) if config.out is not None else RUNS / (config.name or name_of(config.data))
        if (folder / RESULT).exists() and not config.overwrite:
            raise UserError(f"{folder} already holds a result; give another --out or --name, or pass --overwrite")
        folder.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            (folder / name).unlink(missing_ok=True)
        (folder / FILES[0]).touch()
        return folder
    except OSError as error:
        where = config.out or RUNS
        raise UserError(f"--out must be a folder that can be written: {error.strerror} ({where})") from None


def _next_free(folder: Path) -> Path:
    candidates = itertools.chain(
        [folder], (folder.with_name(f"{folder.name}-{suffix}") for suffix in itertools.count(2))
    )
    free = next(candidate for candidate in candidates if not candidate.exists())
    free.mkdir(parents=True)
    return free


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON object, indented, by way of a temporary file."""
    _replace(path, (json.dumps(content, indent=2) + "\n").encode())


def append_json_line(path: Path, content: dict[str, Any]) -> None:
    """Append a JSON object as one line."""
    with path.open("a") as file:
        file.write(json.dumps(content) + "\n")


def save_model(path: Path, state: dict[str, torch.Tensor], config: dict[str, Any]) -> None:
    """Write ``{"model": state dict, "config": dict}``, loadable with ``torch.load(path, weights_only=True)``."""
    temporary = path.with_name(path.name + ".tmp")
    torch.save({"model": state, "config": config}, temporary)
    os.replace(temporary, path)


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)
