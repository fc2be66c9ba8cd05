"""Images put into a folder of a folder each, which is new or empty before and, where that fails, after."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from itertools import chain, count
from pathlib import Path

from imc.data.ignored import mark_output
from imc.errors import UserError
from imc.text import folder_name

NO_GROUP = "no group"  # the folder of images without a name


def require_new(folder: Path, flag: str, apart: Sequence[Path]) -> None:
    """A folder that images can be put into.

    Args:
        folder: which.
        flag: that names it.
        apart: folders of images, outside of which it has to lie.

    Raises:
        UserError: it holds something, is none, or lies in one of the others.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{flag} must be a new or an empty folder, and {folder} is not")
    for images in apart:
        if folder.resolve().is_relative_to(images.resolve()):
            raise UserError(f"{flag} must lie outside of {images}, whose images it would add to")


@contextlib.contextmanager
def filling(folder: Path) -> Iterator[None]:
    """Inside, the folder is there, marked as one of this package's; what fails leaves it empty."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        mark_output(folder)
        yield
    except BaseException:
        for path in folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        raise


def put(source: Path, target: Path, *, link: bool = False) -> None:
    """Copy a file, or link to it, beside one of the same name under the first that is free."""
    target.parent.mkdir(parents=True, exist_ok=True)
    names = chain([target], (target.with_name(f"{target.stem}-{number}{target.suffix}") for number in count(2)))
    free = next(name for name in names if not os.path.lexists(name))
    if link:
        free.symlink_to(source.absolute())
    else:
        shutil.copy2(source, free)


def folders_of(names: Sequence[str | None]) -> dict[str | None, str]:
    """The name of a folder for each of the names, and for None; no two differ only in upper and lower case."""
    folders: dict[str | None, str] = {None: NO_GROUP}
    taken = {NO_GROUP.casefold()}
    for name in filter(None, names):
        if name in folders:
            continue
        base = folder_name(name)
        free = next(each for each in chain([base], (f"{base}-{n}" for n in count(2))) if each.casefold() not in taken)
        taken.add(free.casefold())
        folders[name] = free
    return folders
