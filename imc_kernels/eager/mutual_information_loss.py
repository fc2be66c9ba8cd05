"""Mutual information between clusters and prototypes over all view pairs (IMC-SwAV, arXiv 2103.07368)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from imc_kernels.eager.distributed import mean_over

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def entropy(p: Tensor, dim: tuple[int, ...]) -> Tensor:
    """-sum p log p in nats, with 0 log 0 = 0 and a finite gradient there."""
    return -(p * p.clamp_min(torch.finfo(p.dtype).tiny).log()).sum(dim)


def softmax(x: Tensor) -> Tensor:
    """Over the last dimension. A row with -inf is NaN, not one with an excluded entry."""
    return torch.softmax(x + 0 * x.amin(dim=-1, keepdim=True), dim=-1)


def logit_guard(logits: Tensor, limit: float) -> Tensor:
    """0.01 times the sum over clusters of the excess of |logit| over the limit, mean over views and samples."""
    return 0.01 * torch.relu(logits.abs() - limit).sum(dim=-1).mean()


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
    batch = logits.shape[1]
    y = softmax(logits)
    u = softmax(scores / temperature)
    joint = mean_over(torch.einsum("jbc,ibk->jick", y, u) / batch, group)
    if symmetric:
        joint = (joint + joint.transpose(2, 3)) / 2
        h_u = h_y = entropy(joint.sum(dim=3), dim=(2,))  # [V, V]: both marginals are the same
    else:
        h_u = entropy(mean_over(u.mean(dim=1), group), dim=(1,))  # [V], of the second view
        h_y = entropy(mean_over(y.mean(dim=1), group), dim=(1,))  # [V], of the first
    conditional = entropy(joint, dim=(2, 3)) - h_u  # [V, V]: H(Y, U) - H(U) = H(Y | U)
    loss = conditional.mean() - entropy_weight * h_y.mean()
    return loss if logit_limit is None else loss + mean_over(logit_guard(logits, logit_limit), group)
