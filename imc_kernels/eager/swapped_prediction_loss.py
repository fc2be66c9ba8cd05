"""Swapped prediction over all pairs of an assignment view and another view (SwAV, arXiv 2006.09882, equation 2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from imc_kernels.eager.distributed import samples_over, sum_over

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def swapped_prediction_loss(
    scores: Tensor,
    assignments: Tensor,
    temperature: float,
    weights: Tensor | None = None,
    all_pairs: bool = False,
    group: ProcessGroup | None = None,
) -> Tensor:
    """Scores [V, B, K] and assignments [A, B, K] -> mean cross-entropy over pairs (a, v), v != a or all, and over B.

    Each is multiplied with the weight [V, B] of its prediction.
    """
    views, assigned = scores.shape[0], assignments.shape[0]
    log_p = torch.log_softmax(scores / temperature, dim=-1)
    cross_entropy = -torch.einsum("abk,vbk->avb", assignments, log_p)
    if weights is not None:
        cross_entropy = weights * cross_entropy
    cross_entropy = sum_over(cross_entropy.sum(dim=-1), group) / samples_over(scores, group, dim=1)  # [A, V]
    if all_pairs:
        return cross_entropy.mean()
    different = ~torch.eye(assigned, views, dtype=torch.bool, device=scores.device)
    return torch.where(different, cross_entropy, 0).sum() / (assigned * (views - 1))
