"""Mutual information between clusters and prototypes over all view pairs (IMC-SwAV, arXiv 2103.07368)."""

import torch
from torch import Tensor


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
    logits: Tensor, scores: Tensor, temperature: float, entropy_weight: float, logit_limit: float | None
) -> Tensor:
    """Logits [V, B, C] and scores [V, B, K] -> mean over the V x V view pairs of H(Y|U) - entropy_weight H(Y)."""
    batch = logits.shape[1]
    y = softmax(logits)
    u = softmax(scores / temperature)
    joint = torch.einsum("jbc,ibk->jick", y, u) / batch
    conditional = entropy(joint, dim=(2, 3)) - entropy(u.mean(dim=1), dim=(1,))  # [V, V]: H(Y, U) - H(U) = H(Y | U)
    marginal = entropy(y.mean(dim=1), dim=(1,))  # [V]
    loss = conditional.mean() - entropy_weight * marginal.mean()
    return loss if logit_limit is None else loss + logit_guard(logits, logit_limit)
