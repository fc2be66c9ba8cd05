"""How sure an answer may be, without labels: as sure as heads that were trained beside it agree with it."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from imc.metrics import best_matching, confusion_matrix

MOST = 100.0  # the temperature at most
HALVINGS = 40


def agreement(own: Tensor, others: Tensor) -> float | None:
    """The mean share of samples that the other heads put where the answer does, up to the clusters' names.

    Args:
        own: int64 [N], the cluster of each sample by the answer.
        others: int64 [H, N], the same by each other head.

    Returns:
        None where there is no other head.
    """
    if not len(others):
        return None
    clusters = 1 + int(max(own.max(), others.max()))
    shares = []
    for head in others:
        matrix = confusion_matrix(own.numpy(), head.numpy(), num_classes=clusters, num_clusters=clusters)
        shares.append(sum(matrix[pair] for pair in best_matching(matrix)) / len(own))
    return float(np.mean(shares))


def answer_temperature(answer: Tensor, others: Tensor, least: float) -> float:
    """What to divide the answer's logits by, so that its mean confidence is the agreement of the others with it.

    Heads that differ by their first weights alone go apart where the data leave the answer open. Against the samples'
    classes this was near the truth (``python -m benchmarks.features``); the logits themselves were too sure.

    Args:
        answer: logits [N, C].
        others: int64 [H, N], the cluster of each sample by each other head.
        least: the temperature at least.

    Returns:
        The temperature, ``least`` to :data:`MOST`; ``least`` where there is no other head.
    """
    target = agreement(answer.argmax(dim=1), others)
    answer = answer.double()
    low, high = least, MOST
    if target is None or _confidence(answer / low) <= target:
        return least
    for _ in range(HALVINGS):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if _confidence(answer / middle) > target else (low, middle)
    return low


def _confidence(logits: Tensor) -> float:
    return float(logits.softmax(dim=1).max(dim=1).values.mean())
