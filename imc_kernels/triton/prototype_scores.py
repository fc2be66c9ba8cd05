"""Cosines of embeddings and prototypes: X [R, D], W [K, D] -> x.w / (|x| |w|).

Forward, one launch: the squares of the rows of X and W add up beside their product, which is scaled when it is done.
Backward, one launch for both gradients: each is A's, from A = X, B = W or from A = W, B = X, as
``dA = (G' B^ - A^ (A^ . G' B^)) / |A|`` with G' the rows of grad_output, or its columns. A program keeps some rows of
A and goes over all of B, whose norms it takes from the rows that it multiplies. Where D > MOST_DIM a program's rows do
not fit: the norms are two launches before, and what is along A is taken off in two behind, from float32.

Operations: 2 R K D forward, 4 R K D backward: at R = 1536, K = 1000, D = 128 1.2 GFLOP, 18 us at the 67 TFLOP/s that
an H100 SXM is specified to add and multiply float32 with. Floor of the bytes: X and W in, the scores out; X, W and G
in, two gradients out. Moved: X once a block of 64 prototypes, W once a block of rows, which the L2 cache serves; G
twice.

Half precision is multiplied as it is and accumulated in float32. In the backward grad_output over the norms of B is
rounded once, to bfloat16 or, beside float16, whose range it may leave, to TF32. float32 is multiplied in float32 unless
torch.set_float32_matmul_precision allows TF32. A GPU without TF32 multiplies float32 instead.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from imc_kernels.triton.launch import block_of, float32_precision, launch, tf32_precision, workspace
from imc_kernels.triton.primitives import HELD, inverse_norm, inverse_norms_kernel, load_rows, product, rounded

MOST_DIM = 128  # of the columns of X and W that a program of the backward keeps


@triton.jit(do_not_specialize=["rows"])
def prototype_scores_kernel(
    x,  # [rows, dim]
    w,  # [k, dim]
    scores,  # [rows, k]
    rows,
    k: tl.constexpr,
    dim: tl.constexpr,
    normalize_w: tl.constexpr,
    block_rows: tl.constexpr,
    block_k: tl.constexpr,
    block_depth: tl.constexpr,
    precision: tl.constexpr,
):
    i = tl.program_id(0) * block_rows + tl.arange(0, block_rows)
    j = tl.program_id(1) * block_k + tl.arange(0, block_k)
    s = tl.zeros((block_rows, block_k), tl.float32)
    squares_x = tl.zeros((block_rows,), tl.float32)
    squares_w = tl.zeros((block_k,), tl.float32)
    for first in range(0, dim, block_depth):
        d = first + tl.arange(0, block_depth)
        x_tile = load_rows(x, i, rows, d, dim)
        w_tile = load_rows(w, j, k, d, dim)
        s = product(x_tile, tl.trans(w_tile), s, precision)
        x_single = x_tile.to(tl.float32)
        squares_x += tl.sum(x_single * x_single, axis=1)
        if normalize_w:
            w_single = w_tile.to(tl.float32)
            squares_w += tl.sum(w_single * w_single, axis=1)
    s *= inverse_norm(squares_x)[:, None]
    if normalize_w:
        s *= inverse_norm(squares_w)[None, :]
    at = i.to(tl.int64)[:, None] * k + j[None, :]
    tl.store(scores + at, rounded(s, scores.dtype.element_ty), mask=(i < rows)[:, None] & (j < k)[None, :])


@triton.jit
def gradient_of_rows(
    a,  # [count_a, dim]
    b,  # [count_b, dim]
    grad_output,  # of (a, b): [count_a, count_b] by the strides
    stride_a,
    stride_b,
    inverse_a,  # [count_a] float32, or None: taken from the rows
    inverse_b,  # [count_b] float32, or None
    gradient,  # [count_a, dim], float32 and not yet projected where the norms are given
    block,
    count_a,
    count_b,
    normalize_a: tl.constexpr,
    normalize_b: tl.constexpr,
    dim: tl.constexpr,
    block_rows: tl.constexpr,
    block_columns: tl.constexpr,
    block_dim: tl.constexpr,
    precision: tl.constexpr,
    weights_dtype: tl.constexpr,
):
    i = block * block_rows + tl.arange(0, block_rows)
    d = tl.program_id(1) * block_dim + tl.arange(0, block_dim)
    received = tl.zeros((block_rows, block_dim), tl.float32)
    for first in range(0, count_b, block_columns):
        j = first + tl.arange(0, block_columns)
        b_tile = load_rows(b, j, count_b, d, dim)
        at = i.to(tl.int64)[:, None] * stride_a + j.to(tl.int64)[None, :] * stride_b
        g = tl.load(grad_output + at, mask=(i < count_a)[:, None] & (j < count_b)[None, :], other=0.0).to(tl.float32)
        if normalize_b:
            if inverse_b is None:
                b_single = b_tile.to(tl.float32)
                g *= inverse_norm(tl.sum(b_single * b_single, axis=1))[None, :]
            else:
                g *= tl.load(inverse_b + j, mask=j < count_b, other=0.0)[None, :]
        received = product(rounded(g, weights_dtype), b_tile.to(weights_dtype), received, precision)
    if normalize_a and inverse_a is None:
        received = projected(received, load_rows(a, i, count_a, d, dim).to(tl.float32))
    at = i.to(tl.int64)[:, None] * dim + d[None, :]
    tl.store(
        gradient + at, rounded(received, gradient.dtype.element_ty), mask=(i < count_a)[:, None] & (d < dim)[None, :]
    )


@triton.jit
def projected(received, a):
    """Back through a / max(norm, 1e-12): what is along a counts only where the norm is not held at its least."""
    inverse = inverse_norm(tl.sum(a * a, axis=1))
    along = tl.sum(received * a, axis=1) * inverse * inverse
    along = tl.where(inverse < HELD, along, 0.0)
    return (received - a * along[:, None]) * inverse[:, None]


@triton.jit(do_not_specialize=["rows", "blocks_x"])
def prototype_scores_gradient_kernel(
    x,  # [rows, dim]
    w,  # [k, dim]
    grad_output,  # [rows, k]
    inverse_x,  # [rows] float32, or None: taken from the rows
    inverse_w,  # [k]
    gradient_x,  # [rows, dim], or None where it is not needed
    gradient_w,  # [k, dim], or None
    rows,
    blocks_x,  # programs that compute the first, followed by those of the second
    k: tl.constexpr,
    dim: tl.constexpr,
    normalize_w: tl.constexpr,
    block_rows: tl.constexpr,
    block_columns: tl.constexpr,
    block_dim: tl.constexpr,
    precision: tl.constexpr,
    weights_dtype: tl.constexpr,
):
    block = tl.program_id(0)
    if block < blocks_x:
        if gradient_x is not None:
            gradient_of_rows(
                x, w, grad_output, k, 1, inverse_x, inverse_w, gradient_x, block, rows, k, True, normalize_w,
                dim, block_rows, block_columns, block_dim, precision, weights_dtype,
            )  # fmt: skip
    elif gradient_w is not None:
        gradient_of_rows(
            w, x, grad_output, 1, k, inverse_w, inverse_x, gradient_w, block - blocks_x, k, rows, normalize_w, True,
            dim, block_rows, block_columns, block_dim, precision, weights_dtype,
        )  # fmt: skip


@triton.jit
def project_kernel(
    rows,  # [count, dim]
    received,  # [count, dim] float32
    gradient,  # [count, dim]
    dim: tl.constexpr,
    normalize: tl.constexpr,
    block_dim: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * dim
    d = tl.arange(0, block_dim)[None, :]
    a = tl.load(rows + at + d, mask=d < dim, other=0.0).to(tl.float32)
    g = tl.load(received + at + d, mask=d < dim, other=0.0)
    if normalize:
        g = projected(g, a)
    tl.store(gradient + at + d, rounded(g, gradient.dtype.element_ty), mask=d < dim)


def prototype_scores(inputs: Sequence[Tensor], options: Sequence[bool], needs: Sequence[bool]) -> tuple[Tensor]:
    x, w = (t.contiguous() for t in inputs)
    (k, dim), rows = w.shape, x.shape[:-1].numel()
    scores = x.new_empty(*x.shape[:-1], k)
    single = x.dtype == torch.float32
    launch(
        prototype_scores_kernel,
        (triton.cdiv(rows, 64), triton.cdiv(k, 64)),
        x,
        w,
        scores,
        rows,
        k=k,
        dim=dim,
        normalize_w=options[0],
        block_rows=64,
        block_k=64,
        block_depth=16 if single else 64,
        num_warps=8 if single else 4,
        precision=float32_precision(x.device),
    )
    return (scores,)


def prototype_scores_backward(
    inputs: Sequence[Tensor],
    saved: Sequence[Tensor],
    grad_output: Tensor,
    options: Sequence[bool],
    needs: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None]:
    x, w, grad_output = (t.contiguous() for t in (*inputs, grad_output))
    (k, dim), rows = w.shape, x.shape[:-1].numel()
    gradients = (torch.empty_like(x) if needs[0] else None, torch.empty_like(w) if needs[1] else None)
    results, inverse_x, inverse_w = gradients, None, None
    if dim > MOST_DIM:
        inverse_x, inverse_w, received_x, received_w = workspace(x, rows, k, rows * dim * needs[0], k * dim * needs[1])
        for tensor, count, norms in ((x, rows, inverse_x), (w, k, inverse_w)):
            block = block_of(dim, 128)
            launch(inverse_norms_kernel, (triton.cdiv(count, 32),), tensor, norms, count, dim, 32, block)
        results = (received_x if needs[0] else None, received_w if needs[1] else None)
    block_rows = 32
    blocks_x, blocks_w = triton.cdiv(rows, block_rows) * needs[0], triton.cdiv(k, block_rows) * needs[1]
    launch(
        prototype_scores_gradient_kernel,
        (blocks_x + blocks_w, triton.cdiv(dim, MOST_DIM)),
        x,
        w,
        grad_output,
        inverse_x,
        inverse_w,
        *results,
        rows,
        blocks_x,
        k=k,
        dim=dim,
        normalize_w=options[0],
        block_rows=block_rows,
        block_columns=32,
        block_dim=block_of(dim, MOST_DIM, 16),
        precision=(tf32_precision if x.dtype == torch.float16 else float32_precision)(x.device),
        weights_dtype=tl.bfloat16 if x.dtype == torch.bfloat16 else tl.float32,
    )
    if dim > MOST_DIM:
        for tensor, received, gradient, normalize in zip((x, w), results, gradients, (True, options[0]), strict=True):
            if received is not None:
                count = tensor.shape[:-1].numel()
                launch(project_kernel, (count,), tensor, received, gradient, dim, normalize, block_of(dim, 2**20))
    return gradients
