"""What the kernels are compared with, beside the eager specification.

``released_*`` restates the structure of the authors' code: a loop over pairs of views, each recomputing its softmaxes.
``batched_*`` is the best form we know in PyTorch: all pairs at once, the joint entropies as one matrix product. It is
written for speed, with every shortcut that is exact, and is what ``torch.compile`` is given.
"""

from __future__ import annotations

import torch
from torch import Tensor

EPSILON, ITERATIONS, TEMPERATURE, ENTROPY_WEIGHT, LOGIT_LIMIT = 0.05, 3, 0.1, 4.0, 5.0


@torch.no_grad()
def released_sinkhorn(scores: Tensor) -> Tensor:
    """One view [B, K]: the whole matrix is rescaled at every half iteration."""
    q = torch.exp(scores / EPSILON).T
    prototypes, batch = q.shape
    q /= q.sum()
    for _ in range(ITERATIONS):
        q /= q.sum(dim=1, keepdim=True)
        q /= prototypes
        q /= q.sum(dim=0, keepdim=True)
        q /= batch
    return (q * batch).T


def released_pair(logits: Tensor, scores: Tensor) -> Tensor:
    """H(Y|U) - b H(Y) of one pair of views."""
    y, u = torch.softmax(logits, dim=1), torch.softmax(scores / TEMPERATURE, dim=1)
    joint = y.T @ u / len(y)
    p_y, p_u = y.mean(dim=0), u.mean(dim=0)
    conditional = -(joint * (joint / p_u).log()).sum()
    return conditional + ENTROPY_WEIGHT * (p_y * p_y.log()).sum()


def released_losses(scores: Tensor, logits: Tensor) -> Tensor:
    """All losses of one IMC-SwAV step: scores [V, B, K], logits [V, B, C]."""
    views = range(len(scores))
    swapped = scores.new_zeros(())
    for a in (0, 1):
        q = released_sinkhorn(scores[a].detach())
        for v in views:
            if v != a:
                swapped = swapped - (q * torch.log_softmax(scores[v] / TEMPERATURE, dim=1)).sum(dim=1).mean()
    constant = scores.detach()
    information = torch.stack([released_pair(logits[j], constant[i]) for j in views for i in views]).mean()
    guard = 0.01 * torch.stack([torch.relu(y.abs() - LOGIT_LIMIT).sum(dim=1).mean() for y in logits]).mean()
    return swapped / (2 * (len(scores) - 1)) + information + guard


def batched_sinkhorn(scores: Tensor) -> Tensor:
    """All views [V, B, K]: scaling vectors only, each half iteration one matrix-vector product."""
    e = torch.exp((scores - scores.amax(dim=(-2, -1), keepdim=True)) / EPSILON)
    batch, prototypes = e.shape[-2:]
    u = torch.ones_like(e[..., :1])
    v = torch.empty_like(e[..., :1, :])
    for _ in range(ITERATIONS):
        v = 1 / (prototypes * (u.transpose(-1, -2) @ e))
        u = 1 / (batch * (e @ v.transpose(-1, -2)))
    return e * (u * batch) * v


def batched_losses(scores: Tensor, logits: Tensor) -> Tensor:
    """All losses of one IMC-SwAV step. Log-probabilities are shared by both terms; the sum over pairs is split."""
    views, batch, prototypes = scores.shape
    clusters = logits.shape[-1]
    q = batched_sinkhorn(scores[:2].detach())
    log_p = torch.log_softmax(scores / TEMPERATURE, dim=-1)
    same = (q * log_p[:2]).sum()
    swapped = (same - (q.sum(dim=0) * log_p.sum(dim=0)).sum()) / (2 * (views - 1) * batch)

    u, y = log_p.detach().exp(), torch.softmax(logits, dim=-1)
    flat_y = y.transpose(0, 1).reshape(batch, views * clusters)
    joint = flat_y.T @ u.transpose(0, 1).reshape(batch, views * prototypes) / batch
    tiny = torch.finfo(joint.dtype).tiny
    p_y, p_u = y.mean(dim=1), u.mean(dim=1)
    h_joint = -(joint * joint.clamp_min(tiny).log()).sum() / views**2
    h_u = -(p_u * p_u.clamp_min(tiny).log()).sum() / views
    h_y = -(p_y * p_y.clamp_min(tiny).log()).sum() / views
    guard = 0.01 * torch.relu(logits.abs() - LOGIT_LIMIT).sum() / (views * batch)
    return swapped + h_joint - h_u - ENTROPY_WEIGHT * h_y + guard
