"""InfoNCE by tiles of the N x N products, which never lie in memory; N = 2B rows of D numbers.

Forward: a program keeps some rows and goes over all columns with an online softmax; out come each row's log-sum-exp and
a partial loss. Gradient: with P_ij = exp(S_ij - lse_i), the loss's gradient by S + S^T is P + P^T - 2 [j = pair(i)].
S is symmetric, so that a tile of S, computed again, gives both P_ij and P_ji, and a program adds up all that its rows
receive: nothing is written twice, and no other program adds to it.

Operations: 2 N^2 D forward, 4 N^2 D for the gradient (1 + 1/chunks of it for S where D > MOST_DIM and a program keeps a
chunk of the gradient's columns), N^2 and 2 N^2 exponentials. At N = 65,536, D = 128: 3.3 TFLOP, or 3.3 ms at the
989 TFLOP/s that an H100 SXM is specified to multiply bfloat16 with; the exponentials take as long again where they do
not overlap. Floor of the bytes: Z in, the gradient out. Moved: Z once a block of rows and pass, which the L2 cache
serves, and 4 N bytes of log-sum-exps (8 N more where rows are normalised). Memory: the gradient and those.

Half precision is multiplied as it is, and accumulated in float32; the weights of the gradient are rounded once, to
bfloat16 or, beside float16, whose range they leave, to TF32. float32 is multiplied in float32 unless
torch.set_float32_matmul_precision allows TF32. A GPU without TF32 multiplies float32 instead. Rows are normalised by
scaling the products, never copied.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from imc_kernels.ops.precision import gradient_buffer, loss_buffer
from imc_kernels.triton.launch import block_of, float32_precision, launch, tf32_precision, workspace
from imc_kernels.triton.primitives import HELD, inverse_norms_kernel, load_rows, product, rounded, total_kernel

MOST_DIM = 128  # of the columns of Z that a program keeps
LN2 = tl.constexpr(math.log(2))


@triton.jit
def products(z, kept, i, j, count, dim: tl.constexpr, block_depth: tl.constexpr, precision: tl.constexpr):
    """Dot products of the rows ``i``, in ``kept`` where they fit one block, and ``j``: [block_i, block_j] float32."""
    depth = tl.arange(0, block_depth)
    if block_depth >= dim:
        s = product(kept, tl.trans(load_rows(z, j, count, depth, dim)), None, precision)
    else:
        s = tl.zeros((i.shape[0], j.shape[0]), tl.float32)
        for first in range(0, dim, block_depth):
            d = first + depth
            s = product(load_rows(z, i, count, d, dim), tl.trans(load_rows(z, j, count, d, dim)), s, precision)
    return s


@triton.jit
def apart(first_row, first_column, batch, block_rows: tl.constexpr, block_columns: tl.constexpr):
    """Whether a tile is full and holds neither a row's own column nor its pair's."""
    off = first_column - first_row  # columns first_row + [1 - block_rows, block_columns) + off minus rows
    own = (off > -block_columns) & (off < block_rows)
    above = (off - batch > -block_columns) & (off - batch < block_rows)
    below = (off + batch > -block_columns) & (off + batch < block_rows)
    return (first_column + block_columns <= 2 * batch) & ~(own | above | below)


@triton.jit
def own_rows(batch, first, samples, block_rows: tl.constexpr):
    """The rows of a program, which are of one view: the first one, them all, their pairs, where they stand among the
    rows of these samples alone, and whether they are some."""
    blocks = tl.cdiv(samples, block_rows)
    view = tl.program_id(0) // blocks
    start = tl.program_id(0) % blocks * block_rows
    first_row = view * batch + first + start
    at = start + tl.arange(0, block_rows)
    i = first_row + tl.arange(0, block_rows)
    return first_row, i, i + tl.where(view == 0, batch, -batch), view * samples + at, at < samples


@triton.jit(do_not_specialize=["batch", "first", "samples"])
def info_nce_kernel(
    z,  # [2 batch, dim]
    inverse_norms,  # [2 batch] float32, or None where rows are taken as they are
    log_sums,  # [2 samples] float32, to base 2
    partials,  # [blocks of rows] float32
    batch,
    first,  # sample of a view whose rows are to be computed
    samples,  # that many of each view
    scale,  # log2(e) / temperature
    weight,  # of a row's loss, which is to base 2
    dim: tl.constexpr,
    block_rows: tl.constexpr,
    block_columns: tl.constexpr,
    block_depth: tl.constexpr,
    precision: tl.constexpr,
):
    count = 2 * batch
    first_row, i, pair, at, own = own_rows(batch, first, samples, block_rows)
    kept = load_rows(z, i, count, tl.arange(0, block_depth), dim)
    if inverse_norms is not None:
        scale_i = scale * tl.load(inverse_norms + i, mask=i < count, other=0.0)
    high = tl.full((block_rows,), -float("inf"), tl.float32)
    total = tl.zeros((block_rows,), tl.float32)
    positive = tl.zeros((block_rows,), tl.float32)
    for first_column in range(0, count, block_columns):
        j = first_column + tl.arange(0, block_columns)
        s = products(z, kept, i, j, count, dim, block_depth, precision)
        if inverse_norms is not None:
            s *= scale_i[:, None] * tl.load(inverse_norms + j, mask=j < count, other=0.0)[None, :]
        else:
            s *= scale
        if not apart(first_row, first_column, batch, block_rows, block_columns):
            positive += tl.sum(tl.where(j[None, :] == pair[:, None], s, 0.0), axis=1)
            s = tl.where((j[None, :] < count) & (j[None, :] != i[:, None]), s, -float("inf"))
        highest = tl.maximum(high, tl.max(s, axis=1))
        total = total * tl.exp2(high - highest) + tl.sum(tl.exp2(s - highest[:, None]), axis=1)
        high = highest
    log_sum = high + tl.log2(total)
    tl.store(log_sums + at, log_sum, mask=own)
    loss = tl.sum(tl.where(own, log_sum - positive, 0.0), axis=0)
    tl.store(partials + tl.program_id(0), loss * weight)


@triton.jit(do_not_specialize=["batch", "first", "samples"])
def info_nce_gradient_kernel(
    z,  # [2 batch, dim]
    inverse_norms,  # [2 batch] float32 or None
    log_sums,  # [2 batch] float32
    gradient,  # [2 samples, dim]
    batch,
    first,
    samples,
    scale,  # log2(e) / temperature
    weight,  # 1 / (temperature count)
    dim: tl.constexpr,
    block_rows: tl.constexpr,
    block_columns: tl.constexpr,
    block_depth: tl.constexpr,
    block_dim: tl.constexpr,  # columns of the gradient that a program computes
    precision: tl.constexpr,
    weights_dtype: tl.constexpr,
    weights_precision: tl.constexpr,
):
    count = 2 * batch
    first_row, i, pair, at, own = own_rows(batch, first, samples, block_rows)
    d = tl.program_id(1) * block_dim + tl.arange(0, block_dim)
    kept = load_rows(z, i, count, tl.arange(0, block_depth), dim)
    log_sum_i = tl.load(log_sums + i, mask=i < count, other=0.0)
    if inverse_norms is not None:
        inverse_i = tl.load(inverse_norms + i, mask=i < count, other=0.0)
        scale_i = scale * inverse_i
        along = tl.zeros((block_rows,), tl.float32)
    received = tl.zeros((block_rows, block_dim), tl.float32)
    for first_column in range(0, count, block_columns):
        j = first_column + tl.arange(0, block_columns)
        log_sum_j = tl.load(log_sums + j, mask=j < count, other=0.0)
        column_rows = load_rows(z, j, count, d, dim)
        if block_depth >= dim:  # they are all of the rows
            s = product(kept, tl.trans(column_rows), None, precision)
        else:
            s = products(z, kept, i, j, count, dim, block_depth, precision)
        if inverse_norms is not None:
            inverse_j = tl.load(inverse_norms + j, mask=j < count, other=0.0)
            exponent = s * (scale_i[:, None] * inverse_j[None, :])
        else:
            exponent = s * scale
        w = tl.exp2(exponent - log_sum_i[:, None]) + tl.exp2(exponent - log_sum_j[None, :])
        if not apart(first_row, first_column, batch, block_rows, block_columns):
            w = tl.where((j[None, :] < count) & (j[None, :] != i[:, None]), w, 0.0)
            w -= tl.where(j[None, :] == pair[:, None], 2.0, 0.0)
        if inverse_norms is not None:
            w *= inverse_j[None, :]
        w = rounded(w, weights_dtype)
        if inverse_norms is not None:
            along += tl.sum(w.to(tl.float32) * s, axis=1)  # x_i . received_i, to the last bit of w
        received = product(
            w,
            column_rows.to(weights_dtype),
            received,
            weights_precision,
        )
    if inverse_norms is not None:
        # Back through x / max(norm, 1e-12): what is along x counts only where the norm is not held at its least.
        along = tl.where(inverse_i < HELD, along * inverse_i * inverse_i, 0.0)
        x = load_rows(z, i, count, d, dim).to(tl.float32)
        received = (received - x * along[:, None]) * inverse_i[:, None]
    to = gradient + at.to(tl.int64)[:, None] * dim + d[None, :]
    inside = own[:, None] & (d < dim)[None, :]
    tl.store(to, rounded(received * weight, gradient.dtype.element_ty), mask=inside)


def info_nce_loss(
    inputs: Sequence[Tensor], options: Sequence[Any], needs: tuple[bool, ...]
) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    z = inputs[0].contiguous()
    temperature, normalise = options
    samples, count = range(z.shape[1]), z.shape[:2].numel()
    inverse_norms = norms_of(z) if normalise else None
    loss, log_sums = rows_loss(z, inverse_norms, samples, temperature, 1 / count)
    gradient = rows_gradient(z, inverse_norms, log_sums, samples, temperature) if needs[0] else None
    return loss, (gradient,)


def group_forward(z: Tensor, samples: range, temperature: float, normalise: bool) -> tuple[Tensor, Tensor]:
    """The sum of the losses of these samples' rows, float64, and the rows' log-sums [1, 2, samples]."""
    loss, log_sums = rows_loss(z, norms_of(z) if normalise else None, samples, temperature, 1.0)
    return loss.double(), log_sums[: 2 * len(samples)].view(1, 2, -1)  # padded


def group_backward(z: Tensor, log_sums: Tensor, samples: range, temperature: float, normalise: bool) -> Tensor:
    """The gradient of these samples [2, samples, D], from the log-sums of all."""
    return rows_gradient(z, norms_of(z) if normalise else None, log_sums, samples, temperature)


def norms_of(z: Tensor) -> Tensor:
    """1 / max(norm, 1e-12) of the rows of both views."""
    count, dim = z.shape[:2].numel(), z.shape[-1]
    (norms,) = workspace(z, count)
    block_dim = block_of(dim, MOST_DIM)
    launch(inverse_norms_kernel, (triton.cdiv(count, 32),), z, norms, count, dim, block_rows=32, block_dim=block_dim)
    return norms


def rows_loss(
    z: Tensor, inverse_norms: Tensor | None, samples: range, temperature: float, weight: float
) -> tuple[Tensor, Tensor]:
    """The sum of the losses of the rows of these samples of z [2, B, D], times a weight, and their log-sums."""
    _, batch, dim = z.shape
    tile = tile_of(2 * len(samples), dim, z.dtype, z.device)
    blocks = 2 * triton.cdiv(len(samples), tile["block_rows"])
    log_sums, partials = workspace(z, 2 * len(samples), blocks)
    loss = loss_buffer(z)
    rows = (batch, samples.start, len(samples))
    given = (z, inverse_norms, log_sums, partials, *rows, math.log2(math.e) / temperature, math.log(2) * weight)
    launch(info_nce_kernel, (blocks,), *given, dim=dim, **tile)
    launch(total_kernel, (1,), partials, loss, blocks, block=1024)
    return loss, log_sums


def rows_gradient(
    z: Tensor, inverse_norms: Tensor | None, log_sums: Tensor, samples: range, temperature: float
) -> Tensor:
    """Of the mean loss of all rows, by the rows of these samples; from the log-sums of all rows."""
    _, batch, dim = z.shape
    gradient = gradient_buffer(z[:, samples.start : samples.stop])
    tile = tile_of(2 * len(samples), dim, z.dtype, z.device)
    # The tiles of the forward, or smaller ones where registers would spill.
    if inverse_norms is not None or dim > MOST_DIM:
        tile["block_columns"] = 32 if inverse_norms is None else 16
    if dim > MOST_DIM:
        tile["block_depth"] = 32
    launch(
        info_nce_gradient_kernel,
        (2 * triton.cdiv(len(samples), tile["block_rows"]), triton.cdiv(dim, MOST_DIM)),
        *(z, inverse_norms, log_sums, gradient, batch, samples.start, len(samples)),
        math.log2(math.e) / temperature,
        1 / (temperature * 2 * batch),
        dim=dim,
        block_dim=block_of(dim, MOST_DIM, 16),
        weights_dtype=tl.bfloat16 if z.dtype == torch.bfloat16 else tl.float32,
        weights_precision=(tf32_precision if z.dtype == torch.float16 else float32_precision)(z.device),
        **tile,
    )
    return gradient


def tile_of(count: int, dim: int, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """How the products are cut: rows until there are some 128 programs, columns by what a program's registers hold."""
    most_depth = 32 if dtype == torch.float32 else MOST_DIM if dim <= MOST_DIM else 64
    most_rows = 64 if dtype == torch.float32 else 128
    block_rows = max(16, min(most_rows, block_of(count // 128, most_rows)))
    return {
        "block_rows": block_rows,
        "block_columns": 32 if dtype == torch.float32 else 64,
        "block_depth": block_of(dim, most_depth, 16),
        "precision": float32_precision(device),
        "num_warps": 8 if block_rows == most_rows else 4,
    }
