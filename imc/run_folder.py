"""The folder of a run: which one, and how files get into it."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load, save

from imc.config import Config
from imc.data import name_of, views
from imc.data.paths import user_path
from imc.errors import RunError, UserError
from imc.methods import load_model, misfit
from imc.methods.method import Method
from imc.run_files import read_json
from imc.run_places import CONFIG, RUNS, is_run, newest
from imc.text import shortened
from imc.torch_state import as_in_a_new_process

RESULT = "result.json"
FIGURES = "figures"  # a folder
METRICS, MODEL, CHECKPOINT = "metrics.jsonl", "model.safetensors", "checkpoint.pt"
LABELS = "labels.csv"
FILES = (CONFIG, METRICS, CHECKPOINT, MODEL, LABELS, "confusion.png", "gallery.png", RESULT)


def open_run_folder(config: Config) -> Path:
    """The folder that this run writes to, created.

    With neither ``out`` nor ``name`` given: ``runs/<data>`` (of a path its last part), or the first of
    ``runs/<data>-2``, ``-3``, ... that does not exist. A folder asked for may exist if it holds no result and no
    checkpoint, or with ``overwrite``; files of an earlier run in it are then removed, so that nothing in it is of two
    runs. Other files are left alone.

    Raises:
        UserError: the folder holds a result, or cannot be created.
    """
    try:
        if config.out is None and config.name is None and not config.overwrite:
            return _next_free(RUNS / name_of(config.data))
        folder = run_folder(config)
        if (folder / RESULT).exists() and not config.overwrite:
            raise UserError(f"{folder} already holds a result; give another --out or --name, or pass --overwrite")
        if (folder / CHECKPOINT).exists() and not config.overwrite:
            raise UserError(f"{folder} holds an unfinished run; continue it with --resume, or pass --overwrite")
        folder.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            (folder / name).unlink(missing_ok=True)
        (folder / FILES[0]).touch()
        return folder
    except OSError as error:
        where = config.out or RUNS
        raise UserError(f"--out must be a folder that can be written: {error.strerror} ({where})") from None


def run_folder(config: Config) -> Path:
    """The folder that ``out`` or ``name`` asks for."""
    return RUNS / (config.name or name_of(config.data)) if config.out is None else user_path(config.out)


def _next_free(folder: Path) -> Path:
    candidates = itertools.chain(
        [folder], (folder.with_name(shortened(folder.name, f"-{suffix}")) for suffix in itertools.count(2))
    )
    free = next(candidate for candidate in candidates if not candidate.exists())
    free.mkdir(parents=True)
    return free


@dataclass(frozen=True)
class LoadedRun:
    """A trained model and its resolved configuration."""

    config: Config
    model: Method

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def prepare(self, images: torch.Tensor) -> torch.Tensor:
        """What the model takes: uint8 [B, H, W, C] -> float32 [B, C, s, s], unaugmented."""
        return views.prepare(images, self.config)


@as_in_a_new_process()
def load_run(
    folder: Path | str, device: torch.device | str = "cpu", encoder: torch.nn.Module | None = None
) -> LoadedRun:
    """The model that a run left, in evaluation mode.

    Args:
        folder: of a run that has ended.
        device: where the model goes.
        encoder: the module given to :func:`imc.train.train`, for a run with one.

    Raises:
        UserError: no such run, or its files do not fit together.
    """
    folder = Path(folder)
    config = read_config(folder)
    try:
        state = load((folder / MODEL).read_bytes())  # not load_file, for which a path must be UTF-8
    except Exception as error:  # a damaged file makes the reader raise anything
        reason = (getattr(error, "strerror", None) or str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{folder} holds no finished run: {MODEL}: {reason}") from None
    difference = misfit(config, encoder, state)
    if difference is not None:
        raise UserError(f"{folder / MODEL} does not fit {CONFIG} beside it: {difference}")
    model = load_model(config, encoder, state)
    return LoadedRun(config, cast(Method, model.to(device).eval()))


def read_config(folder: Path) -> Config:
    """The resolved configuration of the run in this folder.

    Raises:
        UserError: there is none, it is damaged, or another version wrote it.
    """
    try:
        return Config.from_dict(read_json(folder / CONFIG)).validate()
    except UserError as reason:
        hint = "" if is_run(folder) else newest()
        raise UserError(
            f"{folder} is not the folder of a run: it holds no readable {CONFIG} ({reason}){hint}"
        ) from None


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON object, indented, by way of a temporary file."""
    write_file(path, (json.dumps(content, indent=2) + "\n").encode())


def append_json_line(path: Path, content: dict[str, Any]) -> None:
    """Append a JSON object as one line, on the disk before a checkpoint that counts on it.

    Raises:
        RunError: the disk does not take it.
    """
    with written(path), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(content) + "\n")
        file.flush()
        os.fsync(file.fileno())


def keep_json_lines(path: Path, epochs: int) -> None:
    """Keep the lines of the first ``epochs`` epochs: what was written after a checkpoint is written again."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)[:epochs] if path.exists() else []
    write_file(path, "".join(lines).encode())


def save_model(path: Path, model: torch.nn.Module) -> None:
    """Write the parameters and buffers in the format of safetensors, by way of a temporary file."""
    # Contiguous, since the format has no other order; clones, since it refuses tensors that share memory.
    state = {name: x.detach().cpu().contiguous().clone() for name, x in model.state_dict().items()}
    write_file(path, save(state))


def write_file(path: Path, content: bytes | memoryview) -> None:
    """Write a file so that at any moment, also of a power cut, it holds the old content or the new.

    Raises:
        RunError: the disk does not take it; the file holds the old content.
    """
    temporary = path.with_name(path.name + ".tmp")
    with written(path):
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def written(path: Path) -> Iterator[None]:
    """Turn what the disk objects to while a file of a run is written into a sentence.

    Raises:
        RunError: the disk is full, gone or read-only.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise RunError(f"{path} could not be written: {reason}; --resume continues from the last checkpoint") from None
