"""Batch normalisation of V views of N rows and C channels, x[v][n][c], with each view's mean m and variance s:

    y = a (x - m) + b (+ r),   a = w / sqrt(s + eps),   or max(y, 0)

where r is a residual. Backward, with g = dL/dy, 0 where max(y, 0) held y back, and sums over the rows of a view:

    dL/dx = a (g - sum g / N - (x - m) sum g (x - m) / (N (s + eps)))     dL/dr = g
    dL/dw = sum over views of sum g (x - m) / sqrt(s + eps)               dL/db = sum over views of sum g

Two launches forward, two backward, of the same programs. Each owns some rows of a view, at most MOST_GROUPS of them
share its channels, and some neighbouring channels. The first launch leaves what a program finds of its rows: mean and
squared differences from it (both of x less its first row, which costs no digits where the mean is far above the
deviation), or the sums of g, g (x - m) and x - m. The second adds these up, in every program alike, and finishes; those
of the first rows write what is one per channel: the statistics, the running statistics, the gradients of w and b.

Moved: forward x twice and y once, r once; backward x and g twice, dx once; with a residual and ReLU x twice, g and r
once, dr written and read. Half precision is read and written as it is, all else is float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from imc_kernels.ops.autograd import memory
from imc_kernels.triton.launch import block_of, launch, warps_for, workspace
from imc_kernels.triton.per_view_batch_norm_kernels import (
    gradient_kernel,
    gradient_sums_kernel,
    moments_kernel,
    normalise_kernel,
)

TILE = 4096  # elements that a program holds at a time
LINE = 128  # bytes of neighbouring channels
MOST_GROUPS = 128  # of rows of a view
PARTS = 32  # of a view, whose sums of gradients a program adds up at a time
PROGRAMS = 1024  # of a launch: a few for every multiprocessor


class Plan(NamedTuple):
    """How a view's rows are spread: ``groups`` programs of ``tiles`` tiles, for each block of channels."""

    groups: int
    tiles: int
    block_rows: int
    block: int

    @classmethod
    def of(cls, views: int, rows: int, channels: int, size: int) -> Plan:
        """For elements of ``size`` bytes."""
        block = block_of(channels, LINE // size)
        block_rows = TILE // block
        blocks = -(-channels // block)
        groups = max(1, min(MOST_GROUPS, PROGRAMS // (views * blocks)))
        tiles = max(1, -(-rows // (block_rows * groups)))  # a process of a group may have no row
        return cls(-(-rows // (block_rows * tiles)), tiles, block_rows, block)

    def grid(self, views: int, channels: int) -> tuple[int, int]:
        return views * self.groups, -(-channels // self.block)

    def constants(self, channels: int) -> dict[str, int]:
        warps = warps_for(self.block_rows * self.block, 16)
        return {"channels": channels, "block_rows": self.block_rows, "block": self.block, "num_warps": warps}


Running = tuple[Tensor, Tensor, float]  # mean and variance, float32 [C], that a call moves, and how far


def rows_of(x: Tensor, views: int) -> Tensor:
    """[V*B, C, ...] -> [V, N, C], contiguous; no copy of one whose channels lie together."""
    channels = x.shape[1]
    return memory(x.movedim(1, -1).reshape(views, x.numel() // (views * channels), channels))


def memory_like(x: Tensor) -> Tensor:
    """Of the shape and dtype of ``x``, whose channels lie together."""
    order = (0, *range(2, x.dim()), 1)[: x.dim()]
    return torch.empty_permuted(x.shape, order, dtype=x.dtype, device=x.device)


class Sweep:
    """Launches over the rows of some maps [V*B, C, ...], all by one plan."""

    def __init__(self, inputs: Sequence[Any], views: int, eps: float, relu: bool) -> None:
        self.maps, self.weight, self.bias, self.residual = inputs
        self.views, self.eps, self.relu = views, eps, relu
        self.x = rows_of(self.maps, views)
        _, rows, self.channels = self.x.shape
        plan = Plan.of(views, rows, self.channels, self.x.itemsize)
        self.spread = (rows, plan.groups, plan.tiles)
        self.grid, self.constants = plan.grid(views, self.channels), plan.constants(self.channels)

    def rows(self, maps: Tensor | None) -> Tensor | None:
        return None if maps is None else rows_of(maps, self.views)

    def of_views(self) -> Tensor:
        return self.x.new_empty(size=(self.views, self.channels), dtype=torch.float32)

    def moments(self) -> Tensor:
        """Of each group of rows."""
        (partials,) = workspace(self.x, 2 * self.grid[0] * self.channels)
        launch(moments_kernel, self.grid, self.x, partials, *self.spread, **self.constants)
        return partials

    def normalise(self, partials: Tensor | None, mean: Tensor, variance: Tensor, running: Running | None) -> Tensor:
        """The output, and the statistics of each view."""
        output = memory_like(self.maps)
        launch(
            normalise_kernel,
            self.grid,
            *(self.x, self.weight, self.bias, self.rows(self.residual), partials, self.rows(output), mean, variance),
            *(running or (None, None, 0.0)),
            *(self.eps, *self.spread, self.views),
            relu=self.relu,
            most_groups=MOST_GROUPS,
            **self.constants,
        )
        return output

    def gradient_sums(self, mean: Tensor, variance: Tensor, grad_output: Tensor) -> tuple[Tensor, Tensor]:
        """Of each group of rows, [V, groups, 3, C]; and what of grad_output passes ReLU, as far as that was asked."""
        held_back = self.relu and self.residual is not None
        passed = memory_like(self.maps) if held_back else None
        (partials,) = workspace(self.x, 3 * self.grid[0] * self.channels)
        launch(
            gradient_sums_kernel,
            self.grid,
            *(self.x, self.weight, self.bias, self.rows(self.residual) if held_back else None, mean, variance),
            *(self.rows(grad_output), self.rows(passed), partials, self.eps, *self.spread),
            relu=self.relu,
            **self.constants,
        )
        return partials, grad_output if passed is None else passed

    def gradients(
        self,
        mean: Tensor,
        variance: Tensor,
        partials: Tensor,
        groups: int,
        passed: Tensor,
        needs: Sequence[bool],
        count: Tensor | None = None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Of the input, the weight and the bias, from ``groups`` partial sums of each view, which are of ``count`` rows
        (float64 []), or of these."""
        of_input = memory_like(self.maps) if needs[0] else None
        of_weight, of_bias = (mean.new_empty(size=(self.channels,)) if need else None for need in needs[1:3])
        if any(needs[:3]):
            launch(
                gradient_kernel,
                self.grid,
                *(self.x, self.weight, self.bias, mean, variance, self.rows(passed), partials),
                *(self.rows(of_input), of_weight, of_bias, count, self.eps, *self.spread, groups, self.views),
                relu=self.relu and self.residual is None,
                most_parts=PARTS,
                **self.constants,
            )
        return of_input, of_weight, of_bias


def per_view_batch_norm(
    inputs: Sequence[Any], options: Sequence[Any], needs: Sequence[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """The output, and mean and variance [V, C]. Behind the options may stand running statistics, to be moved."""
    views, eps, relu, *rest = options
    running: Running | None = rest[0] if rest else None
    sweep = Sweep(inputs, views, eps, relu)
    mean, variance = sweep.of_views(), sweep.of_views()
    return sweep.normalise(sweep.moments(), mean, variance, running), mean, variance


def per_view_batch_norm_backward(
    inputs: Sequence[Any],
    saved: Sequence[Tensor],
    grad_output: Tensor,
    options: Sequence[Any],
    needs: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    if not any(needs[:3]) and not options[2]:
        return None, None, None, grad_output
    sweep = Sweep(inputs, *options[:3])
    mean, variance = saved
    partials, passed = sweep.gradient_sums(mean, variance, grad_output)
    gradients = sweep.gradients(mean, variance, partials, sweep.spread[1], passed, needs)
    return *gradients, passed if needs[3] else None
