"""The folder of a run: which one, and how files get into it."""

from __future__ import annotations

import contextlib
import errno
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
from imc.errors import RunError, UserError
from imc.files.paths import new_folder, user_path
from imc.files.run_places import CONFIG, RUNS, is_run, newest
from imc.machine.torch_state import as_in_a_new_process
from imc.methods import load_model, misfit
from imc.methods.method import Method
from imc.runs.files import read_json
from imc.text import shortened

RESULT = "result.json"
FIGURES = "figures"  # a folder
METRICS, MODEL, CHECKPOINT = "metrics.jsonl", "model.safetensors", "checkpoint.pt"
LABELS = "labels.csv"
DATA = "data.json"  # the fingerprint of the images
FILES = (CONFIG, DATA, METRICS, CHECKPOINT, MODEL, LABELS, "confusion.png", "gallery.png", RESULT)


def require_free(config: Config) -> None:
    """The folder that a new run asks for can be had. Nothing is written yet: a start that fails leaves no trace.

    A folder asked for may exist if it holds no result and no checkpoint, or with ``overwrite``.

    Raises:
        UserError: the folder holds a run, or cannot be written.
    """
    folder = run_folder(config)
    with _folder_errors(config):
        if not config.overwrite and (config.out is not None or config.name is not None):
            if (folder / RESULT).exists():
                raise UserError(f"{folder} already holds a result; give another --out or --name, or pass --overwrite")
            if (folder / CHECKPOINT).exists():
                raise UserError(f"{folder} holds an unfinished run; continue it with --resume, or pass --overwrite")
        place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        if not place.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if not os.access(place, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


@contextlib.contextmanager
def open_run_folder(config: Config) -> Iterator[Path]:
    """The folder that this run writes to, created; removed again where what is done with it fails.

    With neither ``out`` nor ``name`` given: ``runs/<data>`` (of a path its last part), or the first of
    ``runs/<data>-2``, ``-3``, ... that does not exist. In a folder asked for, files of an earlier run are removed, so
    that nothing in it is of two runs. Other files are left alone.

    Raises:
        UserError: the folder holds a result, or cannot be created.
    """
    require_free(config)
    with contextlib.ExitStack() as created:
        with _folder_errors(config):
            folder = _created(config, created)
            _remove_files(folder)
        try:
            yield folder
        except BaseException:
            _remove_files(folder)
            raise


def run_folder(config: Config) -> Path:
    """The folder that ``out`` or ``name`` asks for."""
    return RUNS / (config.name or name_of(config.data)) if config.out is None else user_path(config.out)


def _created(config: Config, created: contextlib.ExitStack) -> Path:
    """The folder, or the first of its names that is free, taken so that no other process takes it too."""
    folder = run_folder(config)
    if config.out is not None or config.name is not None or config.overwrite:
        created.enter_context(new_folder(folder))
        return folder
    further = (folder.with_name(shortened(folder.name, f"-{suffix}")) for suffix in itertools.count(2))
    for candidate in itertools.chain([folder], further):
        with contextlib.suppress(FileExistsError):
            created.enter_context(new_folder(candidate, taken=False))
            return candidate
    raise AssertionError


def _remove_files(folder: Path) -> None:
    for name in FILES:
        (folder / name).unlink(missing_ok=True)


@contextlib.contextmanager
def _folder_errors(config: Config) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"--out must be a folder that can be written: {reason} ({config.out or RUNS})") from None


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
    folder = user_path(folder)
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
