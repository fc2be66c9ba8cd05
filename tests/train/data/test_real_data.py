"""The published files themselves, where they are at hand (:mod:`real_data`)."""

from __future__ import annotations

import numpy as np
import pytest
from real_data import root_of

from imc.data import Dataset, load
from imc.data.named import NAMED
from imc.data.statistics import channel_statistics

SETS = ("cifar10", "fashion-mnist")


@pytest.fixture(scope="module", params=SETS)
def real(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return load(request.param, root=root_of(request.param, tmp_path_factory))


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
