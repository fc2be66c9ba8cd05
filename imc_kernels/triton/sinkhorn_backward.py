"""The backward of Sinkhorn-Knopp through its iterations, in the notation of sinkhorn.py. With

    R_t = softmax of S + c_t over the columns,   P_t = softmax of S + a_t-1 over the rows,

and g the gradients of the assignments, the gradients D of S are D = R_T (g - rows of R_T g), and then, from the last
iteration to the first,

    D -= P_t (columns of D),   D -= R_t-1 (rows of D) but for t = 1.

Where a row or a column has all its mass in one entry, its part of D cancels to what the other entries hold, which may
be 1e-12 of the terms. So R and P are scaled to a sum of 1 here, not by the saved logarithms, and the sums are of D as
it is: what rounding leaves in it the next step takes out again. Moved, for each of 2 iterations steps: the scores and D
up to three times, most of it in the L2 cache, and D written once. The gradient through the iterations is no part of a
training step.

On a batch over processes the columns' sums, of the exponentials and of D, are exchanged: 3 K numbers an iteration.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from imc_kernels.triton.launch import block_of, launch, warps_for, workspace
from imc_kernels.triton.sinkhorn import (
    LOG2_E,
    TILE,
    add_log_sums,
    exponents,
    finite,
    load_tile,
    log_sum,
    store_tile,
)


@triton.jit
def row_exponents(scores, highs, column_factors, b, at, batch, k: tl.constexpr, scale):
    """S + c_t of these rows and columns."""
    h = tl.load(highs + at, mask=at < k, other=0.0)
    c = tl.load(column_factors + at, mask=at < k, other=0.0)
    return exponents(scores, h, b, at, batch, k, scale) + c[None, :]


@triton.jit
def softmax_of(x, high, total):
    """The softmax whose sum is ``total * exp2(high)``; both are of x's shape but for an axis of 1."""
    return tl.exp2(x - finite(high)) / tl.where(total == 0.0, 1.0, total)


