"""Paths as users give them: where they lead, and what may be meant where they lead nowhere."""

from __future__ import annotations

import contextlib
import difflib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlparse

from imc.errors import UserError


def user_path(text: str | Path) -> Path:
    """The path, with ~ as the home folder; of a user that there is none of, as it is written."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        return Path(text)


def meant(text: str) -> str | None:
    """A path that is there and may be meant by one that is not: spelt as elsewhere, or nearly."""
    stripped = text.strip().strip("\"'")
    url = unquote(urlparse(stripped).path) if stripped.startswith("file:") else stripped
    try:
        for spelling in (stripped, url, stripped.replace("\\", "/"), stripped.replace("\\ ", " ")):
            if spelling not in ("", text) and user_path(spelling).exists():
                return spelling
        path = user_path(text)
        siblings = {name.casefold(): name for name in os.listdir(path.parent)}
    except (OSError, ValueError):  # no such parent, too long, or with a null character
        return None
    close = difflib.get_close_matches(path.name.casefold(), siblings, n=1, cutoff=0.75)
    return str(path.with_name(siblings[close[0]])) if close else None


def file_of(option: str, source: str, accepted: str, else_of_folders: str = "") -> Path:
    """The file that an option names.

    Args:
        option: as it is written, ``--labels``.
        source: what it was given.
        accepted: what files it takes.
        else_of_folders: what else of folders is to be said.

    Raises:
        UserError: there is no such file.
    """
    path = user_path(source)
    if path.is_dir():
        raise UserError(f"{option} {source!r} is a folder; accepted are {accepted}{else_of_folders}")
    if not path.is_file():
        close = meant(source)
        hint = f"; did you mean {close}?" if close else ""
        raise UserError(f"{option} {source!r} is not there; accepted are {accepted}{hint}")
    return path


@contextlib.contextmanager
def new_folder(folder: Path, *, taken: bool = True) -> Iterator[None]:
    """Create a folder and those above it that are missing; where what is done with it fails, remove those made here.

    Args:
        folder: which.
        taken: it may be there already.

    Raises:
        OSError: it cannot be created.
    """
    made: list[Path] = []
    try:
        for path in reversed([path for path in (folder, *folder.parents) if not path.exists()]):
            with contextlib.suppress(FileExistsError):  # another process was first
                path.mkdir()
                made.append(path)
        if not folder.is_dir() or not (taken or folder in made):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(folder))
        yield
    except BaseException:
        for path in reversed(made):
            with contextlib.suppress(OSError):  # it holds more than was put there
                path.rmdir()
        raise
