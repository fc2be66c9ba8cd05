"""TEMI's objective for all heads. With the log-softmaxes log s and log t of students and teachers, for each view

    a_c = beta (log s_c + log t'_c) - log q_c,   r = softmax(a),   pmi = log sum_c exp a_c,
    d pmi / d logits_k = beta (r_k - s_k) / student_temperature,

where t' is the other view's. Launches: the agreement of each pair of each head and, where they are wanted, each
program's part of the mean predictions; the weights; those means; losses' parts and gradient; the loss of each head.
Moved: the teachers twice, the students once, or twice with an entropy weight, the gradient once, and H B agreements.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from imc_kernels.ops.precision import gradient_buffer, loss_buffer
from imc_kernels.triton.launch import block_of, launch, warps_for, workspace
from imc_kernels.triton.primitives import rounded, safe_log

TILE = 1024  # elements of one view that a program holds
PARTS = 16  # parts of programs added at a time
PAIRS = 128  # whose weights a program adds up


@triton.jit
def log_softmax(logits, head, view, b, c, batch, clusters: tl.constexpr, inverse_temperature):
    """Of these samples of a view, and its exponential, 0 outside; NaN for a row with an infinity."""
    inside = (b[:, None] < batch) & (c[None, :] < clusters)
    at = ((2 * head + view) * batch + b[:, None]) * clusters + c[None, :]
    x = tl.load(logits + at, mask=inside, other=0.0).to(tl.float32)
    high = tl.max(tl.where(c[None, :] < clusters, x, -float("inf")), axis=1)
    shifted = tl.where(c[None, :] < clusters, (x - high[:, None]) * inverse_temperature, -float("inf"))
    e = tl.where(inside, tl.exp(shifted), 0.0)
    total = tl.where(b < batch, tl.sum(e, axis=1) + tl.sum(x * 0.0, axis=1), 1.0)
    return shifted - tl.log(total)[:, None], e / total[:, None]


@triton.jit
def column_sum(parts, c, groups, clusters: tl.constexpr, part_block: tl.constexpr):
    """Of the parts [groups, clusters] of a head's programs."""
    g = tl.arange(0, part_block)
    total = tl.zeros(c.shape, tl.float32)
    for first in range(0, groups, part_block):
        inside = (first + g[:, None] < groups) & (c[None, :] < clusters)
        total += tl.sum(tl.load(parts + (first + g[:, None]) * clusters + c[None, :], mask=inside, other=0.0), axis=0)
    return total


