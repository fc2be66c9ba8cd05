"""InfoNCE between the embeddings of two views (CPC, arXiv 1807.03748; NT-Xent of SimCLR, arXiv 2002.05709)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils.checkpoint import checkpoint

from imc_kernels.eager.distributed import rows_of

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


BLOCK = 1024  # rows of S


def info_nce_loss(embeddings: Tensor, temperature: float, normalise: bool, group: ProcessGroup | None = None) -> Tensor:
    """Embeddings [2, B, D] -> mean over the N = 2B rows of log sum_{j != i} exp S_ij - S_i,pair(i)."""
    z = rows_of(embeddings, group, dim=1).flatten(0, 1)
    if normalise:
        z = normalize(z, dim=-1)
    n = len(z)
    s = z @ z.T / temperature
    log_sum = s.masked_fill(torch.eye(n, dtype=torch.bool, device=s.device), -torch.inf).logsumexp(dim=-1)
    rows = torch.arange(n, device=s.device)
    return (log_sum - s[rows, rows.roll(n // 2)]).mean()


def labelled_info_nce_loss(embeddings: Tensor, labels: Tensor, temperature: float, others: bool) -> Tensor:
    """Embeddings [V, B, D] and labels [V B] -> mean over rows i of log sum_j exp S_ij - the mean S_ij of equal labels.

    Over all j but i, or with ``others`` over those of other views (SupCon, arXiv 2004.11362; CLIP, arXiv 2103.00020).
    """
    z = embeddings.flatten(0, 1)
    rows = torch.arange(len(z), device=z.device)
    apart = rows // embeddings.shape[1] if others else rows  # of two rows that differ in it

    def losses(first: int) -> Tensor:
        own = slice(first, first + BLOCK)
        s, admitted = z[own] @ z.T / temperature, apart[own, None] != apart
        positive = admitted & (labels[own, None] == labels)
        log_sum = s.masked_fill(~admitted, -torch.inf).logsumexp(dim=-1)
        return log_sum - s.masked_fill(~positive, 0).sum(dim=-1) / positive.sum(dim=-1)

    return torch.cat([_again(losses, first, len(z)) for first in range(0, len(z), BLOCK)]).mean()


def bank_info_nce_loss(embeddings: Tensor, bank: Tensor, temperature: float) -> Tensor:
    """Embeddings [2, B, D], queries and keys, and a bank [M, D] -> mean of log sum exp over the key and the bank, minus
    the key's (MoCo, arXiv 1911.05722, equation 1)."""
    queries, keys = embeddings

    def losses(first: int) -> Tensor:
        own = slice(first, first + BLOCK)
        positive = (queries[own] * keys[own]).sum(dim=-1, keepdim=True) / temperature
        return torch.cat([positive, queries[own] @ bank.T / temperature], dim=-1).logsumexp(dim=-1) - positive[:, 0]

    return torch.cat([_again(losses, first, len(queries)) for first in range(0, len(queries), BLOCK)]).mean()


def _again(losses: Callable[[int], Tensor], first: int, rows: int) -> Tensor:
    """Those of a block of rows, kept for a backward or, of one of many blocks, computed again in it."""
    return losses(first) if rows <= BLOCK else checkpoint(losses, first, use_reentrant=False)
