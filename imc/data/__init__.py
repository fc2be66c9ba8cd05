"""Data sets by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from imc.errors import UserError


@dataclass(frozen=True)
class Images:
    """A data set in memory. Training never reads the labels; only the report at the end does.

    Attributes:
        name: the name it was loaded by.
        images: uint8 [M, H, W, C].
        labels: int64 [M], or None where there are none.
        class_names: the name of each label value.
    """

    name: str
    images: Tensor
    labels: Tensor | None
    class_names: tuple[str, ...]


def _digits() -> Images:
    from imc.data.digits import load_digits

    return load_digits()


DATASETS: dict[str, Callable[[], Images]] = {"digits": _digits}


def load(name: str) -> Images:
    """The data set of this name.

    Raises:
        UserError: there is none.
    """
    if name not in DATASETS:
        raise UserError(f"--data {name!r} is not there; accepted are {', '.join(DATASETS)}")
    return DATASETS[name]()
