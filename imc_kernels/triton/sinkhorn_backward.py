"""The backward of Sinkhorn-Knopp through its iterations, in the notation of sinkhorn.py. With

    R_t = exp2(S + a_t + c_t)  (rows sum to 1),   P_t = exp2(S + a_t-1 + c_t) / m  (columns sum to 1),

the gradients g of the assignments reach rows and columns, from the last iteration to the first, as

    da_T = rows of R_T g,   dc_T = columns of R_T (g - da_T),
    da_t-1 = -rows of P_t dc_t,   dc_t-1 = -columns of R_t-1 da_t-1,

and the scores as dS = R_T (g - da_T) - sum_t P_t dc_t - sum_{t < T} R_t da_t, over epsilon. R and P come from the saved
logarithms: never above 1, at any range of scores. Only vectors pass from sweep to sweep: each reads the scores, the
first also g, and the last both again, to write dS. Moved: iterations + 3 reads and one write, and the partial sums.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from imc_kernels.triton.launch import launch, workspace
from imc_kernels.triton.sinkhorn import COLUMNS, LOG2_E, Plan, exponents, load_tile, log_masses, store_tile


@triton.jit
def row_weights(
    grad_output,  # the problem's [batch, k] in the first sweep, otherwise None
    marginals,
    columns,  # the problem's c_t, then h
    column_gradients,  # the problem's dc_t [iterations, k]
    s,
    a,
    rows,
    at,
    batch,
    k: tl.constexpr,
    iteration,
):
    """What sums to da over the columns: R_T g in the first sweep, and -P_t dc_t of iteration t in the others."""
    c = tl.load(columns + iteration * k + at, mask=at < k, other=0.0)
    if grad_output is not None:
        return tl.exp2(s + (a[:, None] + c[None, :])) * load_tile(grad_output, rows, at, batch, k, 0.0)
    d = tl.load(column_gradients + iteration * k + at, mask=at < k, other=0.0)
    return tl.exp2(s + (a[:, None] + (c - log_masses(marginals, at, batch, k))[None, :])) * -d[None, :]


@triton.jit
def column_part(grad_output, columns, s, a, da, weights, at, k: tl.constexpr, to):
    """The rows' part of dc, from da at the iteration ``to``."""
    c = tl.load(columns + to * k + at, mask=at < k, other=0.0)
    pushed = -tl.exp2(s + (a[:, None] + c[None, :])) * da[:, None]
    if grad_output is not None:
        pushed += weights
    return tl.sum(pushed, axis=0)


