"""Agreement of clusters with classes. The number of clusters may differ from the number of classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

SCORES = ("acc", "nmi", "ari")

Integers = NDArray[np.int64]


def confusion_matrix(labels: Integers, clusters: Integers, *, num_classes: int, num_clusters: int) -> Integers:
    """How many samples of each class each cluster holds: labels and clusters [M] -> [classes, clusters]."""
    matrix = np.zeros((num_classes, num_clusters), dtype=np.int64)
    np.add.at(matrix, (labels, clusters), 1)
    return matrix


def best_matching(matrix: Integers) -> list[tuple[int, int]]:
    """The one-to-one pairs (class, cluster) that hold the most samples together (Hungarian algorithm), by class.

    Args:
        matrix: [classes, clusters]. min(classes, clusters) pairs result; what is left over stays unmatched.
    """
    classes, clusters = linear_sum_assignment(matrix, maximize=True)
    return [(int(label), int(cluster)) for label, cluster in zip(classes, clusters, strict=True)]


def clustering_accuracy(labels: Integers, clusters: Integers) -> float:
    """The share of samples whose cluster is matched to their class by :func:`best_matching`; labels, clusters [M]."""
    matrix = confusion_matrix(labels, clusters, num_classes=int(labels.max()) + 1, num_clusters=int(clusters.max()) + 1)
    return int(sum(matrix[pair] for pair in best_matching(matrix))) / len(labels)


def clustering_scores(labels: Integers, clusters: Integers) -> dict[str, float]:
    """``acc`` (Hungarian), ``nmi`` (arithmetic) and ``ari`` of clusters [M] against labels [M]."""
    return {
        "acc": clustering_accuracy(labels, clusters),
        "nmi": float(normalized_mutual_info_score(labels, clusters, average_method="arithmetic")),
        "ari": float(adjusted_rand_score(labels, clusters)),
    }


def per_class_table(matrix: Integers, class_names: Sequence[str]) -> list[dict[str, Any]]:
    """How well the cluster matched to each class finds it.

    Args:
        matrix: [classes, clusters], of :func:`confusion_matrix`.
        class_names: one per row.

    Returns:
        One dict per class: ``class``, ``images``, ``cluster`` (by :func:`best_matching`), ``precision``, ``recall``.
        A class without a cluster has None, 0 and 0; a precision over no images is 0.
    """
    clusters = dict(best_matching(matrix))
    rows = []
    for label, name in enumerate(class_names):
        cluster, images = clusters.get(label), int(matrix[label].sum())
        found = 0 if cluster is None else int(matrix[label, cluster])
        members = 0 if cluster is None else int(matrix[:, cluster].sum())
        precision, recall = found / max(members, 1), found / max(images, 1)
        rows.append({"class": name, "images": images, "cluster": cluster, "precision": precision, "recall": recall})
    return rows


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (n - 1 in the denominator; 0 for one value)."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
