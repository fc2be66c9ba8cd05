"""Files and folders that are whole or not there, whatever ends the program that writes them."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from imc.errors import RunError
from imc.text import shortened


@contextlib.contextmanager
def replacing(path: Path, *, binary: bool = False) -> Iterator[IO[Any]]:
    """A new file, of UTF-8 whatever the locale or of bytes, that takes its name once it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(shortened(path.name, ".tmp"))
    try:
        with temporary.open("wb") if binary else temporary.open("w", newline="", encoding="utf-8") as file:
            yield file
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """A new folder that takes its name, and the place of one of that name, once it is complete."""
    temporary, former = (path.with_name(f"{path.name}.{ending}") for ending in ("tmp", "old"))
    remove(temporary)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        remove(former)
        if path.exists():
            os.replace(path, former)
        os.replace(temporary, path)
        remove(former)
    finally:
        remove(temporary)


def remove(path: Path) -> None:
    """Remove a file or a folder with all it holds, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


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
