"""Batch normalisation of views that lie one after the other: torch's own, view by view."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from imc_kernels.eager.distributed import sum_over

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


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
    group: ProcessGroup | None = None,
) -> Tensor:
    """Input and residual [V*B, C, ...], weight, bias and running statistics [C] -> [V*B, C, ...], whose running
    statistics are brought up to date."""
    if group is not None:
        output = over_group(input, weight, bias, running_mean, running_var, views, momenta, eps, group)
    else:
        parts = [
            functional.batch_norm(part, running_mean, running_var, weight, bias, True, momentum, eps)
            for part, momentum in zip(input.chunk(views), momenta, strict=True)
        ]
        output = torch.cat(parts) if views > 1 else parts[0]
    if residual is not None:
        output = output + residual
    return functional.relu(output, inplace=True) if relu else output


def over_group(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    views: int,
    momenta: Sequence[float],
    eps: float,
    group: ProcessGroup,
) -> Tensor:
    """By the statistics of a view's rows in all processes, of which one may have none."""
    x = input.unflatten(0, (views, len(input) // views))  # [V, B, C, ...]
    channels, spatial = x.shape[2], [1] * (x.dim() - 3)
    rest = [dim for dim in range(1, x.dim()) if dim != 2]
    own = x.numel() // (views * channels)

    def sum_over_rows(values: Tensor) -> Tensor:
        """[V, B, C, ...] -> the sums [V, C] of all processes, and behind them how many they are of."""
        return sum_over(functional.pad(values.sum(dim=rest).flatten(), (0, 1), value=own), group)

    # Two passes: the mean of squares minus the square of the mean would cancel.
    sums = sum_over_rows(x)
    count = sums[-1].detach()
    mean = (sums[:-1] / count).view(views, channels)
    centred = x - mean.view(views, 1, channels, *spatial)
    variance = (sum_over_rows(centred.square())[:-1] / count).view(views, channels)
    normalised = centred * (variance + eps).rsqrt().view(views, 1, channels, *spatial)
    if weight is not None:
        normalised = normalised * weight.view(channels, *spatial)
    if bias is not None:
        normalised = normalised + bias.view(channels, *spatial)
    if running_mean is not None and running_var is not None:
        update_running_statistics(running_mean, running_var, mean.detach(), variance.detach(), count, momenta)
    return normalised.flatten(0, 1)


@torch.no_grad()
def update_running_statistics(
    running_mean: Tensor,
    running_var: Tensor,
    mean: Tensor,
    variance: Tensor,
    count: int | Tensor,
    momenta: Sequence[float],
) -> None:
    """Move running statistics [C] towards mean and biased variance [V, C] of ``count`` values each, view by view."""
    for running, values in ((running_mean, mean), (running_var, variance * (count / (count - 1)))):
        for value, momentum in zip(values, momenta, strict=True):
            running.lerp_(value.to(running.dtype), momentum)
