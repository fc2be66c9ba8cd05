"""Heads with more clusters than the answer, and how these are merged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from train.features.blobs import blobs
from train.features.conftest import on_features

from imc.errors import UserError
from imc.features.files import read_features
from imc.methods.heads import HeadsMethod
from imc.methods.merging import merged_clusters
from imc.runs.model import load_run
from imc.scores.evaluation import outputs
from imc.train import plan, train


@pytest.mark.parametrize("seed", range(5))
def test_clusters_whose_samples_have_neighbours_alike_are_merged(seed: int) -> None:
    """Groups of clusters between which few pairs lie are found, whatever the order of the clusters."""
    random = np.random.default_rng(seed)
    group = random.permutation([0, 0, 0, 1, 1, 2, 2, 2, 2, 3])
    pairs = random.uniform(1, 2, (10, 10)) * np.where(group[:, None] == group, 50, 1)
    found = merged_clusters(pairs, 4)
    assert len({(a, b) for a, b in zip(group, found, strict=True)}) == 4
    assert sorted(set(found.tolist())) == [0, 1, 2, 3]
    np.testing.assert_array_equal(merged_clusters(pairs.T, 4), found)
    np.testing.assert_array_equal(merged_clusters(7 * pairs, 4), found)


def test_nothing_is_merged_where_nothing_is_to_be() -> None:
    np.testing.assert_array_equal(merged_clusters(np.eye(4), 4), np.arange(4))


def test_clusters_without_samples_are_merged_too() -> None:
    pairs = np.diag([3.0, 0.0, 5.0, 0.0])
    found = merged_clusters(pairs, 2)
    assert found[0] != found[2]
    assert merged_clusters(np.zeros((4, 4)), 2).max() == 1


@pytest.mark.parametrize("method", ["crlc", "temi"])
def test_the_answer_has_as_many_as_were_asked_for(method: str, features: Path, tmp_path: Path) -> None:
    own = {"teacher_momentum": 0.9} if method == "temi" else {}
    result = train(on_features(features, tmp_path / "run", method=method, head_clusters=6, **own))
    assert result is not None
    assert result["clusters"] == 3
    assert result["acc"] > 0.95
    run = load_run(tmp_path / "run")
    model = run.model
    assert isinstance(model, HeadsMethod)
    rows = read_features([str(features)]).train.images
    found = outputs(run, rows)
    assert found.probabilities.shape == (len(rows), 3)
    assert int(found.by_head.max()) == 2
    with torch.no_grad():
        single = (model.heads(model.features(rows))[model.best_head] / model.head_temperature).softmax(dim=1)
    merged = torch.zeros(len(rows), 3).index_add_(1, model.merged[model.best_head], single)
    torch.testing.assert_close(found.probabilities.argmax(dim=1), merged.argmax(dim=1))
    assert len(set(blobs()[1])) == 3


def test_fewer_than_the_answer_are_refused(features: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--head-clusters must be at least 3, --clusters, got 2"):
        plan(on_features(features, tmp_path / "run", head_clusters=2))
