"""The contrastive loss of CRLC in time linear in the batch. Over the N rows q of both views of a head, S_i the sum of
all rows but i,

    d_i = q_i . S_i,   r_i = q_i . q_pair(i),   loss = mean_i [log d_i - log r_i],
    dL/dq_i = (S_i / d_i + sum_{j != i} q_j / d_j - 2 q_pair(i) / r_i) / N.

Launches: each program's part of S and of the mean predictions; d, r, the loss's parts and those of sum q / d; the loss
of each head; the gradient. Each takes the softmax again, from the logits. A sum is kept as its largest term and the
rest: without one term x it is (peak - x) + rest, with no cancellation. Moved: the logits two or three times, the
gradient once, and the parts, which are 1 / rows of a program of that. Where the batch is spread over processes, the
sums that the second and the fourth launch read are those of all samples, in one part.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from imc_kernels.ops.precision import gradient_buffer, loss_buffer
from imc_kernels.triton.launch import block_of, launch, workspace
from imc_kernels.triton.log_dot_product_kernels import (
    compare_kernel,
    gradient_kernel,
    loss_kernel,
    process_sums_kernel,
    sums_kernel,
)

GUARD_WEIGHT = 0.01
TILE = 1024  # elements of one view that a program holds
GROUPS = 16  # parts added at a time


def log_dot_product_loss(
    inputs: Sequence[Tensor], options: Sequence[float], needs: tuple[bool, ...]
) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    logits = inputs[0].contiguous()
    smoothing, entropy_weight, limit = options
    sweep = Sweep(logits)
    sums = sweep.sums(smoothing)
    loss, over = sweep.compare(sums, None, smoothing, entropy_weight, limit, needs[0])
    if over is None:
        return loss, (None,)
    return loss, (sweep.gradient(sums, over, None, smoothing, entropy_weight, limit),)


class Sums(NamedTuple):
    """Of the rows of each head, in parts: peaks and rests of q [H, parts, C], the sums of p of each view
    [2, H, parts, C]."""

    peaks: Tensor
    rests: Tensor
    means: Tensor
    parts: int


class Over(NamedTuple):
    """Peaks and rests [H, parts, C] of q / N d."""

    peaks: Tensor
    rests: Tensor


class Sweep:
    """Launches over the rows of logits [H, 2, B, C], all by one plan. The samples of all processes are a tensor [], or
    None where there is one process."""

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits
        self.heads, _, self.batch, self.clusters = logits.shape
        block = block_of(self.clusters, 1 << 20)
        rows = block_of(TILE // block, 64)
        self.groups = -(-self.batch // rows)
        self.cells = self.heads * self.groups * self.clusters
        self.grid = (self.heads * self.groups,)
        self.tile = {"clusters": self.clusters, "rows": rows, "block": block}

    def sums(self, smoothing: float) -> Sums:
        peaks, rests, means = workspace(self.logits, self.cells, self.cells, 2 * self.cells)
        spread = (self.batch, self.groups, smoothing)
        launch(sums_kernel, self.grid, self.logits, peaks, rests, means, *spread, heads=self.heads, **self.tile)
        return Sums(peaks, rests, means, self.groups)

    def compare(
        self, sums: Sums, samples: Tensor | None, smoothing: float, entropy_weight: float, limit: float, needed: bool
    ) -> tuple[Tensor, Over | None]:
        """The losses, or these samples' part of them, and where needed the sums that the gradient takes."""
        loss = loss_buffer(self.logits, self.heads)
        cells = self.cells if needed else 0
        losses, *both = workspace(self.logits, self.heads * self.groups, cells, cells)
        over = Over(*both) if needed else None
        spread = (samples, self.batch, self.groups, sums.parts)
        launch(
            compare_kernel,
            self.grid,
            *(self.logits, sums.peaks, sums.rests, *(over or (None, None)), losses),
            *(*spread, smoothing, limit, GUARD_WEIGHT),
            **self.tile,
            group_block=GROUPS,
        )
        launch(
            loss_kernel,
            (self.heads,),
            *(losses, sums.means, loss, *spread, entropy_weight),
            **self.of_heads(),
            loss_block=64,
        )
        return loss, over

    def gradient(
        self, sums: Sums, over: Over, samples: Tensor | None, smoothing: float, entropy_weight: float, limit: float
    ) -> Tensor:
        gradient = gradient_buffer(self.logits)
        launch(
            gradient_kernel,
            self.grid,
            *(self.logits, sums.peaks, sums.rests, *over, sums.means, gradient),
            *(samples, self.batch, self.groups, sums.parts, smoothing, entropy_weight, limit, GUARD_WEIGHT),
            heads=self.heads,
            **self.tile,
            group_block=GROUPS,
        )
        return gradient

    def of_heads(self) -> dict[str, int]:
        return {"heads": self.heads, "clusters": self.clusters, "block": self.tile["block"], "group_block": GROUPS}

    def of_process(self, peaks: Tensor, rests: Tensor, means: Tensor | None) -> Tensor:
        """The programs' sums added up: float64 [H, C, 4, or 2 without means]."""
        sums = peaks.new_empty(self.heads, self.clusters, 2 if means is None else 4)
        launch(process_sums_kernel, (self.heads,), peaks, rests, means, sums, self.groups, **self.of_heads())
        return sums.double()


def group_sums(logits: Tensor, smoothing: float) -> Tensor:
    """These three: the phases of imc_kernels/ops/distributed/log_dot_product_loss.py."""
    sweep = Sweep(logits)
    return sweep.of_process(*sweep.sums(smoothing)[:3])


def group_compare(
    logits: Tensor, sums: Tensor, samples: Tensor, smoothing: float, entropy_weight: float, limit: float
) -> tuple[Tensor, Tensor]:
    sweep = Sweep(logits)
    options = (smoothing, entropy_weight, limit)
    loss, over = sweep.compare(_of_group(sums), samples.float(), *options, needed=True)
    assert over is not None
    return loss.double(), sweep.of_process(*over, None)


def group_differentiate(
    logits: Tensor,
    sums: Tensor,
    samples: Tensor,
    quotients: Tensor,
    smoothing: float,
    entropy_weight: float,
    limit: float,
) -> Tensor:
    over = Over(*_in_front(quotients))
    options = (smoothing, entropy_weight, limit)
    return Sweep(logits).gradient(_of_group(sums), over, samples.float(), *options)


def _of_group(sums: Tensor) -> Sums:
    """From what the processes added up, one part."""
    in_front = _in_front(sums)
    return Sums(in_front[0], in_front[1], in_front[2:], 1)


def _in_front(sums: Tensor) -> Tensor:
    """float64 [H, C, n] -> float32 [n, H, C]."""
    return sums.movedim(-1, 0).to(torch.float32, memory_format=torch.contiguous_format)
