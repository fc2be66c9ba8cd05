"""Sinkhorn-Knopp on a batch over processes, by the sweeps and in the notation of sinkhorn.py: after each sweep a
process adds up the column sums of its own rows, and what the processes gather is added up as if each were a group of
programs. With the first go the columns' highest scores. The prototypes' masses are for one sample: a factor of all of
them leaves the assignments as they are. A process may have no row.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from imc_kernels.triton.launch import launch, workspace
from imc_kernels.triton.sinkhorn import (
    COLUMNS,
    LOG2_E,
    Plan,
    column_log_sums,
    columns_kernel,
    first_sweep_kernel,
    sweep_kernel,
)

Gather = Callable[[Tensor], Tensor]  # a tensor of all processes, stacked


@triton.jit(do_not_specialize=["groups"])
def own_columns_kernel(
    partials,  # [problems, groups, k] float32
    partial_highs,  # [problems, groups, k] float32 after the first sweep, otherwise None
    sums,  # [problems, k] float32: log-sums of the columns over a process's rows
    highs,  # [problems, k] float32: the highest scores that they are taken from, or None
    groups,
    scale,
    k: tl.constexpr,
    group_block: tl.constexpr,
    block: tl.constexpr,
):
    problem = (tl.program_id(0) // tl.cdiv(k, block)).to(tl.int64)
    kk = tl.program_id(0) % tl.cdiv(k, block) * block + tl.arange(0, block)
    h, log_sums = column_log_sums(partials, partial_highs, problem, groups, kk, scale, k, group_block, block)
    tl.store(sums + problem * k + kk, log_sums, mask=kk < k)
    if partial_highs is not None:
        tl.store(highs + problem * k + kk, h, mask=kk < k)


def group_forward(
    scores: Tensor, epsilon: float, iterations: int, marginals: Tensor | None, gather: Gather
) -> tuple[Tensor, Tensor, Tensor]:
    """The assignments of these scores, a_t [problems, T, B] and c_t, h [problems, T + 1, K]."""
    batch, k = scores.shape[-2:]
    problems = scores.shape[:-2].numel()
    assignments = torch.empty_like(scores)
    a = scores.new_empty(size=(problems, iterations, batch), dtype=torch.float32)
    c = scores.new_empty(size=(problems, iterations + 1, k), dtype=torch.float32)
    plan, scale = Plan.of(problems, batch, k), LOG2_E / epsilon
    cells = problems * plan.groups * k
    partials, partial_highs = workspace(scores, cells, cells)
    grid, spread = (problems * plan.groups,), (batch, plan.groups, plan.tiles)
    of_columns: dict[str, Any] = {"k": k, "group_block": 32, "block": COLUMNS}
    column_grid = (problems * -(-k // COLUMNS),)
    own = c.new_empty(2, problems, k) if batch else c.new_full((2, problems, k), -math.inf)
    if batch:
        launch(first_sweep_kernel, grid, scores, partials, partial_highs, *spread, scale, k=k, **plan.constants())
    for iteration in range(iterations):
        # After the first sweep both rows of ``own`` count, then the sums alone.
        first = iteration == 0
        if batch:
            found = (partials, partial_highs if first else None, own[0], own[1] if first else None)
            launch(own_columns_kernel, column_grid, *found, plan.groups, scale, **of_columns)
        everybody = gather(own if first else own[:1])  # [processes, 1 or 2, problems, k]
        sums, *highs = everybody.permute(1, 2, 0, 3).contiguous()
        launch(
            columns_kernel,
            column_grid,
            *(sums, highs[0] if first else None, marginals, c),
            *(1, len(everybody), iteration, scale),
            iterations=iterations,
            **of_columns,
        )
        if batch:
            to = assignments if iteration + 1 == iterations else None
            arguments = (scores, c, a, to, partials, *spread, iteration, scale)
            launch(sweep_kernel, grid, *arguments, iterations=iterations, k=k, **plan.constants())
    return assignments, a, c
