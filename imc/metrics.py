"""Agreement of clusters with classes. The number of clusters may differ from the number of classes.

Labels and clusters are whole numbers [M] of any integer dtype, bools, or floats that are whole, as arrays, lists or
tensors. A label below 0 is none, as in scikit-learn: that sample is left out of every score.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from torch import Tensor

SCORES = ("acc", "nmi", "ari")

Integers = NDArray[np.int64]


def confusion_matrix(labels: Any, clusters: Any, *, num_classes: int, num_clusters: int) -> Integers:
    """How many samples of each class each cluster holds: labels and clusters [M] -> [classes, clusters].

    Raises:
        ValueError: a label or a cluster is no whole number, or none of theirs.
    """
    labels, clusters = _pairs(labels, clusters)
    for name, values, count in (("labels", labels, num_classes), ("clusters", clusters, num_clusters)):
        if values.size and values.max() >= count:
            raise ValueError(f"{name} must be below {count}, got {values.max()}")
    matrix = np.zeros((num_classes, num_clusters), dtype=np.int64)
    np.add.at(matrix, (labels, clusters), 1)
    return matrix


def _pairs(labels: Any, clusters: Any) -> tuple[Integers, Integers]:
    """Labels and clusters of the samples that have a label."""
    labels, clusters = _whole("labels", labels), _whole("clusters", clusters)
    if len(labels) != len(clusters):
        raise ValueError(f"labels and clusters must be equally many, got {len(labels)} and {len(clusters)}")
    if clusters.size and clusters.min() < 0:
        raise ValueError(f"clusters must be 0 or more, got {clusters.min()}")
    return labels[labels >= 0], clusters[labels >= 0]


def _whole(name: str, values: Any) -> Integers:
    if isinstance(values, Tensor):  # numpy has no bfloat16
        values = (values.double() if values.is_floating_point() else values).detach().cpu().numpy()
    array = np.asarray(values)
    if array.ndim != 1:
        raise ValueError(f"{name} must be [M], got {list(array.shape)}")
    if array.size == 0:
        return np.zeros(0, np.int64)
    if array.dtype.kind not in "biuf" or (array.dtype.kind == "f" and not (array == np.rint(array)).all()):
        got = f"{array[array != np.rint(array)][0]}" if array.dtype.kind == "f" else f"{array.dtype}"
        raise ValueError(f"{name} must be whole numbers, got {got}")
    limits = np.iinfo(np.int64)
    if array.dtype.kind in "uf" and not (limits.min <= array.min() and array.max() <= limits.max // 2):
        raise ValueError(f"{name} must be below 2^62, got {array.max()}")
    return array.astype(np.int64)


def best_matching(matrix: Integers) -> list[tuple[int, int]]:
    """The one-to-one pairs (class, cluster) that hold the most samples together (Hungarian algorithm), by class.

    Args:
        matrix: [classes, clusters]. min(classes, clusters) pairs result; what is left over stays unmatched.
    """
    classes, clusters = linear_sum_assignment(matrix, maximize=True)
    return [(int(label), int(cluster)) for label, cluster in zip(classes, clusters, strict=True)]


def clustering_accuracy(labels: Any, clusters: Any) -> float:
    """The share of samples whose cluster is matched to their class by :func:`best_matching`; labels, clusters [M].

    Raises:
        ValueError: see :func:`confusion_matrix`; or no sample has a label.
    """
    return _accuracy(*_scored(labels, clusters))


def clustering_scores(labels: Any, clusters: Any) -> dict[str, float]:
    """``acc`` (Hungarian), ``nmi`` (arithmetic) and ``ari`` of clusters [M] against labels [M].

    Raises:
        ValueError: see :func:`clustering_accuracy`.
    """
    labels, clusters = _scored(labels, clusters)
    return {
        "acc": _accuracy(labels, clusters),
        "nmi": float(normalized_mutual_info_score(labels, clusters, average_method="arithmetic")),
        "ari": float(adjusted_rand_score(labels, clusters)),
    }


def _scored(labels: Any, clusters: Any) -> tuple[Integers, Integers]:
    labels, clusters = _pairs(labels, clusters)
    if not len(labels):
        raise ValueError("no sample has a label, so there is nothing to score")
    return labels, clusters


def _accuracy(labels: Integers, clusters: Integers) -> float:
    # By position among those that occur: labels may be any numbers, such as 5,900 and 10^9.
    classes, rows = np.unique(labels, return_inverse=True)
    groups, columns = np.unique(clusters, return_inverse=True)
    matrix = confusion_matrix(rows, columns, num_classes=len(classes), num_clusters=len(groups))
    return int(sum(matrix[pair] for pair in best_matching(matrix))) / len(labels)


def per_class_table(matrix: Integers, class_names: Sequence[str]) -> list[dict[str, Any]]:
    """How well the cluster matched to each class finds it.

    Args:
        matrix: [classes, clusters], of :func:`confusion_matrix`.
        class_names: one per row.

    Returns:
        One dict per class: ``class``, ``images``, ``cluster`` (by :func:`best_matching`), ``precision``, ``recall``.
        A class without a cluster has None, 0 and 0; a precision over no images is 0.
    """
    if len(class_names) != len(matrix):
        raise ValueError(f"class_names must be {len(matrix)}, the rows of matrix, got {len(class_names)}")
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
