"""How sure an answer may be, without labels: as sure as heads that were trained beside it agree with it."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from imc.metrics import best_matching, confusion_matrix

MOST = 100.0  # the temperature at most
HALVINGS = 40


def agreement_of_heads(winners: Tensor, best: int) -> float | None:
    """The mean share of samples that the other heads put where the best one does, up to the clusters' names.

    Args:
        winners: int64 [H, N], the cluster of each sample by each head.
        best: which head is compared with the others.

    Returns:
        None for a single head.
    """
    clusters = int(winners.max()) + 1
    own = winners[best].numpy()
    shares = []
    for number, head in enumerate(winners):
        if number != best:
            matrix = confusion_matrix(own, head.numpy(), num_classes=clusters, num_clusters=clusters)
            shares.append(sum(matrix[pair] for pair in best_matching(matrix)) / len(own))
    return float(np.mean(shares)) if shares else None


def answer_temperature(logits: Tensor, best: int, least: float) -> float:
    """What to divide the best head's logits by, so that its mean confidence is the agreement of the others with it.

    Heads that differ by their first weights alone go apart where the data leave the answer open. Against the samples'
    classes this was near the truth (``python -m benchmarks.features``); the logits themselves were too sure.

    Args:
        logits: [H, N, C] of all heads.
        best: the head that answers.
        least: the temperature at least.

    Returns:
        The temperature, ``least`` to :data:`MOST`; ``least`` for a single head.
    """
    target = agreement_of_heads(logits.argmax(dim=2).cpu(), best)
    answer = logits[best].double()
    low, high = least, MOST
    if target is None or _confidence(answer / low) <= target:
        return least
    for _ in range(HALVINGS):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if _confidence(answer / middle) > target else (low, middle)
    return low


def _confidence(logits: Tensor) -> float:
    return float(logits.softmax(dim=1).max(dim=1).values.mean())
