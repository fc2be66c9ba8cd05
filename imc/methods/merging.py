"""Which clusters of a head are merged to as many as were asked for: those whose samples have neighbours alike.

The agglomerative information bottleneck (Slonim and Tishby, 1999): of the clusters of a sample and of its neighbour, as
two variables, the pair of clusters is merged that costs the least of their mutual information, again and again.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import xlogy

Numbers = NDArray[np.float64]


def merged_clusters(pairs: NDArray[np.floating], clusters: int) -> NDArray[np.int64]:
    """The cluster, of so many, that each one of a head becomes part of.

    Args:
        pairs: [K, K], how often a sample is in one cluster and its neighbour in another.
        clusters: at most K.

    Returns:
        int64 [K]; the clusters are numbered by their first members.
    """
    joint = pairs.astype(np.float64)
    joint = joint + joint.T
    rows = joint / max(float(joint.sum()), np.finfo(np.float64).tiny)
    members = [[number] for number in range(len(rows))]
    costs = np.stack([_costs(rows, number) for number in range(len(rows))])
    while len(rows) > clusters:
        first, second = sorted(map(int, np.unravel_index(costs.argmin(), costs.shape)))
        rows[first] += rows[second]
        members[first] += members.pop(second)
        rows = np.delete(rows, second, axis=0)
        costs = np.delete(np.delete(costs, second, axis=0), second, axis=1)
        costs[first] = costs[:, first] = _costs(rows, first)
    result = np.empty(len(pairs), np.int64)
    for number, merged in enumerate(members):
        result[merged] = number
    return result


def _costs(rows: Numbers, number: int) -> Numbers:
    """What merging one row with each other would cost of the mutual information [K]; with itself infinity."""
    costs = _information(rows) + _information(rows[number]) - _information(rows + rows[number])
    costs[number] = np.inf
    return costs


def _information(rows: Numbers) -> Numbers:
    """The part of each row [..., K] in the mutual information, but for what no merging of rows changes."""
    total = rows.sum(axis=-1)
    return np.asarray(xlogy(rows, rows).sum(axis=-1) - xlogy(total, total))
