"""Sinkhorn-Knopp on logarithms to base 2, which hold any range of scores. With h_k the highest score of a column,
S = (scores - h) log2(e) / epsilon, the factors of rows a_t and columns c_t of iteration t (a_0 = 0) and the prototypes'
masses m = batch times their shares,

    c_t = log m - LSE_b(S + a_t-1),   a_t = -LSE_k(S + c_t),   assignments = exp2(S + a_T + c_T).

Taken from each column's highest score, S is exact where it matters: float32 keeps the digits that epsilon magnifies.

A problem of up to ON_CHIP elements stays in the registers of one program: one read, one write, one launch. A larger one
takes a sweep over its rows for each iteration, all problems at once: a program owns rows, computes their a_t and pushes
exp2(S + a_t) into partial column sums, which a small launch turns into c_t+1. Moved: iterations + 1 reads of the
scores, one write of the assignments, and the partial sums. Rows longer than MOST_COLUMNS are read twice in a sweep.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from imc_kernels.triton.launch import block_of, launch, warps_for, workspace
from imc_kernels.triton.primitives import rounded

LOG2_E = math.log2(math.e)
ON_CHIP = 16384  # elements that one program holds: 32 a thread
TILE = 8192  # elements of the rows that a program of a sweep holds at a time
MOST_COLUMNS = 4096
PROGRAMS = 512  # of a sweep: a few for every multiprocessor
COLUMNS = 128  # of a program that adds up partial sums


@triton.jit
def finite(high):
    return tl.where(high == -float("inf"), 0.0, high)


@triton.jit
def log_sum(x, axis: tl.constexpr):
    """A sum of exp2(x) along an axis as (high, total): total * exp2(high). Of nothing but -inf: (-inf, 0)."""
    high = tl.max(x, axis=axis)
    return high, tl.sum(tl.exp2(x - tl.expand_dims(finite(high), axis)), axis=axis)


@triton.jit
def add_log_sums(high, total, other_high, other_total):
    new = tl.maximum(high, other_high)
    return new, total * tl.exp2(high - finite(new)) + other_total * tl.exp2(other_high - finite(new))


@triton.jit
def inside(rows, columns, batch, k: tl.constexpr):
    return (rows[:, None] < batch) & (columns[None, :] < k)


@triton.jit
def load_tile(x, rows, columns, batch, k: tl.constexpr, other):
    at = x + rows[:, None] * k + columns[None, :]
    return tl.load(at, mask=inside(rows, columns, batch, k), other=other).to(tl.float32)


@triton.jit
def store_tile(to, x, rows, columns, batch, k: tl.constexpr):
    at = to + rows[:, None] * k + columns[None, :]
    tl.store(at, rounded(x, to.dtype.element_ty), mask=inside(rows, columns, batch, k))


@triton.jit
def exponents(scores, highs, rows, columns, batch, k: tl.constexpr, scale):
    """S of these rows and columns of a problem, -inf outside."""
    s = load_tile(scores, rows, columns, batch, k, 0.0)
    return tl.where(inside(rows, columns, batch, k), (s - highs[None, :]) * scale, -float("inf"))


@triton.jit
def own_exponents(scores, rows, columns, batch, k: tl.constexpr, scale):
    """S, the columns' highest scores among these rows, and 0, or NaN for a column with -inf: other infinities, and NaN,
    make themselves felt."""
    s = load_tile(scores, rows, columns, batch, k, -float("inf"))
    highs = tl.max(s, axis=0)
    held = inside(rows, columns, batch, k)
    poison = tl.sum(tl.where(held, s * 0.0, 0.0), axis=0)
    return tl.where(held, (s - highs[None, :]) * scale, -float("inf")), highs, poison


@triton.jit
def log_masses(marginals, columns, batch, k: tl.constexpr):
    """log2 of the prototypes' masses."""
    mass = tl.log2(batch.to(tl.float32))
    if marginals is None:
        share = -tl.log2(tl.full(columns.shape, k, tl.float32))
    else:
        share = tl.log2(tl.load(marginals + columns, mask=columns < k, other=1.0).to(tl.float32))
    return mass + share


