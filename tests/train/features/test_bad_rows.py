"""Rows that are hard to compute with are computed with, and files that are no rows are refused by what they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from train.features.blobs import blobs
from train.features.conftest import on_features

from imc.data import Images
from imc.errors import UserError
from imc.features.files import read_features
from imc.models.standardise import Standardise, directions
from imc.scores.evaluation import kmeans_on_features
from imc.train import train

VALUES = torch.from_numpy(blobs()[0])


@pytest.mark.parametrize("power", [-110, -60, -37, -30, 0, 30, 41, 60, 115])
def test_a_direction_is_that_of_any_length(power: int) -> None:
    rows = VALUES * 2.0**power
    assert torch.equal(directions(rows), torch.nn.functional.normalize(VALUES, dim=1))
    found, expected = (kmeans_on_features(x, 3, 0, VALUES.shape[1:], "length") for x in (rows, VALUES))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("largest", [2.0**127, 2.0**41, 1.0, 2.0**-37, 2.0**-126])
def test_a_direction_has_length_one(largest: float) -> None:
    for row in (torch.full((1, 4096), largest), torch.tensor([[largest, largest / 3, 0.0]])):
        assert directions(row).norm().item() == pytest.approx(1, abs=1e-5)
    assert not directions(torch.zeros(1, 3)).any()


@pytest.mark.parametrize(
    ("rows", "scaling"),
    [(torch.ones(20, 4), "length"), (torch.arange(1.0, 21)[:, None], "length"), (torch.zeros(9, 2), "none")],
)
def test_rows_that_are_all_the_same_are_told(
    rows: torch.Tensor, scaling: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = Standardise([rows.shape[1]], scaling)
    encoder.fit(rows)
    assert encoder.is_flat
    config = replace(on_features(Path("rows"), tmp_path / "run"), clusters=2, scaling=scaling, epochs=1)
    train(replace(config, features=None), Images("rows", rows, None, ()), report=False)
    assert f"all rows are the same by --scaling {scaling}" in capsys.readouterr().err


def written(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (written(b"hello"), "it is no file that numpy wrote"),
        (written(b""), "it is damaged or cut short"),
        (lambda path: path.mkdir(), "is a folder; accepted are .npy and .npz files, and images as --data"),
        (lambda path: np.save(path, np.array([[1, {}]], dtype=object)), "it holds Python objects"),
        (lambda path: np.save(path, np.array([[1.0], [np.nan]])), r"row 1 \(from 0\) holds NaN"),
        (lambda path: np.save(path, np.full((3, 1), np.inf, np.float16)), r"rows 0, 1, 2 \(from 0\) hold NaN"),
        (lambda path: np.save(path, np.full((2, 1), 1e300)), r"rows 0, 1 \(from 0\) hold NaN, infinite or too large"),
    ],
)
def test_a_file_is_refused_by_what_it_is(make: Callable[[Path], object], said: str, tmp_path: Path) -> None:
    whole, bad = tmp_path / "whole.npy", tmp_path / "bad.npy"
    rows: NDArray[np.float32] = np.ones((3, 2), np.float32)
    np.save(whole, rows)
    make(bad)
    with pytest.raises(UserError, match=said) as error:
        read_features([str(bad)])
    assert "\n" not in str(error.value)
    assert str(bad) in str(error.value)


def test_of_several_files_the_one_with_the_row_is_named(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones((2, 2)))
    np.save(tmp_path / "b.npy", np.array([[1.0], [np.nan]]))
    with pytest.raises(UserError, match=r"b.npy': row 1 \(from 0\) holds NaN"):
        read_features([str(tmp_path / "a.npy"), str(tmp_path / "b.npy")])