@triton.jit(do_not_specialize=["batch", "groups"])
def agreement_kernel(
    students,  # [heads, 2, batch, clusters], or None where their means are not wanted
    teachers,  # [heads, 2, batch, clusters]
    agreements,  # [heads, batch] float32
    teacher_sums,  # [heads, groups, clusters] float32, or None: a program's sums of both views
    student_sums,  # [2, heads, groups, clusters] float32
    batch,
    groups,  # programs of a head
    inverse_student_temperature,
    inverse_teacher_temperature,
    heads: tl.constexpr,
    clusters: tl.constexpr,
    rows: tl.constexpr,
    block: tl.constexpr,
):
    part = tl.program_id(0).to(tl.int64) * clusters
    head = (tl.program_id(0) // groups).to(tl.int64)
    b = tl.program_id(0) % groups * rows + tl.arange(0, rows)
    c = tl.arange(0, block)
    _, x = log_softmax(teachers, head, 0, b, c, batch, clusters, inverse_teacher_temperature)
    _, y = log_softmax(teachers, head, 1, b, c, batch, clusters, inverse_teacher_temperature)
    tl.store(agreements + head * batch + b, tl.sum(x * y, axis=1), mask=b < batch)
    if teacher_sums is not None:
        tl.store(teacher_sums + part + c, tl.sum(x, axis=0) + tl.sum(y, axis=0), mask=c < clusters)
    if students is not None:
        for view in range(2):
            _, s = log_softmax(students, head, view, b, c, batch, clusters, inverse_student_temperature)
            start = view * groups.to(tl.int64) * (heads * clusters) + part
            tl.store(student_sums + start + c, tl.sum(s, axis=0), mask=c < clusters)


@triton.jit(do_not_specialize=["batch"])
def weights_kernel(
    agreements,  # [heads, batch] float32
    weights,  # [batch] float32
    batch,
    heads,
    pairs: tl.constexpr,
):
    b = tl.program_id(0) * pairs + tl.arange(0, pairs)
    total = tl.zeros((pairs,), tl.float32)
    for head in range(heads):
        total += tl.load(agreements + head * batch.to(tl.int64) + b, mask=b < batch, other=0.0)
    tl.store(weights + b, total / heads, mask=b < batch)


@triton.jit(do_not_specialize=["batch", "groups"])
def means_kernel(
    teacher_sums,  # [heads, groups, clusters] float32, or None
    student_sums,  # [2, heads, groups, clusters] float32, or None
    prior,  # [heads, clusters] float32: the teachers' mean
    log_means,  # [2, heads, clusters] float32: of the students
    entropies,  # [heads] float32: of those, averaged over the views
    batch,
    groups,
    heads: tl.constexpr,
    clusters: tl.constexpr,
    block: tl.constexpr,
    part_block: tl.constexpr,
):
    head = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, block)
    if teacher_sums is not None:
        mean = column_sum(teacher_sums + head * groups * clusters, c, groups, clusters, part_block) / (2.0 * batch)
        tl.store(prior + head * clusters + c, mean, mask=c < clusters)
    if student_sums is not None:
        entropy = 0.0
        for view in range(2):
            start = (view * heads + head) * groups * clusters
            mean = column_sum(student_sums + start, c, groups, clusters, part_block) / batch.to(tl.float32)
            log_mean = safe_log(mean)
            entropy -= 0.5 * tl.sum(mean * log_mean, axis=0)
            tl.store(log_means + (view * heads + head) * clusters + c, log_mean, mask=c < clusters)
        tl.store(entropies + head, entropy)


