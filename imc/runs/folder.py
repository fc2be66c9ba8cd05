"""The folder of a run: which one, and the configuration in it."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

from imc.config import Config, RunOptions
from imc.data import name_of
from imc.errors import UserError
from imc.files.json import read_json
from imc.files.paths import new_folder, user_path
from imc.files.run_places import CHECKPOINT, CONFIG, FILES, RESULT, RUNS, is_run, newest
from imc.text import shortened


def require_free(options: RunOptions) -> None:
    """The folder that a new run asks for can be had. Nothing is written yet: a start that fails leaves no trace.

    A folder asked for may exist if it holds no result and no checkpoint, or with ``overwrite``.

    Raises:
        UserError: the folder holds a run, or cannot be written.
    """
    folder = run_folder(options)
    with _folder_errors(options):
        if not options.overwrite and (options.out is not None or options.name is not None):
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
def open_run_folder(options: RunOptions) -> Iterator[Path]:
    """The folder that this run writes to, created; removed again where what is done with it fails.

    With neither ``out`` nor ``name`` given: ``runs/<data>`` (of a path its last part), or the first of
    ``runs/<data>-2``, ``-3``, ... that does not exist. In a folder asked for, files of an earlier run are removed, so
    that nothing in it is of two runs. Other files are left alone.

    Raises:
        UserError: the folder holds a result, or cannot be created.
    """
    require_free(options)
    with contextlib.ExitStack() as created:
        with _folder_errors(options):
            folder = _created(options, created)
            _remove_files(folder)
        try:
            yield folder
        except BaseException:
            _remove_files(folder)
            raise


def run_folder(options: RunOptions) -> Path:
    """The folder that ``out`` or ``name`` asks for."""
    return RUNS / (options.name or name_of(options.data)) if options.out is None else user_path(options.out)


def _created(options: RunOptions, created: contextlib.ExitStack) -> Path:
    """The folder, or the first of its names that is free, taken so that no other process takes it too."""
    folder = run_folder(options)
    if options.out is not None or options.name is not None or options.overwrite:
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
def _folder_errors(options: RunOptions) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"--out must be a folder that can be written: {reason} ({options.out or RUNS})") from None


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