@triton.jit(do_not_specialize=["batch", "row_blocks", "iteration"])
def row_step_kernel(
    scores,  # [problems, batch, k]
    grad_output,  # [problems, batch, k] in the first step, otherwise None
    columns,  # c_t, then h [problems, iterations + 1, k] float32
    d,  # D [problems, batch, k] float32
    batch,
    row_blocks,
    iteration,
    scale,
    iterations: tl.constexpr,
    k: tl.constexpr,
    row_block: tl.constexpr,
    block: tl.constexpr,
):
    problem = (tl.program_id(0) // row_blocks).to(tl.int64)
    b = (tl.program_id(0) % row_blocks).to(tl.int64) * row_block + tl.arange(0, row_block)
    scores += problem * batch * k
    d += problem * batch * k
    if grad_output is not None:
        grad_output += problem * batch * k
    columns += problem * (iterations + 1) * k
    highs = columns + iterations * k
    columns += iteration.to(tl.int64) * k
    high = tl.full((row_block,), -float("inf"), tl.float32)
    total = tl.zeros((row_block,), tl.float32)
    for first in range(0, k, block):
        x = row_exponents(scores, highs, columns, b, first + tl.arange(0, block), batch, k, scale)
        more_high, more_total = log_sum(x, axis=1)
        high, total = add_log_sums(high, total, more_high, more_total)
    da = tl.zeros((row_block,), tl.float32)
    for first in range(0, k, block):
        at = first + tl.arange(0, block)
        if grad_output is None:
            da += tl.sum(load_tile(d, b, at, batch, k, 0.0), axis=1)
        else:
            x = row_exponents(scores, highs, columns, b, at, batch, k, scale)
            r = softmax_of(x, high[:, None], total[:, None])
            da += tl.sum(r * load_tile(grad_output, b, at, batch, k, 0.0), axis=1)
    for first in range(0, k, block):
        at = first + tl.arange(0, block)
        x = row_exponents(scores, highs, columns, b, at, batch, k, scale)
        r = softmax_of(x, high[:, None], total[:, None])
        if grad_output is None:
            new = load_tile(d, b, at, batch, k, 0.0) - r * da[:, None]
        else:
            new = r * (load_tile(grad_output, b, at, batch, k, 0.0) - da[:, None])
        store_tile(d, new, b, at, batch, k)


@triton.jit
def column_exponents(scores, h, rows, b, kk, batch, k: tl.constexpr, scale):
    """S + a_t-1 of these rows and columns; a_0 = 0."""
    s = exponents(scores, h, b, kk, batch, k, scale)
    if rows is not None:  # no early return: Triton compiles what follows one
        s += tl.load(rows + b, mask=b < batch, other=0.0)[:, None]
    return s


@triton.jit
def column_sums(
    scores, h, rows, d, kk, batch, tiles, k: tl.constexpr, scale, row_block: tl.constexpr, block: tl.constexpr
):
    """Of these columns: the log-sums of S + a_t-1, as (high, total), and the sums of D."""
    high = tl.full((block,), -float("inf"), tl.float32)
    total = tl.zeros((block,), tl.float32)
    dc = tl.zeros((block,), tl.float32)
    for tile in range(tiles):
        b = (tl.zeros((row_block,), tl.int64) + tile) * row_block + tl.arange(0, row_block)
        x = column_exponents(scores, h, rows, b, kk, batch, k, scale)
        more_high, more_total = log_sum(x, axis=0)
        high, total = add_log_sums(high, total, more_high, more_total)
        dc += tl.sum(load_tile(d, b, kk, batch, k, 0.0), axis=0)
    return high, total, dc


@triton.jit
def leave_columns(
    scores,
    h,
    rows,
    d,
    gradient,
    high,
    total,
    dc,
    kk,
    batch,
    tiles,
    k: tl.constexpr,
    scale,
    factor,
    row_block: tl.constexpr,
):
    """D -= P_t (columns of D)."""
    for tile in range(tiles):
        b = (tl.zeros((row_block,), tl.int64) + tile) * row_block + tl.arange(0, row_block)
        x = column_exponents(scores, h, rows, b, kk, batch, k, scale)
        p = softmax_of(x, high[None, :], total[None, :])
        new = load_tile(d, b, kk, batch, k, 0.0) - p * dc[None, :]
        store_tile(gradient, new * factor, b, kk, batch, k)


@triton.jit(do_not_specialize=["batch", "tiles", "iteration", "problems", "processes"])
def column_step_kernel(
    scores,  # [problems, batch, k]
    rows,  # a_t [problems, iterations, batch] float32, or None in the last step
    columns,  # c_t, then h [problems, iterations + 1, k] float32
    d,  # D [problems, batch, k] float32
    gradient,  # [problems, batch, k]: D, or in the last step its part of the scores' gradient
    sums,  # of all processes [processes, problems, 3, k] float32, or None where there is one
    batch,
    tiles,
    iteration,  # before the step
    scale,
    factor,  # of D in what is written
    problems,
    processes,
    iterations: tl.constexpr,
    k: tl.constexpr,
    row_block: tl.constexpr,
    block: tl.constexpr,
):
    problem = (tl.program_id(0) // tl.cdiv(k, block)).to(tl.int64)
    kk = tl.program_id(0) % tl.cdiv(k, block) * block + tl.arange(0, block)
    scores += problem * batch * k
    d += problem * batch * k
    gradient += problem * batch * k
    if rows is not None:
        rows += (problem * iterations + iteration) * batch
    h = tl.load(columns + (problem * (iterations + 1) + iterations) * k + kk, mask=kk < k, other=0.0)
    if sums is None:
        high, total, dc = column_sums(scores, h, rows, d, kk, batch, tiles, k, scale, row_block, block)
    else:
        high = tl.full((block,), -float("inf"), tl.float32)
        total = tl.zeros((block,), tl.float32)
        dc = tl.zeros((block,), tl.float32)
        at = sums + problem * 3 * k + kk
        for _ in range(processes):
            more_high = tl.load(at, mask=kk < k, other=-float("inf"))
            more_total = tl.load(at + k, mask=kk < k, other=0.0)
            high, total = add_log_sums(high, total, more_high, more_total)
            dc += tl.load(at + 2 * k, mask=kk < k, other=0.0)
            at += problems.to(tl.int64) * 3 * k
    leave_columns(scores, h, rows, d, gradient, high, total, dc, kk, batch, tiles, k, scale, factor, row_block)


@triton.jit(do_not_specialize=["batch", "tiles", "iteration"])
def column_sums_kernel(
    scores,  # [problems, batch, k]
    rows,  # a_t [problems, iterations, batch] float32, or None in the last step
    columns,  # c_t, then h [problems, iterations + 1, k] float32
    d,  # D [problems, batch, k] float32
    sums,  # [problems, 3, k] float32: log-sums of S + a_t-1 as (high, total), and the sums of D
    batch,
    tiles,
    iteration,
    scale,
    iterations: tl.constexpr,
    k: tl.constexpr,
    row_block: tl.constexpr,
    block: tl.constexpr,
):
    problem = (tl.program_id(0) // tl.cdiv(k, block)).to(tl.int64)
    kk = tl.program_id(0) % tl.cdiv(k, block) * block + tl.arange(0, block)
    if rows is not None:
        rows += (problem * iterations + iteration) * batch
    h = tl.load(columns + (problem * (iterations + 1) + iterations) * k + kk, mask=kk < k, other=0.0)
    scores += problem * batch * k
    d += problem * batch * k
    high, total, dc = column_sums(scores, h, rows, d, kk, batch, tiles, k, scale, row_block, block)
    to = sums + problem * 3 * k + kk
    tl.store(to, high, mask=kk < k)
    tl.store(to + k, total, mask=kk < k)
    tl.store(to + 2 * k, dc, mask=kk < k)


def sinkhorn_backward(
    inputs: Sequence[Any], saved: Sequence[Tensor], grad_output: Tensor, options: Sequence[Any], needs: Sequence[bool]
) -> tuple[Tensor, None]:
    """The gradient of the scores. The assignments are not read: in half precision they are rounded. Nor are the
    marginals, which scale columns whatever their mass."""
    _, rows, columns = saved
    return gradient_of(inputs[0], rows, columns, grad_output, options[0]), None


def gradient_of(
    scores: Tensor,
    rows: Tensor,
    columns: Tensor,
    grad_output: Tensor,
    epsilon: float,
    gather: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Of these scores; where ``gather`` is given, they are a part of a batch over processes, whose tensors it stacks.
    A process may have no row."""
    scores, grad_output = scores.contiguous(), grad_output.contiguous()
    batch, k = scores.shape[-2:]
    problems, iterations = rows.shape[:2]
    gradient = torch.empty_like(scores)
    d = gradient if gradient.dtype == torch.float32 else workspace(scores, scores.numel())[0]
    fixed: dict[str, Any] = {"iterations": iterations, "k": k}
    scale = LOG2_E / epsilon
    block = block_of(k, 1024)
    by_rows = {"row_block": min(32, TILE // block), "block": block}
    by_rows["num_warps"] = warps_for(by_rows["row_block"] * block, 32)
    row_blocks = -(-batch // by_rows["row_block"])
    # 32 neighbours are a line of the cache; with more, a problem would have too few programs.
    by_columns = {"row_block": block_of(batch, 128), "block": block_of(k, 32)}
    by_columns["num_warps"] = warps_for(by_columns["row_block"] * by_columns["block"], 16)
    tiles, column_blocks = -(-batch // by_columns["row_block"]), -(-k // by_columns["block"])
    for iteration in range(iterations - 1, -1, -1):
        last = iteration == 0
        if batch:
            launch(
                row_step_kernel,
                (problems * row_blocks,),
                *(scores, grad_output if iteration == iterations - 1 else None, columns, d),
                *(batch, row_blocks, iteration, scale),
                **fixed,
                **by_rows,
            )
        grid, before, sums = (problems * column_blocks,), max(0, iteration - 1), None
        given = (scores, None if last else rows, columns, d)
        if gather is not None:
            own = columns.new_empty(problems, 3, k)
            if batch:
                spread = (batch, tiles, before, scale)
                launch(column_sums_kernel, grid, *given, own, *spread, **fixed, **by_columns)
            else:
                own[:, :1], own[:, 1:] = -math.inf, 0
            sums = gather(own)
        if batch:
            launch(
                column_step_kernel,
                grid,
                *(*given, gradient if last else d, sums),
                *(batch, tiles, before, scale, 1 / epsilon if last else 1.0),
                *(problems, 1 if sums is None else len(sums)),
                **fixed,
                **by_columns,
            )
    return gradient
