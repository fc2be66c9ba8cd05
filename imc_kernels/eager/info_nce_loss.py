"""InfoNCE between the embeddings of two views (CPC, arXiv 1807.03748; NT-Xent of SimCLR, arXiv 2002.05709)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import normalize

from imc_kernels.eager.distributed import rows_of

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


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
