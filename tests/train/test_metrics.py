from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score, mutual_info_score, normalized_mutual_info_score

from imc.metrics import best_matching, clustering_accuracy, clustering_scores, confusion_matrix, per_class_table


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


FORMS = {
    **{str(np.dtype(kind)): np.dtype(kind).type for kind in ("i1", "i2", "i4", "i8", "u1", "u4", "u8", "f4", "f8")},
    "list": list,
    "tensor": torch.tensor,
    "tensor of bfloat16": lambda values: torch.tensor(values, dtype=torch.bfloat16),
    "tensor of bytes": lambda values: torch.tensor(values, dtype=torch.uint8),
    "strided": lambda values: np.repeat(values, 2)[::2],
    "fixed": lambda values: np.frombuffer(np.array(values).tobytes(), np.int64),
}


@pytest.mark.parametrize("form", FORMS)
def test_whole_numbers_of_any_kind_score_alike(form: str) -> None:
    random = np.random.default_rng(2)
    labels, clusters = random.integers(3, size=50).tolist(), random.integers(4, size=50).tolist()
    expected = {
        "acc": brute_force(np.array(labels), np.array(clusters)),
        "nmi": normalized_mutual_info_score(labels, clusters),
        "ari": adjusted_rand_score(labels, clusters),
    }
    scores = clustering_scores(FORMS[form](labels), FORMS[form](clusters))
    assert scores == pytest.approx(expected, abs=1e-12)
    bools = np.array(labels) > 0
    assert clustering_scores(bools, FORMS[form](clusters)) == clustering_scores(bools.astype(int), clusters)


@pytest.mark.parametrize("numbers", [(5, 900, 10**15), (0, 1, 2), (255, 254, 7)])
def test_the_numbers_of_the_labels_do_not_matter(numbers: tuple[int, ...]) -> None:
    random = np.random.default_rng(3)
    labels, clusters = random.integers(3, size=50), random.integers(5, size=50)
    assert clustering_scores(np.array(numbers)[labels], clusters) == pytest.approx(clustering_scores(labels, clusters))


@pytest.mark.parametrize("none", [-1, -7])
@pytest.mark.parametrize("where", [[0], [49], range(0, 50, 3), range(49)])
def test_samples_without_a_label_are_left_out_of_every_score(none: int, where: list[int]) -> None:
    random = np.random.default_rng(4)
    labels, clusters = random.integers(3, size=50), random.integers(4, size=50)
    known = np.ones(50, bool)
    known[list(where)] = False
    masked = np.where(known, labels, none)
    assert clustering_scores(masked, clusters) == clustering_scores(labels[known], clusters[known])
    matrix = confusion_matrix(masked, clusters, num_classes=3, num_clusters=4)
    assert matrix.sum() == known.sum()
    assert (matrix == confusion_matrix(labels[known], clusters[known], num_classes=3, num_clusters=4)).all()


@pytest.mark.parametrize(
    ("labels", "clusters", "says"),
    [
        ([0, 1], [0, -1], "clusters must be 0 or more, got -1"),
        ([0, 1], [0], "labels and clusters must be equally many, got 2 and 1"),
        ([], [], "no sample has a label, so there is nothing to score"),
        ([-1, -1], [0, 1], "no sample has a label, so there is nothing to score"),
        ([0.5, 1], [0, 1], r"labels must be whole numbers, got 0\.5"),
        ([0.0, np.nan], [0, 1], "labels must be whole numbers, got nan"),
        ([0, 1], [0, np.inf], r"clusters must be|labels must be below"),
        (["cat", "dog"], [0, 1], "labels must be whole numbers, got <U3"),
        ([None, 1], [0, 1], "labels must be whole numbers, got object"),
        ([[0], [1]], [0, 1], r"labels must be \[M\], got \[2, 1\]"),
        (0, [0, 1], r"labels must be \[M\], got \[\]"),
        ([0, 2**64 - 1], [0, 1], "labels must be"),
        (torch.tensor([0 + 1j, 1]), [0, 1], "labels must be whole numbers, got complex64"),
    ],
)
def test_what_is_no_clustering_is_refused_in_a_sentence(labels: object, clusters: object, says: str) -> None:
    for score in (clustering_accuracy, clustering_scores):
        with pytest.raises(ValueError, match=says):
            score(labels, clusters)


def test_what_lies_outside_of_a_matrix_is_refused() -> None:
    with pytest.raises(ValueError, match="labels must be below 2, got 2"):
        confusion_matrix([0, 2], [0, 1], num_classes=2, num_clusters=2)
    with pytest.raises(ValueError, match="clusters must be below 1, got 1"):
        confusion_matrix([0, 1], [0, 1], num_classes=2, num_clusters=1)
    with pytest.raises(ValueError, match="class_names must be 3, the rows of matrix, got 2"):
        per_class_table(np.eye(3, dtype=np.int64), ["a", "b"])
