"""Mutual information between clusters and prototypes over all view pairs (IMC-SwAV, arXiv 2103.07368)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from imc_kernels.eager.distributed import samples_over, sum_over

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def entropy(p: Tensor, dim: tuple[int, ...]) -> Tensor:
    """-sum p log p in nats, with 0 log 0 = 0 and a finite gradient there."""
    return -(p * p.clamp_min(torch.finfo(p.dtype).tiny).log()).sum(dim)


def softmax(x: Tensor) -> Tensor:
    """Over the last dimension. A row with -inf is NaN, not one with an excluded entry."""
    return torch.softmax(x + 0 * x.amin(dim=-1, keepdim=True), dim=-1)


def mutual_information_loss(
    logits: Tensor,
    scores: Tensor,
    temperature: float,
    entropy_weight: float,
    logit_limit: float | None,
    symmetric: bool = False,
    group: ProcessGroup | None = None,
) -> Tensor:
    """Logits [V, B, C] and scores [V, B, K] -> mean over the V x V view pairs of H(Y|U) - entropy_weight H(Y)."""
    views, batch = logits.shape[0], samples_over(logits, group, dim=1)
    y = softmax(logits)
    u = softmax(scores / temperature)
    joint = sum_over(torch.einsum("jbc,ibk->jick", y, u), group) / batch
    if symmetric:
        joint = (joint + joint.transpose(2, 3)) / 2
        h_u = h_y = entropy(joint.sum(dim=3), dim=(2,))  # [V, V]: both marginals are the same
    else:
        h_u = entropy(sum_over(u.sum(dim=1), group) / batch, dim=(1,))  # [V], of the second view
        h_y = entropy(sum_over(y.sum(dim=1), group) / batch, dim=(1,))  # [V], of the first
    conditional = entropy(joint, dim=(2, 3)) - h_u  # [V, V]: H(Y, U) - H(U) = H(Y | U)
    loss = conditional.mean() - entropy_weight * h_y.mean()
    if logit_limit is None:
        return loss
    excess = torch.relu(logits.abs() - logit_limit).sum()
    return loss + 0.01 * sum_over(excess, group) / (views * batch)
