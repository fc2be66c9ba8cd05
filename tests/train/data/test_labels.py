"""Labels from a file: of every kind of run, and one sentence for what is none."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from imc.data import Dataset, Images
from imc.data.labels import with_labels
from imc.errors import UserError


def rows(count: int, **own: Any) -> Dataset:
    images = Images("rows", torch.zeros(count, 4), None, ())
    return dataclasses.replace(Dataset("rows", images, None, None, (), (), ""), **own)


@pytest.mark.parametrize(
    ("values", "labels", "names"),
    [
        (np.array([3, 3, 7]), [0, 0, 1], ("3", "7")),
        (np.array([[3], [3], [7]], np.uint8), [0, 0, 1], ("3", "7")),
        (np.array([-1, 5, 5]), [-1, 0, 0], ("5",)),
        (np.array(["b", "a", "b"]), [1, 0, 1], ("a", "b")),
        ("dog\ncat\ndog\n", [1, 0, 1], ("cat", "dog")),
    ],
)
def test_labels_are_numbers_or_texts(values: Any, labels: list[int], names: tuple[str, ...], tmp_path: Path) -> None:
    path = tmp_path / ("y.txt" if isinstance(values, str) else "y.npy")
    path.write_text(values) if isinstance(values, str) else np.save(path, values)
    before = rows(3, test=Images("rows", torch.zeros(2, 4), torch.zeros(2, dtype=torch.long), ("x",)))
    found = with_labels(before, str(path))
    assert found.train.labels is not None
    assert (found.train.labels.tolist(), found.train.class_names) == (labels, names)
    assert found.test is not None
    assert found.test.labels is None


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (np.zeros(4, int), r"y.npy has 4 entries, and rows has 3 rows"),
        (np.zeros(1, int), r"y.npy has 1 entry, and rows has 3 rows"),
        (np.zeros(3), r"labels must be whole numbers or texts \[M\], got float64 \[3\]"),
        (np.zeros((3, 2), int), r"labels must be whole numbers or texts \[M\], got int64 \[3, 2\]"),
        (np.zeros(3, complex), r"got complex128 \[3\]"),
        (np.zeros(3, bool), r"got bool \[3\]"),
        (np.array([{}, 1, 2]), "it holds Python objects"),
        (np.zeros(0, int), r"got int64 \[0\]"),
        (b"no array", "--labels cannot use"),
        (None, "is not there; accepted are an .npy and a text with one label a line"),
    ],
)
def test_what_are_no_labels_is_refused_in_one_sentence(values: Any, said: str, tmp_path: Path) -> None:
    path = tmp_path / "y.npy"
    if isinstance(values, bytes):
        path.write_bytes(values)
    elif values is not None:
        np.save(path, values)
    with pytest.raises(UserError, match=said) as error:
        with_labels(rows(3), str(path))
    assert "\n" not in str(error.value)
