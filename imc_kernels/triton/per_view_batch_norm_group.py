"""Batch normalisation whose statistics are those of the rows of all processes of a group, in the notation and by the
launches of per_view_batch_norm.py. Between the launches the processes exchange, for each channel of a view, mean and
squared differences in float64, which are added up as those of groups of rows are, and in the backward the sums of g,
g (x - m) and x - m. Each may have another number of rows, or none; the number of all stays on the device.

Launches: two more forward, three more backward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from imc_kernels.triton.launch import block_of, launch
from imc_kernels.triton.per_view_batch_norm import MOST_GROUPS, Running, Sweep, memory_like
from imc_kernels.triton.per_view_batch_norm_kernels import (
    group_moments_kernel,
    own_affine_kernel,
    process_moments_kernel,
)

CHANNELS = 128  # of a program that adds up what the processes found


def group_forward(
    inputs: Sequence[Any],
    views: int,
    eps: float,
    relu: bool,
    running: Running | None,
    gather: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The output; mean and variance [V, C] of a view, and the number of its rows in all processes, float64 []."""
    sweep = Sweep(inputs, views, eps, relu)
    rows, channels = sweep.spread[0], sweep.channels
    mean, variance = sweep.of_views(), sweep.of_views()
    size = 2 * views * channels + 1
    own = mean.new_empty(size, dtype=torch.float64) if rows else mean.new_zeros(size, dtype=torch.float64)
    if rows:
        block = sweep.constants["block"]
        launch(
            process_moments_kernel,
            (views, -(-channels // block)),
            *(sweep.x, sweep.moments(), own, *sweep.spread, views),
            channels=channels,
            block_rows=sweep.constants["block_rows"],
            block=block,
            most_groups=MOST_GROUPS,
        )
    everybody = gather(own)
    count = everybody.new_empty(())
    block = block_of(channels, CHANNELS)
    launch(
        group_moments_kernel,
        (-(-channels // block),),
        *(everybody, mean, variance, count, *(running or (None, None, 0.0)), len(everybody), views),
        channels=channels,
        block=block,
    )
    output = sweep.normalise(None, mean, variance, None) if rows else memory_like(sweep.maps)
    return output, mean, variance, count


def group_backward(
    inputs: Sequence[Any],
    saved: Sequence[Tensor],
    grad_output: Tensor,
    views: int,
    eps: float,
    relu: bool,
    needs: Sequence[bool],
    add_up: Callable[[Tensor], Tensor],
) -> tuple[Tensor | None, ...]:
    """Of the input and the residual, and this process's part of the weight's and the bias's."""
    sweep = Sweep(inputs, views, eps, relu)
    mean, variance, count = saved
    rows, groups, _ = sweep.spread
    shape, passed = (views, 3, sweep.channels), grad_output
    own = mean.new_empty(shape) if rows else mean.new_zeros(shape)
    if rows:
        partials, passed = sweep.gradient_sums(mean, variance, grad_output)
        torch.sum(partials[: views * groups * 3 * sweep.channels].view(views, groups, 3, -1), dim=1, out=own)
    everybody = add_up(own.clone())
    of_input = memory_like(sweep.maps) if needs[0] else None
    if rows:
        given = (mean, variance, everybody, 1, passed)
        of_input, _, _ = sweep.gradients(*given, (needs[0], False, False), count)
    of_weight, of_bias = (mean.new_empty(size=(sweep.channels,)) if need else None for need in needs[1:3])
    if any(needs[1:3]):
        block = block_of(sweep.channels, CHANNELS)
        launch(
            own_affine_kernel,
            (-(-sweep.channels // block),),
            *(own, everybody, variance, count, of_weight, of_bias, eps, views),
            channels=sweep.channels,
            block=block,
        )
    return of_input, of_weight, of_bias, passed if needs[3] else None
