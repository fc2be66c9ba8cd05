"""Swapped prediction from embeddings Z [V B, D] and prototypes W [K, D], whose scores S = <z, w> never lie in memory.

Every pass computes tiles of S anew. Sinkhorn-Knopp alternates one kernel: the log-sum-exps of all rows of one matrix
over those of the other, Z by W or W by Z, give the scalings of samples or of prototypes, and the same kernel gives the
log-sum-exps of the predictions. The loss is a by-product of the gradient of Z, whose program has both softmaxes of its
tile. With g = dL/dS, a program of Z's gradient adds up g W over some of the prototypes, and a second launch adds what
several programs have for a sample; a program of W's adds up g^T Z for its prototypes, over all samples.

Products of B K D multiplications, for A assigned views and P pairs: 2 A in an iteration, V for the predictions, V + P
for the loss and Z's gradient; for W's A (where a view is predicted by more than one) + V + A (A - 1). Memory: the
scalings, 8 A K bytes; 8 for each sample or prototype and split of its sum; of Z's gradient a copy for each split, of
at most 1/32 of the scores together. Half precision is multiplied as it is; g is rounded once, to bfloat16 or, beside
float16, whose range it leaves, to TF32. float32 is multiplied in float32 unless torch.set_float32_matmul_precision
allows TF32. All exponents are to base 2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from imc_kernels.ops.precision import gradient_buffers, loss_buffer
from imc_kernels.triton.launch import block_of, float32_precision, launch, tf32_precision, workspace
from imc_kernels.triton.linear_swapped_prediction_kernels import (
    combine_kernel,
    finish_kernel,
    log_sums_kernel,
    prototypes_kernel,
    samples_kernel,
)
from imc_kernels.triton.primitives import inverse_norms_kernel, total_kernel

MOST_DIM = 128  # of the columns of a gradient that a program keeps
PROGRAMS = 256  # that a sum over the prototypes is split for, where the samples are few
LOG2E = math.log2(math.e)


def linear_swapped_prediction_loss(
    inputs: Sequence[Any], options: Sequence[Any], needs: tuple[bool, ...]
) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    tensors: list[Any] = [None if x is None else x.contiguous() for x in inputs]
    z, w, zt, wt, shares, center, weights = tensors
    epsilon, temperature, assigned, iterations, normalize, every = options
    (views, batch, dim), k = z.shape, w.shape[0]
    inverse_z, inverse_w = inverse_norms(z), inverse_norms(w) if normalize else None
    if zt is None:
        zt, wt, inverse_zt, inverse_wt = z, w, inverse_z, inverse_w
    else:
        inverse_zt, inverse_wt = inverse_norms(zt), inverse_norms(wt) if normalize else None
    teacher_scale, scale = LOG2E / epsilon, LOG2E / temperature
    samples, prototypes = (zt, inverse_zt, batch, batch), (wt, inverse_wt, k, 0)
    rows = z.new_empty(2, assigned, batch, dtype=torch.float32)
    if center is not None:
        columns = torch.stack([center.float() * -teacher_scale, torch.zeros_like(center, dtype=torch.float32)])
        columns = columns[:, None].expand(2, assigned, k).contiguous()
    else:
        columns = z.new_empty(2, assigned, k, dtype=torch.float32)
        scalings = None
        for iteration in range(iterations):
            if iteration > 0:
                scalings = torch.empty_like(rows)
                log_sums(samples, prototypes, assigned, columns, teacher_scale, scalings=scalings)
            log_sums(
                prototypes, samples, assigned, scalings, teacher_scale, scalings=columns, shares=shares, share=1 / k
            )
    log_sums(samples, prototypes, assigned, columns, teacher_scale, softmaxes=rows)
    predicted = z.new_empty(2, views, batch, dtype=torch.float32)
    log_sums((z, inverse_z, batch, batch), (w, inverse_w, k, 0), views, None, scale, softmaxes=predicted)

    pairs = assigned * (views if every else views - 1)
    given = (z, w, zt, wt, inverse_z, inverse_w, inverse_zt, inverse_wt, columns, rows, predicted, weights)
    form = {"views": views, "assigned": assigned, "every": every, "dim": dim}
    tile = tile_of(max(dim, zt.shape[-1]), z.dtype, z.device)
    tile |= {
        "teacher_dim": zt.shape[-1],
        "block_dim": block_of(dim, MOST_DIM, 16),
        "weights_dtype": tl.bfloat16 if z.dtype == torch.bfloat16 else tl.float32,
        "weights_precision": (tf32_precision if z.dtype == torch.float16 else float32_precision)(z.device),
    }
    scales = (teacher_scale, scale, 1 / (temperature * pairs * batch))
    gradients = gradient_buffers((z, w), needs[:2])
    loss, chunks = loss_buffer(z), triton.cdiv(dim, MOST_DIM) if needs[0] else 1
    blocks = views * triton.cdiv(batch, tile["block_samples"])
    splits = max(1, min(PROGRAMS // (blocks * chunks), k // (32 * dim)))
    each = triton.cdiv(triton.cdiv(k, splits), tile["block_k"]) * tile["block_k"]
    splits, count = triton.cdiv(k, each), views * batch
    sizes = (count, splits * count, splits * count * needs[0], splits * count * dim * needs[0])
    partials, losses, *of_gradient = workspace(z, *sizes)
    along, received = of_gradient if needs[0] else (None, None)
    launch(
        samples_kernel,
        (blocks, splits, chunks),
        *given,
        losses,
        along,
        received,
        batch,
        k,
        each,
        *scales,
        **form,
        **tile,
    )
    launch(
        finish_kernel,
        (count,),
        *(z, inverse_z, predicted, weights, losses, along, received, partials, gradients[0], batch, splits),
        1 / (pairs * batch),
        **form,
        block_dim=block_of(dim, 1024),
    )
    launch(total_kernel, (1,), partials, loss, count, block=1024)
    if gradients[1] is not None:
        grid = (triton.cdiv(k, tile["block_k"]), triton.cdiv(dim, MOST_DIM))
        launch(prototypes_kernel, grid, *given, gradients[1], batch, k, *scales, **form, **tile)
    return loss, (*gradients, None, None, None, None, None)


def inverse_norms(rows: Tensor) -> Tensor:
    """1 / norm of the rows of [..., D]."""
    count, dim = rows.shape[:-1].numel(), rows.shape[-1]
    (norms,) = workspace(rows, count)
    launch(inverse_norms_kernel, (triton.cdiv(count, 32),), rows, norms, count, dim, 32, block_of(dim, 128))
    return norms


Rows = tuple[Tensor, Tensor | None, int, int]  # a matrix, 1 / norms, rows of a problem, rows from one to the next


def log_sums(
    x: Rows,
    y: Rows,
    problems: int,
    shifts: Tensor | None,
    scale: float,
    *,
    scalings: Tensor | None = None,
    softmaxes: Tensor | None = None,
    shares: Tensor | None = None,
    share: float = 1.0,
) -> None:
    """The log-sum-exps of the rows of x over those of y, as scalings of x or as softmaxes: :func:`combine_kernel`."""
    (matrix_x, inverse_x, count_x, step_x), (matrix_y, inverse_y, count_y, step_y) = x, y
    dim, block_x, block_y = matrix_x.shape[-1], 64, 64
    blocks = triton.cdiv(count_x, block_x) * problems
    each = triton.cdiv(triton.cdiv(count_y, max(1, min(PROGRAMS // blocks, count_y // 1024))), block_y) * block_y
    splits, count = triton.cdiv(count_y, each), problems * count_x
    highs, sums = workspace(matrix_x, splits * count, splits * count)
    launch(
        log_sums_kernel,
        (triton.cdiv(count_x, block_x), splits, problems),
        *(matrix_x, matrix_y, inverse_x, inverse_y, shifts, highs, sums, count_x, count_y, step_x, step_y, each, scale),
        dim=dim,
        block_x=block_x,
        block_y=block_y,
        depth=depth_of(dim, matrix_x.dtype),
        precision=float32_precision(matrix_x.device),
        num_warps=8,
    )
    grid = (triton.cdiv(count, 256),)
    launch(
        combine_kernel,
        grid,
        *(highs, sums, shares, scalings, softmaxes, count, splits, count_x, math.log2(share)),
        block=256,
    )


def tile_of(dim: int, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """How a program cuts the products."""
    single = dtype == torch.float32
    return {
        "block_samples": 32 if single else 64,
        "block_k": 64,
        "depth": depth_of(dim, dtype),
        "precision": float32_precision(device),
        "num_warps": 8,
    }


def depth_of(dim: int, dtype: torch.dtype) -> int:
    """Of one product: float32's is scalar arithmetic on NVIDIA, and unrolled."""
    return block_of(dim, 32 if dtype == torch.float32 else 64, 16)
