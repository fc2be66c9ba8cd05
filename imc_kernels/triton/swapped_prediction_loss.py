"""Swapped prediction. One program a sample: it keeps the sample's assignments, and for each view the row of scores
gives its log-sum-exp, its cross-entropies against the sum of all other views' assignments (the loss is linear in them),
and its gradient. A second launch adds up the samples' losses.

Moved: scores and assignments once in, the gradient once out, and 8 B bytes of partial losses. Rows longer than
MOST_COLUMNS, or of more than MOST_ASSIGNED assignment views, are read in pieces: the scores three times, the
assignments of each view for every other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from imc_kernels.ops.precision import gradient_buffer, loss_buffer
from imc_kernels.triton.launch import block_of, launch, warps_for, workspace
from imc_kernels.triton.primitives import rounded, total_kernel

MOST_COLUMNS = 8192  # of a row that one program holds: with 16 warps, 16 numbers a thread
MOST_ASSIGNED = 4


@triton.jit
def others_sum(assignments, left_out, sample, batch, columns, k: tl.constexpr, assigned: tl.constexpr):
    """The sum over a != left_out of the sample's assignments at these columns, 0 past the end."""
    target = tl.zeros(columns.shape, tl.float32)
    for a in range(assigned):
        row = assignments + (a * batch.to(tl.int64) + sample) * k
        q = tl.load(row + columns, mask=(columns < k) & (a != left_out), other=0.0)
        target += q.to(tl.float32)
    return target


@triton.jit(do_not_specialize=["batch"])
def swapped_prediction_kernel(
    scores,  # [views, batch, k]
    assignments,  # [assigned, batch, k]
    weights,  # [views, batch] float32, or None
    gradient,  # [views, batch, k] or None
    partials,  # [batch] float32
    batch,
    inverse_temperature,
    weight,  # of one cross-entropy in the mean
    views: tl.constexpr,
    assigned: tl.constexpr,
    every: tl.constexpr,  # a view predicts its own assignments too
    k: tl.constexpr,
    block: tl.constexpr,
    assigned_block: tl.constexpr,  # 0: assignments are read again for every view
):
    sample = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, block)
    loss = 0.0
    if assigned_block > 0:
        a = tl.arange(0, assigned_block)
        rows = assignments + (a[:, None] * batch.to(tl.int64) + sample) * k
        held = (a[:, None] < assigned) & (columns[None, :] < k)
        kept = tl.load(rows + columns[None, :], mask=held, other=0.0).to(tl.float32)
    for view in range(views):
        row = (view * batch.to(tl.int64) + sample) * k
        left_out = assigned if every else view
        factor = 1.0
        if weights is not None:
            factor = tl.load(weights + view * batch.to(tl.int64) + sample)
        if block >= k:
            inside = columns < k
            s = tl.load(scores + row + columns, mask=inside, other=-float("inf")).to(tl.float32) * inverse_temperature
            if assigned_block > 0:
                target = tl.sum(tl.where(a[:, None] != left_out, kept, 0.0), axis=0)
            else:
                target = others_sum(assignments, left_out, sample, batch, columns, k, assigned)
            mass = tl.sum(target, axis=0)
            s -= tl.max(s, axis=0)
            e = tl.exp(s)
            total = tl.sum(e, axis=0)
            loss += factor * (mass * tl.log(total) - tl.sum(tl.where(inside, target * s, 0.0), axis=0))
            if gradient is not None:
                d = (mass / total * e - target) * (inverse_temperature * weight * factor)
                tl.store(gradient + row + columns, rounded(d, gradient.dtype.element_ty), mask=inside)
        else:
            high = -float("inf")
            for first in range(0, k, block):
                at = first + columns
                s = tl.load(scores + row + at, mask=at < k, other=-float("inf")).to(tl.float32) * inverse_temperature
                high = tl.maximum(high, tl.max(s, axis=0))
            total = 0.0
            mass = 0.0
            along = 0.0
            for first in range(0, k, block):
                at = first + columns
                s = tl.load(scores + row + at, mask=at < k, other=-float("inf")).to(tl.float32) * inverse_temperature
                s -= high
                target = others_sum(assignments, left_out, sample, batch, at, k, assigned)
                total += tl.sum(tl.exp(s), axis=0)
                mass += tl.sum(target, axis=0)
                along += tl.sum(tl.where(at < k, target * s, 0.0), axis=0)
            loss += factor * (mass * tl.log(total) - along)
            if gradient is not None:
                for first in range(0, k, block):
                    at = first + columns
                    s = tl.load(scores + row + at, mask=at < k, other=0.0).to(tl.float32) * inverse_temperature
                    target = others_sum(assignments, left_out, sample, batch, at, k, assigned)
                    d = (mass / total * tl.exp(s - high) - target) * (inverse_temperature * weight * factor)
                    tl.store(gradient + row + at, rounded(d, gradient.dtype.element_ty), mask=at < k)
    tl.store(partials + sample, loss * weight)


def swapped_prediction_loss(
    inputs: Sequence[Any], options: Sequence[Any], needs: tuple[bool, ...]
) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    tensors: list[Any] = [None if x is None else x.contiguous() for x in inputs]
    scores, assignments, weights = tensors
    temperature, every = options
    (views, batch, k), assigned = scores.shape, assignments.shape[0]
    loss = loss_buffer(scores)
    gradient = gradient_buffer(scores) if needs[0] else None
    (partials,) = workspace(scores, batch)
    block = block_of(k, MOST_COLUMNS)
    launch(
        swapped_prediction_kernel,
        (batch,),
        scores,
        assignments,
        weights,
        gradient,
        partials,
        batch,
        1 / temperature,
        1 / (assigned * (views if every else views - 1) * batch),
        views=views,
        assigned=assigned,
        every=every,
        k=k,
        block=block,
        assigned_block=block_of(assigned, MOST_ASSIGNED) if assigned <= MOST_ASSIGNED and block >= k else 0,
        num_warps=warps_for(block),
    )
    launch(total_kernel, (1,), partials, loss, batch, block=1024)
    return loss, (gradient, None, None)
