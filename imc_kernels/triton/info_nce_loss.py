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


@triton.jit(do_not_specialize=["batch"])
def info_nce_kernel(
    z,  # [2 batch, dim]
    inverse_norms,  # [2 batch] float32, or None where rows are taken as they are
    log_sums,  # [2 batch] float32, to base 2
    partials,  # [blocks of rows] float32
    batch,
    scale,  # log2(e) / temperature
    weight,  # ln(2) / count
    dim: tl.constexpr,
    block_rows: tl.constexpr,
    block_columns: tl.constexpr,
    block_depth: tl.constexpr,
    precision: tl.constexpr,
):
    count = 2 * batch
    first_row = tl.program_id(0) * block_rows
    i = first_row + tl.arange(0, block_rows)
    pair = tl.where(i < batch, i + batch, i - batch)
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
    tl.store(log_sums + i, log_sum, mask=i < count)
    loss = tl.sum(tl.where(i < count, log_sum - positive, 0.0), axis=0)
    tl.store(partials + tl.program_id(0), loss * weight)


@triton.jit(do_not_specialize=["batch"])
def info_nce_gradient_kernel(
    z,  # [2 batch, dim]
    inverse_norms,  # [2 batch] float32 or None
    log_sums,  # [2 batch] float32
    gradient,  # [2 batch, dim]
    batch,
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
    first_row = tl.program_id(0) * block_rows
    i = first_row + tl.arange(0, block_rows)
    d = tl.program_id(1) * block_dim + tl.arange(0, block_dim)
    pair = tl.where(i < batch, i + batch, i - batch)
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
    inside = (i < count)[:, None] & (d < dim)[None, :]
    at = i.to(tl.int64)[:, None] * dim + d[None, :]
    tl.store(gradient + at, rounded(received * weight, gradient.dtype.element_ty), mask=inside)


def info_nce_loss(
    inputs: Sequence[Tensor], options: Sequence[Any], needs: tuple[bool, ...]
) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    z = inputs[0].contiguous()
    (_, batch, dim), (temperature, normalise) = z.shape, options
    count = 2 * batch
    tile = tile_of(count, dim, z.dtype, z.device)
    blocks = triton.cdiv(count, tile["block_rows"])
    log_sums, norms, partials = workspace(z, count, count if normalise else 0, blocks)
    inverse_norms = norms if normalise else None
    loss = loss_buffer(z)
    gradient = gradient_buffer(z) if needs[0] else None
    scale = math.log2(math.e) / temperature
    if normalise:
        block_dim = block_of(dim, MOST_DIM)
        launch(
            inverse_norms_kernel, (triton.cdiv(count, 32),), z, norms, count, dim, block_rows=32, block_dim=block_dim
        )
    launch(
        info_nce_kernel,
        (blocks,),
        z,
        inverse_norms,
        log_sums,
        partials,
        batch,
        scale,
        math.log(2) / count,
        dim=dim,
        **tile,
    )
    if gradient is not None:
        # The tiles of the forward, or smaller ones where registers would spill.
        narrower = tile | ({"block_columns": 16 if normalise else 32} if normalise or dim > MOST_DIM else {})
        narrower |= {"block_depth": 32} if dim > MOST_DIM else {}
        launch(
            info_nce_gradient_kernel,
            (blocks, triton.cdiv(dim, MOST_DIM)),
            z,
            inverse_norms,
            log_sums,
            gradient,
            batch,
            scale,
            1 / (temperature * count),
            dim=dim,
            block_dim=block_of(dim, MOST_DIM, 16),
            weights_dtype=tl.bfloat16 if z.dtype == torch.bfloat16 else tl.float32,
            weights_precision=(tf32_precision if z.dtype == torch.float16 else float32_precision)(z.device),
            **narrower,
        )
    launch(total_kernel, (1,), partials, loss, blocks, block=1024)
    return loss, (gradient,)


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
