"""Labels in a file of their own, for samples that come without."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imc.data.arrays import class_numbers, reason_of
from imc.data.dataset import Dataset
from imc.errors import UserError
from imc.files.paths import file_of, user_path
from imc.text import counted

LABELS = "labels"


def read_lines(source: str) -> list[str]:
    """The lines of a text, but for empty ones at its end.

    Raises:
        UserError: it cannot be read.
    """
    try:
        text = user_path(source).read_text(encoding="utf-8", errors="backslashreplace")
        return text.rstrip("\r\n").splitlines()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{source} cannot be read: {reason}") from None


def read_labels(source: str) -> NDArray[Any]:
    """What an .npy, or a text with one label a line, holds; see :func:`imc.data.arrays.class_numbers`.

    Raises:
        UserError: it is not there, or cannot be read.
    """
    path = file_of("--labels", source, "an .npy and a text with one label a line")
    if path.suffix.lower() != ".npy":
        return np.array(read_lines(source), np.str_)
    try:
        return np.load(path, allow_pickle=False)  # type: ignore[no-any-return]
    except Exception as error:  # NumPy's reader raises anything
        raise UserError(f"--labels cannot use {source!r}: {reason_of(error, LABELS)}") from None


def with_labels(data: Dataset, source: str) -> Dataset:
    """A data set whose samples have the labels of a file, instead of those that they had.

    Raises:
        UserError: they are no labels, or not one for each sample that is clustered.
    """
    classes, numbers = class_numbers(user_path(source), [(LABELS, read_labels(source))], "--labels")
    labels, count = numbers[LABELS], len(data.train.images)
    if len(labels) != count:
        samples = counted(count, f"{data.train.sample}{{s}}")
        raise UserError(f"--labels {source} has {counted(len(labels), 'entr{y|ies}')}, and {data.name} has {samples}")
    found = replace(data.train, labels=labels if classes else None, class_names=classes)
    return replace(
        data, train=found, test=None if data.test is None else replace(data.test, labels=None, class_names=())
    )
