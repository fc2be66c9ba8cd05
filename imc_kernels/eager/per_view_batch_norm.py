"""Batch normalisation of views that lie one after the other: torch's own, view by view."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional


def per_view_batch_norm(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    views: int,
    momenta: Sequence[float],
    eps: float,
    relu: bool,
    residual: Tensor | None = None,
) -> Tensor:
    """Input and residual [V*B, C, ...], weight, bias and running statistics [C] -> [V*B, C, ...], whose running
    statistics are brought up to date."""
    parts = [
        functional.batch_norm(part, running_mean, running_var, weight, bias, True, momentum, eps)
        for part, momentum in zip(input.chunk(views), momenta, strict=True)
    ]
    output = torch.cat(parts) if views > 1 else parts[0]
    if residual is not None:
        output = output + residual
    return functional.relu(output, inplace=True) if relu else output
