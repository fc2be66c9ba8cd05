from __future__ import annotations

import itertools

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score, mutual_info_score

from imc.metrics import best_matching, clustering_accuracy, clustering_scores, confusion_matrix


def brute_force(labels: np.ndarray, clusters: np.ndarray) -> float:
    """The best accuracy over all one-to-one mappings of clusters to classes, by trying each."""
    size = int(max(labels.max(), clusters.max())) + 1
    return max(
        float(np.mean(np.asarray(mapping)[clusters] == labels)) for mapping in itertools.permutations(range(size))
    )


@pytest.mark.parametrize(("classes", "clusters"), [(4, 4), (3, 5), (5, 3), (1, 4), (4, 1)])
def test_accuracy_against_brute_force(classes: int, clusters: int) -> None:
    random = np.random.default_rng(classes * 10 + clusters)
    for _ in range(10):
        labels, assigned = random.integers(classes, size=40), random.integers(clusters, size=40)
        assert clustering_accuracy(labels, assigned) == pytest.approx(brute_force(labels, assigned))


def test_renaming_the_clusters_changes_nothing() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(6, size=100)
    renamed = random.permutation(6)[labels]
    assert clustering_scores(labels, renamed) == pytest.approx({"acc": 1.0, "nmi": 1.0, "ari": 1.0})


def test_nmi_is_arithmetic_and_ari_is_adjusted() -> None:
    random = np.random.default_rng(1)
    labels, clusters = random.integers(3, size=60), random.integers(5, size=60)

    def entropy(values: np.ndarray) -> float:
        shares = np.bincount(values) / len(values)
        return float(-(shares[shares > 0] * np.log(shares[shares > 0])).sum())

    expected = mutual_info_score(labels, clusters) / ((entropy(labels) + entropy(clusters)) / 2)
    scores = clustering_scores(labels, clusters)
    assert scores["nmi"] == pytest.approx(expected)
    assert scores["ari"] == pytest.approx(adjusted_rand_score(labels, clusters))


def test_confusion_matrix_and_matching() -> None:
    matrix = confusion_matrix(np.array([0, 0, 1, 1, 1]), np.array([2, 2, 0, 0, 2]), num_classes=2, num_clusters=4)
    assert matrix.tolist() == [[0, 0, 2, 0], [2, 0, 1, 0]]
    assert best_matching(matrix) == [(0, 2), (1, 0)]