@triton.jit(do_not_specialize=["batch", "groups"])
def pairs_kernel(
    students,  # [heads, 2, batch, clusters]
    teachers,  # [heads, 2, batch, clusters]
    prior,  # [heads, clusters]
    weights,  # [batch], or None: 1
    log_means,  # [2, heads, clusters] float32, or None: no entropy
    losses,  # [heads, groups] float32: a program's part of a head's loss
    gradient,  # [heads, 2, batch, clusters] or None
    batch,
    groups,
    inverse_student_temperature,
    inverse_teacher_temperature,
    beta,
    entropy_weight,
    heads: tl.constexpr,
    clusters: tl.constexpr,
    rows: tl.constexpr,
    block: tl.constexpr,
):
    head = (tl.program_id(0) // groups).to(tl.int64)
    b = tl.program_id(0) % groups * rows + tl.arange(0, rows)
    c = tl.arange(0, block)
    inside = (b[:, None] < batch) & (c[None, :] < clusters)
    q = tl.load(prior + head * clusters + c, mask=c < clusters, other=1.0).to(tl.float32)
    log_prior = safe_log(q) + 0.0 * tl.sqrt(q)  # a negative or infinite prior makes it NaN
    if weights is not None:
        w = tl.load(weights + b, mask=b < batch, other=0.0).to(tl.float32)
    else:
        w = tl.where(b < batch, 1.0, 0.0)
    w *= 1.0 / (2.0 * batch)
    loss = 0.0
    for view in range(2):
        log_s, s = log_softmax(students, head, view, b, c, batch, clusters, inverse_student_temperature)
        log_t, _ = log_softmax(teachers, head, 1 - view, b, c, batch, clusters, inverse_teacher_temperature)
        a = tl.where(c[None, :] < clusters, beta * (log_s + log_t) - log_prior[None, :], -float("inf"))
        high = tl.max(a, axis=1)
        e = tl.exp(a - high[:, None])
        total = tl.sum(e, axis=1)
        loss -= tl.sum(tl.where(b < batch, w * (high + tl.log(total)), 0.0), axis=0)
        if gradient is not None:
            d = (w * (beta * inverse_student_temperature))[:, None] * (s - e / total[:, None])
            if log_means is not None:
                towards = tl.load(log_means + (view * heads + head) * clusters + c, mask=c < clusters, other=0.0)
                towards *= entropy_weight * inverse_student_temperature / (2.0 * batch)
                d += s * (towards[None, :] - tl.sum(s * towards[None, :], axis=1)[:, None])
            at = ((2 * head + view) * batch + b[:, None]) * clusters + c[None, :]
            tl.store(gradient + at, rounded(d, gradient.dtype.element_ty), mask=inside)
    tl.store(losses + tl.program_id(0), loss)


@triton.jit(do_not_specialize=["groups"])
def head_loss_kernel(
    losses,  # [heads, groups] float32
    entropies,  # [heads] float32, or None
    loss,  # [heads] float32
    groups,
    entropy_weight,
    part_block: tl.constexpr,
):
    head = tl.program_id(0).to(tl.int64)
    g = tl.arange(0, part_block)
    sums = tl.zeros((part_block,), tl.float32)
    for first in range(0, groups, part_block):
        sums += tl.load(losses + head * groups + first + g, mask=first + g < groups, other=0.0)
    total = tl.sum(sums, axis=0)
    if entropies is not None:
        total -= entropy_weight * tl.load(entropies + head)
    tl.store(loss + head, total)


def self_distillation_loss(
    inputs: Sequence[Any], options: Sequence[Any], needs: tuple[bool, ...]
) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    students, teachers, prior, weights = (None if x is None else x.contiguous() for x in inputs)
    student_temperature, teacher_temperature, beta, entropy_weight, agreement = options
    assert students is not None
    heads, _, batch, clusters = students.shape
    loss = loss_buffer(students, heads)
    gradient = gradient_buffer(students) if needs[0] else None
    block = block_of(clusters, 1 << 20)
    rows = block_of(TILE // block, 64)
    groups = -(-batch // rows)
    of_teachers, of_students = prior is None, entropy_weight != 0
    cells, means = heads * groups * clusters, heads * clusters
    agreements, own_weights, teacher_sums, student_sums, own_prior, log_means, entropies, losses = workspace(
        students,
        *(heads * batch, batch, cells * of_teachers, 2 * cells * of_students),
        *(means * of_teachers, 2 * means * of_students, heads, heads * groups),
    )
    grid, temperatures = (heads * groups,), (1 / student_temperature, 1 / teacher_temperature)
    tile = {"heads": heads, "clusters": clusters, "rows": rows, "block": block, "num_warps": warps_for(rows * block)}
    if agreement or of_teachers or of_students:
        launch(
            agreement_kernel,
            grid,
            *(students if of_students else None, teachers, agreements, teacher_sums if of_teachers else None),
            *(student_sums, batch, groups, *temperatures),
            **tile,
        )
    if agreement:
        weights = own_weights
        launch(weights_kernel, (-(-batch // PAIRS),), agreements, weights, batch, heads, pairs=PAIRS)
    if of_teachers or of_students:
        launch(
            means_kernel,
            (heads,),
            *(teacher_sums if of_teachers else None, student_sums if of_students else None),
            *(own_prior, log_means, entropies, batch, groups),
            heads=heads,
            clusters=clusters,
            block=block,
            part_block=PARTS,
        )
    launch(
        pairs_kernel,
        grid,
        *(students, teachers, own_prior if of_teachers else prior, weights, log_means if of_students else None),
        *(losses, gradient, batch, groups, *temperatures, beta, entropy_weight),
        **tile,
    )
    ends = entropies if of_students else None
    launch(head_loss_kernel, (heads,), losses, ends, loss, groups, entropy_weight, part_block=PARTS)
    return loss, (gradient, None, None, None)
