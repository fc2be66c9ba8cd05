"""The published files themselves, where they are at hand.

IMC_TEST_DATA, or else ``shared/data`` beside the repository, holds the sets as IMC_DATA would, or an ``unpack.py`` that
restores them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from imc.data import Dataset, load
from imc.data.named import NAMED
from imc.data.statistics import channel_statistics

REPOSITORY = Path(__file__).resolve().parents[3]
ROOT = Path(os.environ.get("IMC_TEST_DATA") or REPOSITORY.parent / "shared" / "data")
SETS = ("cifar10", "fashion-mnist")


@pytest.fixture(scope="module", params=SETS)
def real(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    name, root = request.param, ROOT
    if NAMED[name].find(root) is None:
        unpack = ROOT / "unpack.py"
        if not unpack.is_file():
            pytest.skip(f"neither {name} nor unpack.py is in {ROOT}; IMC_TEST_DATA names another folder")
        root = tmp_path_factory.mktemp("real")
        subprocess.run([sys.executable, unpack, root, name], check=True, timeout=300, stdout=subprocess.DEVNULL)
    return load(name, root=root)


def test_a_real_set_is_whole(real: Dataset) -> None:
    assert real.test is not None
    assert (len(real.train.images), len(real.test.images)) == NAMED[real.name].counts
    for split in (real.train, real.test):
        assert split.labels is not None
        assert (np.bincount(split.labels) == len(split.labels) // 10).all()
    assert "published" not in real.note


def test_the_published_mean_and_deviation_are_the_measured_ones(real: Dataset) -> None:
    mean, std = channel_statistics(real.train.images)
    assert real.mean == pytest.approx(mean, abs=1e-3)
    if real.name == "cifar10":  # its published deviation is the mean of the images' own deviations
        images = real.train.images.flatten(1, 2).double() / 255
        std = images.std(1).mean(0).tolist()
    assert real.std == pytest.approx(std, abs=1e-3)
