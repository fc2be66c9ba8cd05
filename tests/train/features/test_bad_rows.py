"""Rows that are hard to compute with are computed with, and files that are no rows are refused by what they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from train.features.blobs import blobs
from train.features.conftest import on_features

from imc import EmbeddingClusterer
from imc.data import Images
from imc.errors import UserError
from imc.features.files import read_features
from imc.models.standardise import Standardise, directions
from imc.pages.results import table
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


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("a.csv", "numpy.loadtxt"),
        ("a.TSV", "numpy.loadtxt"),
        ("a.parquet", "pandas"),
        ("a.h5ad", "anndata"),
        ("a.pt", "torch.load"),
        ("a.safetensors", "safetensors"),
        ("a.mat", "scipy.io.loadmat"),
    ],
)
def test_other_programs_files_are_refused_with_what_reads_them(name: str, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"1,2\n")
    with pytest.raises(UserError, match=f"accepted are .npy and .npz files of rows; {said} reads it, and numpy.save"):
        read_features([str(tmp_path / name)])


def estimator() -> EmbeddingClusterer:
    options = {"sub_heads": 2, "warmup_updates": 1}
    return EmbeddingClusterer(3, neighbours=3, epochs=2, options=options, random_state=0, device="cpu")


ROWS = VALUES.numpy()


@pytest.mark.filterwarnings("ignore:.*few:sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize(
    "given",
    [
        np.asfortranarray(ROWS),
        ROWS[::-1][::-1],
        ROWS.astype(">f4"),
        ROWS.astype(np.longdouble),
        VALUES,
        VALUES.double().requires_grad_(),
        np.ma.masked_array(ROWS, np.zeros_like(ROWS)),
        ROWS.tolist(),
    ],
    ids=["fortran", "strided", "big-endian", "long double", "tensor", "with gradient", "nothing masked", "lists"],
)
def test_rows_in_any_form_are_the_same(given: Any) -> None:
    expected = estimator().fit_predict(ROWS)
    np.testing.assert_array_equal(estimator().fit(given).predict(given), expected)


@pytest.mark.filterwarnings("ignore:.*few:sklearn.exceptions.ConvergenceWarning")
def test_half_precision_of_torch_is_taken() -> None:
    assert estimator().fit(VALUES.bfloat16()).labels_.shape == (len(ROWS),)


def spoiled(value: float, *rows: int) -> NDArray[np.float64]:
    result = ROWS.astype(np.float64)
    result[list(rows), 1] = value
    return result


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (spoiled(np.nan, 4), r"X cannot be used: row 4 \(from 0\) holds NaN, infinite or too large numbers"),
        (spoiled(np.inf, 4, 7), r"X cannot be used: rows 4, 7 \(from 0\) hold NaN, infinite or too large numbers"),
        (spoiled(1e300, 2), r"X cannot be used: row 2 \(from 0\) holds NaN"),
        (np.ma.masked_array(ROWS, ROWS.mean() < ROWS), "X has masked values"),
        ("features.npy", r"X must be an array of rows, got the path 'features.npy'; numpy.load reads"),
        (Path("features.npy"), "X must be an array of rows, got the path"),
    ],
)
def test_rows_that_cannot_be_used_are_named(given: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said) as error:
        estimator().fit(given)
    assert "\n" not in str(error.value)


def test_where_kmeans_was_better_it_is_said(tmp_path: Path) -> None:
    scores = dict.fromkeys(("nmi", "ari", "kmeans_features_nmi", "kmeans_features_ari"), 0.5)
    rest = {"method": "crlc", "train_seconds": 1.0, "backend": "cpu", "seed": 0, "threads": 1}
    known = {**scores, **rest, "clusters": 3, "clusters_used": 3, "acc": 0.79}
    sentence = "k-means on the features was better here, by 10.0 points of ACC"
    assert sentence in table({**known, "kmeans_features_acc": 0.89}, tmp_path)
    assert "was better here" not in table({**known, "kmeans_features_acc": 0.79}, tmp_path)
