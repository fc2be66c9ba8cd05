"""Stored views as the views of a sample: ``--augmentation augmented``."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from train.features.blobs import blobs
from train.features.conftest import on_features

from imc import predict
from imc.config import Config
from imc.data.views import Batch
from imc.errors import StoppedError, UserError
from imc.features.files import read_features
from imc.features.views import RowViews
from imc.files.csv import read_rows
from imc.train import plan, train

VIEWS = 3


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Views [90, 3, D] of three groups, the first of each without noise, with their labels."""
    rows, labels = blobs()
    noise = np.random.default_rng(0).normal(scale=0.1 * rows.std(), size=(len(rows), VIEWS, rows.shape[1]))
    noise[:, 0] = 0
    path = tmp_path_factory.mktemp("augmented") / "views.npz"
    np.savez(path, features=(rows[:, None] + noise).astype(np.float32), labels=labels)
    return path


@pytest.fixture(scope="module")
def run(stored: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on them."""
    out = tmp_path_factory.mktemp("trained") / "run"
    result = train(on_features(stored, out, augmentation="augmented"))
    assert result is not None
    assert result["acc"] > 0.95
    return out


def test_a_sample_is_its_first_view(stored: Path) -> None:
    data = read_features([str(stored)], views=True).train
    assert data.views is not None
    assert data.views.shape[1] == VIEWS
    np.testing.assert_array_equal(data.images.numpy(), blobs()[0])


@pytest.mark.parametrize("large", [2, 3, 5])
def test_views_are_those_of_the_sample_and_differ(large: int) -> None:
    """As many as are stored are all of them; of more the order begins again."""
    samples, device = torch.arange(6), torch.device("cpu")
    images = torch.arange(6)[:, None, None] * 100.0 + torch.arange(VIEWS)[:, None]
    views = RowViews(None, views=(large, 0), noise=0.0, seed=3, device=device)
    batch = Batch(images, samples, samples, 0, len(samples))
    (drawn,) = views(batch, 7)
    assert drawn.shape == (large, 6, 1)
    assert torch.equal(drawn // 100, samples[:, None].expand(large, 6, 1).float())
    for sample in drawn.squeeze(2).T:
        assert len(set(sample[:VIEWS].tolist())) == min(large, VIEWS)
    other = views(batch, 8)[0]
    assert not torch.equal(other, drawn)
    half = Batch(images, samples[3:], samples[3:], 3, len(samples))  # a rank's part of the batch
    assert torch.equal(views(half, 7)[0], drawn[:, 3:])


def test_rows_and_views_are_predicted(run: Path, stored: Path, tmp_path: Path) -> None:
    rows = blobs()[0]
    np.save(tmp_path / "rows.npy", rows)
    predict.main([str(run), str(tmp_path / "rows.npy"), "--out", str(tmp_path / "rows.csv")])
    predict.main([str(run), str(stored), "--out", str(tmp_path / "views.csv")])
    clusters = [[row["cluster"] for row in read_rows(tmp_path / name)] for name in ("rows.csv", "views.csv")]
    assert clusters[0] == clusters[1]


def test_a_resumed_run_needs_the_same_views(stored: Path, tmp_path: Path) -> None:
    config = on_features(stored, tmp_path / "run", augmentation="augmented", checkpoint_every=1)
    with pytest.raises(StoppedError):
        train(dataclasses.replace(config, stop_after_epoch=1), report=False)
    content = dict(np.load(stored))
    content["features"][:, 1] += 1
    np.savez(tmp_path / "others.npz", **content)
    with pytest.raises(UserError, match="not all the same"):
        train(Config(features=(str(tmp_path / "others.npz"),), out=str(tmp_path / "run"), resume=True))
    assert train(Config(out=str(tmp_path / "run"), resume=True), report=False) is not None


def test_what_holds_one_view_of_each_is_refused(features: Path, stored: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"takes stored views \[rows, views, columns\].*blobs has one"):
        plan(on_features(features, tmp_path / "run", augmentation="augmented"))
    with pytest.raises(UserError, match=r"imc embed --views stored are taken with --augmentation augmented"):
        plan(on_features(stored, tmp_path / "run"))
    with pytest.raises(UserError, match=r"--views is for an --encoder"):
        plan(on_features(stored, tmp_path / "run", augmentation="augmented", views=3))


def test_views_lie_side_by_side(stored: Path, tmp_path: Path) -> None:
    values = np.load(stored)["features"]
    for name, part in (("a", values), ("b", values[:, :, :2]), ("c", values[:, :2])):
        np.save(tmp_path / f"{name}.npy", part)
    sources = [str(tmp_path / f"{name}.npy") for name in "abc"]
    both = read_features(sources[:2], views=True).train
    assert both.views is not None
    np.testing.assert_array_equal(both.views.numpy(), np.concatenate([values, values[:, :, :2]], axis=2))
    assert both.columns == (values.shape[2], 2)
    with pytest.raises(UserError, match="views belong together"):
        read_features(sources[1:], views=True)


def test_views_that_are_not_finite_are_named(tmp_path: Path) -> None:
    values = np.zeros((6, 2, 4), np.float32)
    values[4, 1, 2] = np.nan
    np.save(tmp_path / "views.npy", values)
    with pytest.raises(UserError, match="row 4 "):
        read_features([str(tmp_path / "views.npy")], views=True)


def test_an_encoder_makes_the_views(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of pictures, in the one command; views of colours that are jittered stay nearer to their own than to others'."""
    monkeypatch.setenv("IMC_CACHE", str(tmp_path / "cache"))
    own = {"epochs": 30, "warmup_updates": 5, "sub_heads": 4, "checkpoint_every": 0, "lr": 0.02, "backend": "eager"}
    encoder = {"encoder": "module:train.features.pooling.build", "augmentation": "augmented", "views": 3}
    config = Config(data=str(photos), out=str(tmp_path / "run"), labels_from_folders=True, **encoder, **own)
    result = train(config)
    assert result is not None
    assert result["acc"] > 0.6
