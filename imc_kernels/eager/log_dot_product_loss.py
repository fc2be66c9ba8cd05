"""Contrastive loss between the cluster predictions of two views (CRLC, arXiv 2107.11635)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from imc_kernels.eager.distributed import rows_of, samples_over, sum_over
from imc_kernels.eager.mutual_information_loss import entropy, softmax

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def safe_log(x: Tensor) -> Tensor:
    """The logarithm, from the smallest normal number up: finite for 0, with a gradient of 0 there."""
    return x.clamp_min(torch.finfo(x.dtype).tiny).log()


def dot(q: Tensor) -> Tensor:
    """q_i . q_j of all pairs of rows: [..., N, C] -> [..., N, N]."""
    return q @ q.transpose(-1, -2)


def negative_l2(q: Tensor) -> Tensor:
    """-|q_i - q_j|^2."""
    return -(q[..., :, None, :] - q[..., None, :, :]).square().sum(dim=-1)


def negative_jsd(q: Tensor) -> Tensor:
    """Minus the Jensen-Shannon divergence: (H(q_i) + H(q_j)) / 2 - H((q_i + q_j) / 2)."""
    h = entropy(q, dim=(-1,))
    middle = entropy((q[..., :, None, :] + q[..., None, :, :]) / 2, dim=(-1,))
    return (h[..., :, None] + h[..., None, :]) / 2 - middle


CRITICS: dict[str, Callable[[Tensor], Tensor]] = {
    "dot": dot,
    "negative-l2": negative_l2,
    "negative-jsd": negative_jsd,
}


def contrast(q: Tensor, critic: str) -> Tensor:
    """Rows [H, N, C], of which i and i +- N/2 are a pair -> mean_i of log sum_{j != i} exp F_ij - F_i,pair(i), [H]."""
    n = q.shape[-2]
    itself = torch.eye(n, dtype=torch.bool, device=q.device)
    rows = torch.arange(n, device=q.device)
    pairs = (..., rows, rows.roll(n // 2))
    if critic == "log-dot":  # F = log(q_i . q_j): there is no exponential to take
        f = dot(q)
        log_sum, positive = safe_log(f.masked_fill(itself, 0).sum(dim=-1)), safe_log(f[pairs])
    else:
        f = CRITICS[critic](q)
        log_sum, positive = f.masked_fill(itself, -torch.inf).logsumexp(dim=-1), f[pairs]
    return (log_sum - positive).mean(dim=-1)


def log_dot_product_loss(
    logits: Tensor,
    smoothing: float,
    entropy_weight: float,
    logit_limit: float | None,
    critic: str = "log-dot",
    group: ProcessGroup | None = None,
) -> Tensor:
    """Logits [H, 2, B, C] -> [H]: contrast of the smoothed predictions - entropy_weight times that of their mean."""
    clusters, batch = logits.shape[-1], samples_over(logits, group, dim=2)
    p = softmax(logits)
    q = rows_of((1 - smoothing) * p + smoothing / clusters, group, dim=2)
    h = entropy(sum_over(p.sum(dim=2), group) / batch, dim=(2,)).mean(dim=1)
    loss = contrast(q.flatten(1, 2), critic) - entropy_weight * h
    if logit_limit is None:
        return loss
    excess = torch.relu(logits.abs() - logit_limit)
    return loss + 0.01 / 2 * sum_over((excess.square() / 2).sum(dim=(1, 2, 3)), group) / batch
