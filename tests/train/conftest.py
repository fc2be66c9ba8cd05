from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from imc.config import Config
from imc.data import Dataset, Images, load
from imc.data.statistics import channel_statistics
from imc.train import train


@pytest.fixture(autouse=True)
def same_threads() -> Iterator[None]:
    """A run sets torch's number of threads, which the bits of another test's run depend on."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def digits() -> Images:
    """The first 192 digits: three batches of the tiny configuration."""
    data = load("digits").train
    return dataclasses.replace(data, images=data.images[:192], labels=data.labels[:192])


@pytest.fixture(scope="session")
def split_digits(digits: Images) -> Dataset:
    """The same digits as a train split, the next 96 as a test split."""
    data = load("digits").train
    test = dataclasses.replace(data, images=data.images[192:288], labels=data.labels[192:288])
    mean, std = channel_statistics(digits.images)
    return Dataset("digits", digits, test, unlabeled=None, mean=mean, std=std, note="192 and 96 digits")


@pytest.fixture(scope="session")
def trained(digits: Images, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished tiny run; a test that writes into it works on a copy."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    train(tiny_config(folder), digits)
    return folder


@pytest.fixture
def run_copy(trained: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def tiny_config(out: Path) -> Config:
    """Two epochs of three updates on a network that trains in a fraction of a second."""
    return Config(
        out=str(out),
        backend="eager",
        epochs=2,
        batch_size=64,
        warmup_updates=2,
        freeze_updates=2,
        small_crops=2,
        widths=(4, 8),
        pool_after=1,
        feature_dim=16,
        projection_hidden=16,
        embedding_dim=8,
        prototypes=12,
        classifier_widths=(16,),
    )


def crlc_config(config: Config, **options: Any) -> Config:
    """The same for CRLC: two views, and none of what belongs to IMC-SwAV."""
    own = {"small_crops": 0, "head_hidden": 8, "prototypes": None, "classifier_widths": None}
    return dataclasses.replace(config, method="crlc", **{**own, **options})


@pytest.fixture
def tiny(tmp_path: Path) -> Config:
    return tiny_config(tmp_path / "run")
