"""The files that the images of a data set are of, where they lie now."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from imc.data import ARRAYS, NAMES
from imc.data.folders import Skipped, listing
from imc.errors import UserError
from imc.files.paths import user_path
from imc.text import printable


def original_files(source: str, names: Sequence[str] | None, root: Path | None = None) -> list[Path] | None:
    """The file of each image, by the names that the data set gives them; whether they are there is not asked.

    Args:
        source: the data set, by name or by path; of features the file, beside which relative names are looked for.
        names: of :class:`imc.data.Images`, in which bytes that are not UTF-8 are escaped; None: they are no files.
        root: where published sets lie; None: the usual place.

    Returns:
        None where the images are no files.
    """
    folder = None if names is None else _folder(source, root)
    if names is None or folder is None:
        return None
    paths = [folder / name for name in names]
    if not any("\\" in name for name in names):
        return paths
    try:
        found = {printable(name): folder / name for name, _ in listing(folder, (".",), Skipped())}
    except UserError:
        return paths
    return [found.get(name, path) for name, path in zip(names, paths, strict=True)]


def _folder(source: str, root: Path | None) -> Path | None:
    if source not in NAMES:
        path = user_path(source).absolute()
        return path.parent if path.suffix.lower() in ARRAYS and not path.is_dir() else path
    from imc.data.named import NAMED, data_root

    place = NAMED[source].find(data_root() if root is None else root) if source in NAMED else None
    return place.absolute() if place is not None and place.is_dir() else None
