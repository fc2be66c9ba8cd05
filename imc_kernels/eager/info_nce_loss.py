"""InfoNCE between the embeddings of two views (CPC, arXiv 1807.03748; NT-Xent of SimCLR, arXiv 2002.05709)."""

import torch
from torch import Tensor
from torch.nn.functional import normalize


def info_nce_loss(embeddings: Tensor, temperature: float, normalise: bool) -> Tensor:
    """Embeddings [2, B, D] -> mean over the N = 2B rows of log sum_{j != i} exp S_ij - S_i,pair(i)."""
    z = embeddings.flatten(0, 1)
    if normalise:
        z = normalize(z, dim=-1)
    n = len(z)
    s = z @ z.T / temperature
    log_sum = s.masked_fill(torch.eye(n, dtype=torch.bool, device=s.device), -torch.inf).logsumexp(dim=-1)
    rows = torch.arange(n, device=s.device)
    return (log_sum - s[rows, rows.roll(n // 2)]).mean()
