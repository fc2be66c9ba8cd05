from __future__ import annotations

import pytest
import torch
from torch import Tensor

from imc.data import Images
from imc.scores.probes import knn_accuracy, linear_probe_accuracy


def blobs(count: int, seed: int, spread: float = 0.3) -> tuple[Tensor, Tensor]:
    """Features around the corners of a simplex, one per class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 4
    return torch.eye(4)[labels] + spread * torch.randn(count, 4, generator=generator), labels


@pytest.mark.parametrize("accuracy", [knn_accuracy, linear_probe_accuracy])
def test_separate_classes_are_read_and_shuffled_labels_are_not(accuracy) -> None:  # type: ignore[no-untyped-def]
    features, labels = blobs(200, seed=0, spread=0.1)
    test_features, test_labels = blobs(80, seed=1, spread=0.1)
    shuffled = labels[torch.randperm(200, generator=torch.Generator().manual_seed(2))]
    assert accuracy(features, labels, test_features, test_labels) == 1
    assert accuracy(features, labels) == 1
    assert accuracy(features, shuffled, test_features, test_labels) < 0.6


def test_knn_is_the_vote_written_out() -> None:
    features, labels = blobs(50, seed=3, spread=1.0)
    test_features, test_labels = blobs(30, seed=4, spread=1.0)
    right = 0
    for query, label in zip(test_features, test_labels, strict=True):
        similarity = torch.cosine_similarity(features, query[None])
        votes = [0.0] * 4
        for index in similarity.argsort(descending=True)[:7]:
            votes[labels[index]] += float((similarity[index].double() / 0.07).exp())
        right += votes.index(max(votes)) == label
    assert 0 < right < 30
    assert knn_accuracy(features, labels, test_features, test_labels, neighbours=7) == right / 30


def test_knn_among_the_voters_leaves_each_one_out() -> None:
    features, labels = blobs(60, seed=5, spread=2.0)
    assert knn_accuracy(features, labels, features, labels, neighbours=1) == 1
    assert knn_accuracy(features, labels, neighbours=1) < 0.8


def test_knn_does_not_depend_on_the_scale(digits: Images) -> None:
    features, labels = digits.images.flatten(1).float(), digits.labels
    assert knn_accuracy(features, labels) == knn_accuracy(features * 1000, labels) > 0.8


def test_where_nothing_can_be_fitted_there_is_no_number() -> None:
    features = torch.randn(9, 4)
    assert linear_probe_accuracy(features, torch.zeros(9, dtype=torch.int64)) is None
    assert linear_probe_accuracy(features, torch.tensor([0] * 8 + [1])) is None


@pytest.mark.parametrize("accuracy", [knn_accuracy, linear_probe_accuracy])
def test_images_without_a_label_are_left_out(accuracy) -> None:  # type: ignore[no-untyped-def]
    features, labels = blobs(80, seed=0, spread=0.8)
    test_features, test_labels = blobs(40, seed=1, spread=0.8)
    masked, test_masked = labels.clone(), test_labels.clone()
    masked[::5] = test_masked[::3] = -1
    known, test_known = masked >= 0, test_masked >= 0
    rest = (features[known], labels[known])
    assert accuracy(features, masked) == accuracy(*rest)
    expected = accuracy(*rest, test_features[test_known], test_labels[test_known])
    assert accuracy(features, masked, test_features, test_masked) == expected
    assert accuracy(features, masked, test_features, torch.full_like(test_labels, -1)) is None
    assert accuracy(features, torch.full_like(labels, -1)) is None
