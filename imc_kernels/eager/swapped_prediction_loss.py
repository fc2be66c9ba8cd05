"""Swapped prediction over all pairs of an assignment view and another view (SwAV, arXiv 2006.09882, equation 2)."""

import torch
from torch import Tensor


def swapped_prediction_loss(scores: Tensor, assignments: Tensor, temperature: float) -> Tensor:
    """Scores [V, B, K] and assignments [A, B, K] -> mean cross-entropy over the A(V-1) pairs v != a and over B."""
    views, assigned = scores.shape[0], assignments.shape[0]
    log_p = torch.log_softmax(scores / temperature, dim=-1)
    cross_entropy = -torch.einsum("abk,vbk->avb", assignments, log_p).mean(dim=-1)  # [A, V]
    different = ~torch.eye(assigned, views, dtype=torch.bool, device=scores.device)
    return torch.where(different, cross_entropy, 0).sum() / (assigned * (views - 1))