@triton.jit(do_not_specialize=["batch"])
def on_chip_kernel(
    scores,  # [problems, batch, k]
    marginals,  # [k] or None
    assignments,  # [problems, batch, k]
    rows,  # a_t [problems, iterations, batch] float32 or None
    columns,  # c_t, then h [problems, iterations + 1, k] float32 or None
    batch,
    scale,
    iterations: tl.constexpr,
    k: tl.constexpr,
    row_block: tl.constexpr,
    block: tl.constexpr,
):
    problem = tl.program_id(0).to(tl.int64)
    b = tl.arange(0, row_block)
    kk = tl.arange(0, block)
    s, highs, poison = own_exponents(scores + problem * batch * k, b, kk, batch, k, scale)
    mass = log_masses(marginals, kk, batch, k) + poison
    a = tl.zeros((row_block,), tl.float32)
    c = tl.zeros((block,), tl.float32)
    high = tl.zeros((row_block,), tl.float32)
    total = tl.zeros((row_block,), tl.float32)
    for t in range(iterations):
        column_high, column_total = log_sum(s + a[:, None], axis=0)
        c = tl.where(kk < k, mass - (column_high + tl.log2(column_total)), 0.0)
        high, total = log_sum(s + c[None, :], axis=1)
        a = tl.where(b < batch, -(high + tl.log2(total)), 0.0)
        if columns is not None:
            tl.store(columns + (problem * (iterations + 1) + t) * k + kk, c, mask=kk < k)
        if rows is not None:
            tl.store(rows + (problem * iterations + t) * batch + b, a, mask=b < batch)
    if columns is not None:
        tl.store(columns + (problem * (iterations + 1) + iterations) * k + kk, highs, mask=kk < k)
    q = tl.exp2(s + c[None, :] - high[:, None]) / total[:, None]
    store_tile(assignments + problem * batch * k, q, b, kk, batch, k)


