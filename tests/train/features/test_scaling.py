"""The scaling that rows get by their numbers, where none is named."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn import datasets
from train.features.conftest import on_features

from imc import EmbeddingClusterer
from imc.features.scaling import FEW_COLUMNS, fitting_scaling
from imc.train import plan

RANDOM = np.random.default_rng(0)
# Of a network: after a ReLU, with signs, with one column of large numbers, quantised to bytes with a sign.
NETWORK = RANDOM.gamma(0.5, size=(200, 320))
SIGNED = RANDOM.normal(size=(200, FEW_COLUMNS))
KNOWN = {
    "digits": (lambda: datasets.load_digits().data, "none"),
    "iris": (lambda: datasets.load_iris().data, "none"),
    "wine": (lambda: datasets.load_wine().data, "columns"),
    "breast cancer": (lambda: datasets.load_breast_cancer().data, "columns"),
    "pixels": (lambda: RANDOM.integers(0, 256, (50, 784)).astype(np.uint8), "none"),
    "counts": (lambda: RANDOM.poisson(0.3, (50, 2000)), "none"),
    "after a ReLU": (lambda: np.maximum(SIGNED, 0), "length"),
    "network": (lambda: NETWORK, "length"),
    "signed": (lambda: SIGNED.astype(np.float16), "length"),
    "a large column": (lambda: SIGNED * np.where(np.arange(FEW_COLUMNS) == 7, 100, 1), "length"),
    "quantised": (lambda: np.round(SIGNED * 40).astype(np.int8), "length"),
    "few columns": (lambda: SIGNED[:, :32], "none"),
    "constant": (lambda: np.ones((20, 3)), "none"),
    "one row": (lambda: SIGNED[:1], "length"),
}


@pytest.mark.parametrize("name", KNOWN)
def test_the_scaling_fits_the_numbers(name: str) -> None:
    make: Callable[[], NDArray[Any]]
    make, expected = KNOWN[name]
    rows = torch.from_numpy(make())
    assert fitting_scaling(rows) == expected
    assert fitting_scaling(rows.flip(0)) == expected
    assert fitting_scaling(torch.cat([rows, rows])) == expected
    if rows.is_floating_point():  # the unit of all columns together says nothing
        assert fitting_scaling(rows * 0.37) == expected


def test_what_is_named_wins(tmp_path: Path) -> None:
    wine = datasets.load_wine()
    np.savez(tmp_path / "wine.npz", features=wine.data, labels=wine.target)
    config = on_features(tmp_path / "wine.npz", tmp_path / "run", epochs=None)
    found = plan(config)
    assert (found.scaling, found.epochs) == ("columns", 600)  # of two updates each
    named = plan(dataclasses.replace(config, scaling="length"))
    assert (named.scaling, named.epochs) == ("length", 150)


def test_an_estimator_finds_it_too() -> None:
    rows = datasets.load_wine().data
    options = {"sub_heads": 2, "warmup_updates": 1}
    clusterer = EmbeddingClusterer(3, epochs=1, random_state=0, options=options).fit(rows)
    assert clusterer.config_.scaling == "columns"
    assert clusterer.set_params(scaling="none").fit(rows).config_.scaling == "none"
