"""Data sets by name or by path."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from imc.data.dataset import Dataset, Images
from imc.errors import UserError

__all__ = ["Dataset", "Images", "load"]


def _digits() -> Dataset:
    from imc.data.digits import load_digits

    return load_digits()


DATASETS: dict[str, Callable[[], Dataset]] = {"digits": _digits}


def load(
    source: str,
    *,
    root: Path | None = None,
    image_size: int | None = None,
    labels_from_folders: bool = False,
    download: bool = False,
) -> Dataset:
    """The data set of this name.

    Raises:
        UserError: there is none.
    """
    if source not in DATASETS:
        raise UserError(f"--data {source!r} is not there; accepted are {', '.join(DATASETS)}")
    return DATASETS[source]()
