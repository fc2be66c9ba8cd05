from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from imc.config import Config
from imc.data import Images, load


@pytest.fixture(scope="session")
def digits() -> Images:
    """The first 192 digits: three batches of the tiny configuration."""
    data = load("digits").train
    return dataclasses.replace(data, images=data.images[:192], labels=data.labels[:192])


@pytest.fixture
def tiny(tmp_path: Path) -> Config:
    """Two epochs of three updates on a network that trains in a fraction of a second."""
    return Config(
        out=str(tmp_path / "run"),
        backend="eager",
        epochs=2,
        batch_size=64,
        warmup_updates=2,
        small_crops=2,
        widths=(4, 8),
        pool_after=1,
        feature_dim=16,
        projection_hidden=16,
        embedding_dim=8,
        prototypes=12,
        classifier_widths=(16,),
    )