@triton.jit(do_not_specialize=["batch", "groups", "tiles"])
def first_sweep_kernel(
    scores,  # [problems, batch, k]
    partials,  # [problems, groups, k] float32: log-sums of exp2(S) over a program's rows, S from their highest score
    partial_highs,  # [problems, groups, k] float32: which is this
    batch,
    groups,  # programs of a problem
    tiles,  # of a program; 1 where k > block
    scale,
    k: tl.constexpr,
    row_block: tl.constexpr,
    block: tl.constexpr,
):
    group = tl.program_id(0) % groups
    problem = (tl.program_id(0) // groups).to(tl.int64)
    scores += problem * batch * k
    to = (problem * groups + group) * k
    for first in range(0, k, block):
        kk = first + tl.arange(0, block)
        highs = tl.full((block,), -float("inf"), tl.float32)
        total = tl.zeros((block,), tl.float32)
        for tile in range(tiles):
            b = (group * tiles + tile).to(tl.int64) * row_block + tl.arange(0, row_block)
            s, tile_highs, poison = own_exponents(scores, b, kk, batch, k, scale)
            new = tl.maximum(highs, tile_highs)
            # A tile past the last row has neither a highest score nor a sum.
            kept = tl.where(total > 0, total * tl.exp2((highs - new) * scale), total)
            added = tl.sum(tl.exp2(s), axis=0) + poison
            total = kept + tl.where(tile_highs == -float("inf"), added, added * tl.exp2((tile_highs - new) * scale))
            highs = new
        tl.store(partials + to + kk, tl.log2(total), mask=kk < k)
        tl.store(partial_highs + to + kk, highs, mask=kk < k)


@triton.jit(do_not_specialize=["batch", "groups", "tiles", "iteration"])
def sweep_kernel(
    scores,  # [problems, batch, k]
    columns,  # c_t, then h [problems, iterations + 1, k] float32
    rows,  # a_t [problems, iterations, batch] float32 or None
    assignments,  # [problems, batch, k] in the last sweep, otherwise None
    partials,  # [problems, groups, k] float32: log-sums of exp2(S + a_t) over a program's rows
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
    partials += (problem * groups + group) * k
    highs = columns + (problem * (iterations + 1) + iterations) * k
    columns += (problem * (iterations + 1) + iteration) * k
    kk = tl.arange(0, block)
    h = tl.load(highs + kk, mask=kk < k, other=0.0)
    c = tl.load(columns + kk, mask=kk < k, other=0.0)
    sums_high = tl.full((block,), -float("inf"), tl.float32)
    sums_total = tl.zeros((block,), tl.float32)
    for tile in range(tiles):
        b = (group * tiles + tile).to(tl.int64) * row_block + tl.arange(0, row_block)
        s = exponents(scores, h, b, kk, batch, k, scale)
        high, total = log_sum(s + c[None, :], axis=1)
        for first in range(block, k, block):
            at = first + kk
            more_h = tl.load(highs + at, mask=at < k, other=0.0)
            more_c = tl.load(columns + at, mask=at < k, other=0.0)
            x = exponents(scores, more_h, b, at, batch, k, scale) + more_c[None, :]
            more_high, more_total = log_sum(x, axis=1)
            high, total = add_log_sums(high, total, more_high, more_total)
        a = tl.where(b < batch, -(high + tl.log2(total)), 0.0)
        if rows is not None:
            tl.store(rows + (problem * iterations + iteration) * batch + b, a, mask=b < batch)
        if assignments is None:
            tile_high, tile_total = log_sum(s + a[:, None], axis=0)
            sums_high, sums_total = add_log_sums(sums_high, sums_total, tile_high, tile_total)
        else:
            q = tl.exp2(s + c[None, :] - high[:, None]) / total[:, None]
            store_tile(assignments + problem * batch * k, q, b, kk, batch, k)
        for first in range(block, k, block):
            at = first + kk
            more_h = tl.load(highs + at, mask=at < k, other=0.0)
            x = exponents(scores, more_h, b, at, batch, k, scale)
            if assignments is None:
                more_high, more_total = log_sum(x + a[:, None], axis=0)
                tl.store(partials + at, more_high + tl.log2(more_total), mask=at < k)
            else:
                more_c = tl.load(columns + at, mask=at < k, other=0.0)
                q = tl.exp2(x + more_c[None, :] - high[:, None]) / total[:, None]
                store_tile(assignments + problem * batch * k, q, b, at, batch, k)
    if assignments is None:
        tl.store(partials + kk, sums_high + tl.log2(sums_total), mask=kk < k)


@triton.jit
def column_log_sums(
    partials, partial_highs, problem, groups, kk, scale, k: tl.constexpr, group_block: tl.constexpr, block: tl.constexpr
):
    """The columns' highest scores, where each group had its own, and their log-sums from there on."""
    partials += problem * groups * k
    g = tl.arange(0, group_block).to(tl.int64)  # groups * k may pass 2^31
    h = tl.full((block,), -float("inf"), tl.float32)
    if partial_highs is not None:
        partial_highs += problem * groups * k
        for first in range(0, groups, group_block):
            h = tl.maximum(h, tl.max(load_tile(partial_highs, first + g, kk, groups, k, -float("inf")), axis=0))
    high = tl.full((block,), -float("inf"), tl.float32)
    total = tl.zeros((block,), tl.float32)
    for first in range(0, groups, group_block):
        x = load_tile(partials, first + g, kk, groups, k, -float("inf"))
        if partial_highs is not None:
            # The outer where: outside the table nothing minus nothing would be NaN.
            own = load_tile(partial_highs, first + g, kk, groups, k, 0.0)
            x = tl.where(inside(first + g, kk, groups, k), x + (own - h[None, :]) * scale, x)
        more_high, more_total = log_sum(x, axis=0)
        high, total = add_log_sums(high, total, more_high, more_total)
    return h, high + tl.log2(total)


@triton.jit(do_not_specialize=["batch", "groups", "iteration"])
def columns_kernel(
    partials,  # [problems, groups, k] float32
    partial_highs,  # [problems, groups, k] float32 after the first sweep, otherwise None
    marginals,  # [k] or None
    columns,  # c_t, then h [problems, iterations + 1, k] float32
    batch,
    groups,
    iteration,
    scale,
    iterations: tl.constexpr,
    k: tl.constexpr,
    group_block: tl.constexpr,
    block: tl.constexpr,
):
    problem = (tl.program_id(0) // tl.cdiv(k, block)).to(tl.int64)
    kk = tl.program_id(0) % tl.cdiv(k, block) * block + tl.arange(0, block)
    columns += problem * (iterations + 1) * k
    h, sums = column_log_sums(partials, partial_highs, problem, groups, kk, scale, k, group_block, block)
    if partial_highs is not None:
        tl.store(columns + iterations * k + kk, h, mask=kk < k)
    c = log_masses(marginals, kk, batch, k) - sums
    tl.store(columns + iteration.to(tl.int64) * k + kk, c, mask=kk < k)


class Plan(NamedTuple):
    """How the rows of a problem are spread: ``groups`` programs of ``tiles`` tiles of ``row_block`` rows."""

    groups: int
    tiles: int
    row_block: int
    block: int

    @classmethod
    def of(cls, problems: int, batch: int, k: int) -> Plan:
        wide = k > MOST_COLUMNS
        block = 1024 if wide else block_of(k, MOST_COLUMNS)
        row_block = min(32, TILE // block)
        tiles = 1 if wide else max(1, batch * problems // (row_block * PROGRAMS))
        return cls(-(-batch // (row_block * tiles)), tiles, row_block, block)

    def constants(self) -> dict[str, int]:
        elements = self.row_block * self.block
        return {"row_block": self.row_block, "block": self.block, "num_warps": warps_for(elements, 32)}


def on_chip_rows(batch: int, k: int) -> int | None:
    """Rows of the tile that holds a problem, or None. Five lengths in all, so that batch sizes share compilations."""
    fitting = (
        rows for rows in (16, 64, 128, 256, 1024) if rows >= batch and rows * block_of(k, 2 * ON_CHIP) <= ON_CHIP
    )
    return next(fitting, None)


def sinkhorn(
    inputs: Sequence[Any], options: Sequence[Any], needs: Sequence[bool]
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The assignments and, for a gradient, a_t [problems, T, B] and c_t, h [problems, T + 1, K]."""
    scores, marginals = inputs[0].contiguous(), inputs[1]
    (epsilon, iterations), potentials = options, needs[0]
    batch, k = scores.shape[-2:]
    problems = scores.shape[:-2].numel()
    assignments = torch.empty_like(scores)
    a = scores.new_empty(size=(problems, iterations, batch), dtype=torch.float32) if potentials else None
    c = scores.new_empty(size=(problems, iterations + 1, k), dtype=torch.float32) if potentials else None
    fixed: dict[str, Any] = {"iterations": iterations, "k": k}
    scale = LOG2_E / epsilon
    if (row_block := on_chip_rows(batch, k)) is not None:
        fixed |= {"row_block": row_block, "block": block_of(k, ON_CHIP)}
        fixed["num_warps"] = warps_for(row_block * fixed["block"], 32)
        launch(on_chip_kernel, (problems,), scores, marginals, assignments, a, c, batch, scale, **fixed)
        return assignments, a, c

    plan = Plan.of(problems, batch, k)
    cells = problems * plan.groups * k
    partials, highs, buffer = workspace(scores, cells, cells, 0 if potentials else problems * (iterations + 1) * k)
    columns = buffer if c is None else c
    grid = (problems * plan.groups,)
    spread = (batch, plan.groups, plan.tiles)
    launch(first_sweep_kernel, grid, scores, partials, highs, *spread, scale, k=k, **plan.constants())
    for iteration in range(iterations):
        launch(
            columns_kernel,
            (problems * -(-k // COLUMNS),),
            *(partials, highs if iteration == 0 else None, marginals, columns),
            *(batch, plan.groups, iteration, scale),
            **fixed,
            group_block=32,
            block=COLUMNS,
        )
        to = assignments if iteration + 1 == iterations else None
        arguments = (scores, columns, a, to, partials, *spread, iteration, scale)
        launch(sweep_kernel, grid, *arguments, **fixed, **plan.constants())
    return assignments, a, c