@triton.jit(do_not_specialize=["batch", "groups", "tiles", "iteration"])
def backward_sweep_kernel(
    scores,  # [problems, batch, k]
    marginals,  # [k] or None
    grad_output,  # [problems, batch, k] in the first sweep, otherwise None
    rows,  # a_t [problems, iterations, batch] float32
    columns,  # c_t, then h [problems, iterations + 1, k] float32
    row_gradients,  # da_t [problems, iterations, batch] float32
    column_gradients,  # dc_t [problems, iterations, k] float32
    partials,  # [problems, groups, k] float32: a program's part of dc
    batch,
    groups,
    tiles,
    iteration,
    scale,
    iterations: tl.constexpr,
    k: tl.constexpr,
    row_block: tl.constexpr,
    block: tl.constexpr,
):
    group = tl.program_id(0) % groups
    problem = (tl.program_id(0) // groups).to(tl.int64)
    scores += problem * batch * k
    columns += problem * (iterations + 1) * k
    column_gradients += problem * iterations * k
    partials += (problem * groups + group) * k
    to = iteration - 1
    if grad_output is not None:
        grad_output += problem * batch * k
        to = iteration
    rows += (problem * iterations + to) * batch
    row_gradients += (problem * iterations + to) * batch
    highs = columns + iterations * k
    kk = tl.arange(0, block)
    h = tl.load(highs + kk, mask=kk < k, other=0.0)
    sums = tl.zeros((block,), tl.float32)
    for tile in range(tiles):
        b = (group * tiles + tile).to(tl.int64) * row_block + tl.arange(0, row_block)
        a = tl.load(rows + b, mask=b < batch, other=0.0)
        s = exponents(scores, h, b, kk, batch, k, scale)
        weights = row_weights(grad_output, marginals, columns, column_gradients, s, a, b, kk, batch, k, iteration)
        da = tl.sum(weights, axis=1)
        for first in range(block, k, block):
            at = first + kk
            more_h = tl.load(highs + at, mask=at < k, other=0.0)
            x = exponents(scores, more_h, b, at, batch, k, scale)
            more = row_weights(grad_output, marginals, columns, column_gradients, x, a, b, at, batch, k, iteration)
            da += tl.sum(more, axis=1)
        tl.store(row_gradients + b, da, mask=b < batch)
        sums += column_part(grad_output, columns, s, a, da, weights, kk, k, to)
        for first in range(block, k, block):
            at = first + kk
            more_h = tl.load(highs + at, mask=at < k, other=0.0)
            x = exponents(scores, more_h, b, at, batch, k, scale)
            more = row_weights(grad_output, marginals, columns, column_gradients, x, a, b, at, batch, k, iteration)
            part = column_part(grad_output, columns, x, a, da, more, at, k, to)
            tl.store(partials + at, part, mask=at < k)
    tl.store(partials + kk, sums, mask=kk < k)


@triton.jit(do_not_specialize=["groups", "iteration"])
def add_partials_kernel(
    partials,  # [problems, groups, k] float32
    sums,  # [problems, iterations, k] float32
    groups,
    iteration,
    iterations: tl.constexpr,
    k: tl.constexpr,
    group_block: tl.constexpr,
    block: tl.constexpr,
):
    problem = (tl.program_id(0) // tl.cdiv(k, block)).to(tl.int64)
    kk = tl.program_id(0) % tl.cdiv(k, block) * block + tl.arange(0, block)
    total = tl.zeros((block,), tl.float32)
    for first in range(0, groups, group_block):
        g = first + tl.arange(0, group_block)
        total += tl.sum(load_tile(partials + problem * groups * k, g, kk, groups, k, 0.0), axis=0)
    tl.store(sums + (problem * iterations + iteration) * k + kk, total, mask=kk < k)


@triton.jit(do_not_specialize=["batch", "row_blocks"])
def gradient_kernel(
    scores,  # [problems, batch, k]
    marginals,  # [k] or None
    grad_output,  # [problems, batch, k]
    rows,  # a_t [problems, iterations, batch] float32
    columns,  # c_t, then h [problems, iterations + 1, k] float32
    row_gradients,  # da_t [problems, iterations, batch] float32
    column_gradients,  # dc_t [problems, iterations, k] float32
    gradient,  # [problems, batch, k]
    batch,
    row_blocks,
    scale,
    inverse_epsilon,
    iterations: tl.constexpr,
    k: tl.constexpr,
    row_block: tl.constexpr,
    block: tl.constexpr,
):
    tile = tl.program_id(0) // tl.cdiv(k, block)
    kk = tl.program_id(0) % tl.cdiv(k, block) * block + tl.arange(0, block)
    problem = (tile // row_blocks).to(tl.int64)
    b = (tile % row_blocks).to(tl.int64) * row_block + tl.arange(0, row_block)
    columns += problem * (iterations + 1) * k
    h = tl.load(columns + iterations * k + kk, mask=kk < k, other=0.0)
    s = exponents(scores + problem * batch * k, h, b, kk, batch, k, scale)
    mass = log_masses(marginals, kk, batch, k)
    d = tl.zeros((row_block, block), tl.float32)
    before = tl.zeros((row_block,), tl.float32)  # a_t-1
    for t in range(iterations):
        a = tl.load(rows + (problem * iterations + t) * batch + b, mask=b < batch, other=0.0)
        da = tl.load(row_gradients + (problem * iterations + t) * batch + b, mask=b < batch, other=0.0)
        c = tl.load(columns + t * k + kk, mask=kk < k, other=0.0)
        dc = tl.load(column_gradients + (problem * iterations + t) * k + kk, mask=kk < k, other=0.0)
        d -= tl.exp2(s + (before[:, None] + (c - mass)[None, :])) * dc[None, :]
        r = tl.exp2(s + (a[:, None] + c[None, :]))
        if t == iterations - 1:
            d += r * (load_tile(grad_output + problem * batch * k, b, kk, batch, k, 0.0) - da[:, None])
        else:
            d -= r * da[:, None]
        before = a
    store_tile(gradient + problem * batch * k, d * inverse_epsilon, b, kk, batch, k)


def sinkhorn_backward(
    scores: Tensor,
    marginals: Tensor | None,
    assignments: Tensor,
    rows: Tensor,
    columns: Tensor,
    grad_output: Tensor,
    epsilon: float,
) -> Tensor:
    """The gradient of the scores. The assignments are not read: in half precision they are rounded."""
    scores, grad_output = scores.contiguous(), grad_output.contiguous()
    batch, k = scores.shape[-2:]
    problems, iterations = rows.shape[:2]
    gradient = torch.empty_like(scores)
    plan = Plan.of(problems, batch, k)
    sizes = (problems * iterations * batch, problems * iterations * k, problems * plan.groups * k)
    row_gradients, column_gradients, partials = workspace(scores, *sizes)
    fixed: dict[str, Any] = {"iterations": iterations, "k": k}
    vectors = (rows, columns, row_gradients, column_gradients)
    scale = LOG2_E / epsilon
    for iteration in (iterations, *range(iterations - 1, 0, -1)):
        first = iteration == iterations
        at = iterations - 1 if first else iteration
        launch(
            backward_sweep_kernel,
            (problems * plan.groups,),
            *(scores, marginals, grad_output if first else None, *vectors, partials),
            *(batch, plan.groups, plan.tiles, at, scale),
            **fixed,
            **plan.constants(),
        )
        launch(
            add_partials_kernel,
            (problems * -(-k // COLUMNS),),
            *(partials, column_gradients, plan.groups, at if first else at - 1),
            **fixed,
            group_block=32,
            block=COLUMNS,
        )
    row_blocks = -(-batch // plan.row_block)
    launch(
        gradient_kernel,
        (problems * row_blocks * -(-k // plan.block),),
        *(scores, marginals, grad_output, *vectors, gradient, batch, row_blocks, scale, 1 / epsilon),
        **fixed,
        **plan.constants(),
    )
    return gradient
