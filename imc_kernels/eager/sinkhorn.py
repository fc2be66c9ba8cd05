"""Sinkhorn-Knopp in the log domain (SwAV, arXiv 2006.09882, section 3.1; IMC-SwAV, arXiv 2103.07368)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from imc_kernels.eager.distributed import logsumexp_over

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def sinkhorn(
    scores: Tensor,
    epsilon: float,
    iterations: int,
    marginals: Tensor | None = None,
    group: ProcessGroup | None = None,
) -> Tensor:
    """Scores [..., B, K] -> soft assignments [..., B, K]: prototypes scaled to their mass, then samples, in turn.

    The samples are scaled to 1 each, not to 1/B: the next scaling of the prototypes makes up for the difference.
    """
    log_mass = -math.log(scores.shape[-1]) if marginals is None else marginals.log()
    low = (
        scores.amin(dim=(-2, -1), keepdim=True) if scores.shape[-2] else scores.sum()
    )  # none: a process without samples
    log_q = scores / epsilon + 0 * low  # -inf gives NaN, not an excluded entry
    for _ in range(iterations):
        log_q = log_q - logsumexp_over(torch.logsumexp(log_q, dim=-2, keepdim=True), group) + log_mass
        log_q = log_q - torch.logsumexp(log_q, dim=-1, keepdim=True)
    return torch.exp(log_q)
