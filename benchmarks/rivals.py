"""What the kernels are compared with, beside the eager specification.

``released_*`` restates the structure of the authors' code: a loop over pairs of views, each recomputing its softmaxes.
``batched_*`` is the best form we know in PyTorch: all pairs at once, the joint entropies as one matrix product. It is
written for speed, with every shortcut that is exact, and is what ``torch.compile`` is given.
"""

from __future__ import annotations

import torch
from torch import Tensor

EPSILON, ITERATIONS, TEMPERATURE, ENTROPY_WEIGHT, LOGIT_LIMIT = 0.05, 3, 0.1, 4.0, 5.0
SMOOTHING, HEAD_LOGIT_LIMIT = 0.01, 25.0  # CRLC


@torch.no_grad()
def released_sinkhorn(scores: Tensor) -> Tensor:
    """One view [B, K]: the whole matrix is rescaled at every half iteration."""
    q = torch.exp(scores / EPSILON).T
    if q.isinf().sum() > 0:  # the authors' check; on a GPU it waits for the device
        raise OverflowError("exp(scores / epsilon) overflows")
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


def _swapped(log_p: Tensor, q: Tensor) -> Tensor:
    """Cross-entropy of q [2, B, K] against log_p [V, B, K] of the other views; the sum over pairs is split."""
    views, batch, _ = log_p.shape
    same = (q * log_p[:2]).sum()
    return (same - (q.sum(dim=0) * log_p.sum(dim=0)).sum()) / (2 * (views - 1) * batch)


def _information(u: Tensor, logits: Tensor) -> Tensor:
    """H(Y|U) - b H(Y) over all pairs of views, with the guard, from probabilities u [V, B, K] and logits [V, B, C]."""
    (views, batch, prototypes), clusters = u.shape, logits.shape[-1]
    y = torch.softmax(logits, dim=-1)
    flat_y = y.transpose(0, 1).reshape(batch, views * clusters)
    joint = flat_y.T @ u.transpose(0, 1).reshape(batch, views * prototypes) / batch
    tiny = torch.finfo(joint.dtype).tiny
    p_y, p_u = y.mean(dim=1), u.mean(dim=1)
    h_joint = -(joint * joint.clamp_min(tiny).log()).sum() / views**2
    h_u = -(p_u * p_u.clamp_min(tiny).log()).sum() / views
    h_y = -(p_y * p_y.clamp_min(tiny).log()).sum() / views
    guard = 0.01 * torch.relu(logits.abs() - LOGIT_LIMIT).sum() / (views * batch)
    return h_joint - h_u - ENTROPY_WEIGHT * h_y + guard


def batched_swapped_prediction(scores: Tensor, assignments: Tensor) -> Tensor:
    """Scores [V, B, K] against assignments [2, B, K]."""
    return _swapped(torch.log_softmax(scores / TEMPERATURE, dim=-1), assignments)


def batched_mutual_information(logits: Tensor, scores: Tensor) -> Tensor:
    """Logits [V, B, C] and scores [V, B, K]."""
    return _information(torch.softmax(scores / TEMPERATURE, dim=-1), logits)


def batched_losses(scores: Tensor, logits: Tensor) -> Tensor:
    """All losses of one IMC-SwAV step; the log-probabilities are shared by both terms."""
    log_p = torch.log_softmax(scores / TEMPERATURE, dim=-1)
    return _swapped(log_p, batched_sinkhorn(scores[:2].detach())) + _information(log_p.detach().exp(), logits)


def batched_log_dot_product(logits: Tensor) -> Tensor:
    """CRLC's cluster loss [H] of logits [H, 2, B, C] with entropy term and guard, by the linear form."""
    p = torch.softmax(logits, dim=-1)
    q = (1 - SMOOTHING) * p + SMOOTHING / logits.shape[-1]
    rest = q.sum(dim=(1, 2), keepdim=True) - q
    contrast = (q * rest).sum(dim=-1).log().mean(dim=(1, 2)) - (q[:, 0] * q[:, 1]).sum(dim=-1).log().mean(dim=1)
    mean = p.mean(dim=2)
    h = -(mean * mean.clamp_min(torch.finfo(mean.dtype).tiny).log()).sum(dim=-1).mean(dim=1)
    guard = torch.relu(logits.abs() - HEAD_LOGIT_LIMIT).square().sum(dim=(1, 3)).mean(dim=1) * (0.01 / 4)
    return contrast - 2 * h + guard


def batched_info_nce(embeddings: Tensor) -> Tensor:
    """Embeddings [2, B, D]: the N x N form that contrastive codes use."""
    z = embeddings.flatten(0, 1)
    similarities = z @ z.T / TEMPERATURE
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    pairs = torch.arange(len(z), device=z.device).roll(len(z) // 2)
    return torch.nn.functional.cross_entropy(similarities.masked_fill(itself, -torch.inf).float(), pairs)
