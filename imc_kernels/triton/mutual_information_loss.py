"""Mutual information over all V x V view pairs, by the closed form of docs/mathematics.md. With P [B, V C] and U
[B, V K] the softmaxes of all views side by side, every joint distribution is a block of J = P^T U / B, and with m the
mean of U

    H(Y|U) = -sum J log(J / m),   loss = mean_ji H(Y_j|U_i) - b mean_j H(Y_j)  (+ guard).

Launches: the log-sums of the rows of scores, and P; J and its entropies, tile by tile; the entropies of the mean of P;
their sum. Backward through the softmaxes: dL/dP = U G^T + b log(mean P) / V B as a product for each view of U, added up
in a fixed order; dL/dU = P G, G = -log(J / m) / V^2 B. U is never stored: a product takes it from the scores and their
log-sums. Products are exact in float32. Moved: the scores once for the log-sums and once for each product, and G.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from imc_kernels.ops.precision import gradient_buffer
from imc_kernels.triton.launch import block_of, launch, warps_for, workspace
from imc_kernels.triton.primitives import rounded, safe_log, total_kernel

GUARD_WEIGHT = 0.01
CLUSTERS = 64  # of a tile of J, over all views
PROTOTYPES = 64  # of a tile of J, of one view
SAMPLES = 32  # of a step of a product
MOST_COLUMNS = 4096


@triton.jit
def row_log_sum(x, k: tl.constexpr, block: tl.constexpr, scale):
    """The natural log-sum of exp(scale x) of a row; NaN where the row holds an infinity."""
    at = tl.arange(0, block)
    high = -float("inf")
    poison = 0.0
    for first in range(0, k, block):
        s = tl.load(x + first + at, mask=first + at < k, other=-float("inf")).to(tl.float32) * scale
        high = tl.maximum(high, tl.max(s, axis=0))
        poison += tl.sum(tl.where(first + at < k, s * 0.0, 0.0), axis=0)
    total = 0.0
    for first in range(0, k, block):
        s = tl.load(x + first + at, mask=first + at < k, other=-float("inf")).to(tl.float32) * scale
        total += tl.sum(tl.exp(s - high), axis=0)
    return high, tl.log(total) + poison


@triton.jit(do_not_specialize=["batch"])
def rows_kernel(
    logits,  # [views, batch, clusters]
    scores,  # [views, batch, k]
    predictions,  # P [views, batch, clusters] float32
    log_sums,  # [views, batch, 2] float32: maximum of a row of scores, log-sum above it
    guards,  # [views * batch] float32: a row's part of the guard
    batch,
    inverse_temperature,
    limit,
    guard_weight,
    clusters: tl.constexpr,
    k: tl.constexpr,
    cluster_block: tl.constexpr,
    block: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    high, log_total = row_log_sum(scores + row * k, k, block, inverse_temperature)
    tl.store(log_sums + 2 * row, high)
    tl.store(log_sums + 2 * row + 1, log_total)
    high, log_total = row_log_sum(logits + row * clusters, clusters, cluster_block, 1.0)
    excess = 0.0
    for first in range(0, clusters, cluster_block):
        c = first + tl.arange(0, cluster_block)
        x = tl.load(logits + row * clusters + c, mask=c < clusters, other=0.0).to(tl.float32)
        tl.store(predictions + row * clusters + c, tl.exp(x - high - log_total), mask=c < clusters)
        beyond = tl.abs(x) - limit
        excess += tl.sum(tl.where((beyond > 0) & (c < clusters), beyond, 0.0), axis=0)
    tl.store(guards + row, excess * guard_weight)


@triton.jit
def assignments_tile(scores, log_sums, view, b, kk, batch, k: tl.constexpr, inverse_temperature):
    """U of these samples and prototypes of a view, 0 outside."""
    row = view * batch.to(tl.int64) + b
    inside = (b[:, None] < batch) & (kk[None, :] < k)
    s = tl.load(scores + row[:, None] * k + kk[None, :], mask=inside, other=0.0).to(tl.float32)
    high = tl.load(log_sums + 2 * row, mask=b < batch, other=0.0)
    log_total = tl.load(log_sums + 2 * row + 1, mask=b < batch, other=0.0)
    return tl.where(inside, tl.exp(s * inverse_temperature - high[:, None] - log_total[:, None]), 0.0)


@triton.jit
def predictions_at(b, jc, batch, clusters: tl.constexpr):
    """Offsets of P for samples b and columns jc, over the clusters of all views."""
    return (jc // clusters * batch.to(tl.int64) + b) * clusters + jc % clusters


@triton.jit(do_not_specialize=["batch"])
def joint_kernel(
    predictions,  # P [views, batch, clusters] float32
    scores,  # [views, batch, k]
    log_sums,  # [views, batch, 2] float32
    joint,  # [views clusters, views k] float32: log(J / m), or J itself where it is to be made symmetric
    entropies,  # [programs] float32: a tile's part of the mean of H(Y|U)
    batch,
    inverse_temperature,
    views: tl.constexpr,
    clusters: tl.constexpr,
    k: tl.constexpr,
    symmetric: tl.constexpr,
    cluster_block: tl.constexpr,
    prototype_block: tl.constexpr,
    sample_block: tl.constexpr,
):
    prototype_blocks: tl.constexpr = (k + prototype_block - 1) // prototype_block
    column = tl.program_id(0) % (views * prototype_blocks)
    view = column // prototype_blocks
    kk = column % prototype_blocks * prototype_block + tl.arange(0, prototype_block)
    jc = tl.program_id(0) // (views * prototype_blocks) * cluster_block + tl.arange(0, cluster_block)
    product = tl.zeros((cluster_block, prototype_block), tl.float32)
    mean = tl.zeros((prototype_block,), tl.float32)
    for first in range(0, batch, sample_block):
        b = first + tl.arange(0, sample_block)
        u = assignments_tile(scores, log_sums, view, b, kk, batch, k, inverse_temperature)
        at = predictions_at(b[None, :], jc[:, None], batch, clusters)
        p = tl.load(predictions + at, mask=(jc[:, None] < views * clusters) & (b[None, :] < batch), other=0.0)
        product = tl.dot(p, u, product, input_precision="ieee")
        mean += tl.sum(u, axis=0)
    size = batch.to(tl.float32)
    j = product / size
    inside = (jc[:, None] < views * clusters) & (kk[None, :] < k)
    if not symmetric:
        log_j = safe_log(j) - safe_log(mean / size)[None, :]
        entropy = tl.sum(tl.sum(tl.where(inside, -j * log_j, 0.0), axis=1), axis=0)
        tl.store(entropies + tl.program_id(0), entropy / (views * views))
        j = log_j
    at = joint + jc[:, None].to(tl.int64) * (views * k) + view * k + kk[None, :]
    tl.store(at, j, mask=inside)


@triton.jit
def symmetric_tile(joint, pair_at, c, other, clusters: tl.constexpr, stride: tl.constexpr):
    """(J + J^T) / 2 of a pair of views, 0 outside."""
    inside = (c[:, None] < clusters) & (other[None, :] < clusters)
    straight = tl.load(joint + pair_at + c[:, None] * stride + other[None, :], mask=inside, other=0.0)
    turned = tl.load(joint + pair_at + other[None, :] * stride + c[:, None], mask=inside, other=0.0)
    return 0.5 * (straight + turned)


@triton.jit
def symmetric_kernel(
    joint,  # J [views clusters, views clusters] float32
    logarithms,  # the same shape: minus the gradient with respect to J, but for a constant
    entropies,  # [views views] float32: a pair's part of the loss
    entropy_weight,
    views: tl.constexpr,
    clusters: tl.constexpr,
    cluster_block: tl.constexpr,
    step: tl.constexpr,
):
    pair = tl.program_id(0)
    stride: tl.constexpr = views * clusters
    pair_at = (pair // views).to(tl.int64) * clusters * stride + pair % views * clusters
    c = tl.arange(0, cluster_block)
    weight = 1.0 + entropy_weight
    marginal = tl.zeros((cluster_block,), tl.float32)
    for first in range(0, clusters, step):
        j = symmetric_tile(joint, pair_at, c, first + tl.arange(0, step), clusters, stride)
        marginal += tl.sum(j, axis=1)
    log_m = safe_log(marginal)
    entropy = weight * tl.sum(marginal * log_m, axis=0)
    for first in range(0, clusters, step):
        other = first + tl.arange(0, step)
        j = symmetric_tile(joint, pair_at, c, other, clusters, stride)
        # The marginal of the columns is that of the rows, picked by position.
        log_other = tl.sum(tl.where(c[:, None] == other[None, :], log_m[:, None], 0.0), axis=0)
        log_j = safe_log(j)
        entropy -= tl.sum(tl.sum(j * log_j, axis=1), axis=0)
        inside = (c[:, None] < clusters) & (other[None, :] < clusters)
        g = log_j - 0.5 * weight * (log_m[:, None] + log_other[None, :])
        tl.store(logarithms + pair_at + c[:, None] * stride + other[None, :], g, mask=inside)
    tl.store(entropies + pair, entropy / (views * views))


@triton.jit(do_not_specialize=["batch"])
def marginals_kernel(
    predictions,  # P [views, batch, clusters] float32
    log_means,  # [views clusters] float32: log(mean P) times the weight of the entropy
    entropies,  # [programs] float32: minus the weighted entropy of a block of clusters
    batch,
    entropy_weight,
    views: tl.constexpr,
    clusters: tl.constexpr,
    cluster_block: tl.constexpr,
    sample_block: tl.constexpr,
):
    jc = tl.program_id(0) * cluster_block + tl.arange(0, cluster_block)
    inside = jc < views * clusters
    sums = tl.zeros((cluster_block,), tl.float32)
    for first in range(0, batch, sample_block):
        b = first + tl.arange(0, sample_block)
        at = predictions_at(b[:, None], jc[None, :], batch, clusters)
        sums += tl.sum(tl.load(predictions + at, mask=(b[:, None] < batch) & inside[None, :], other=0.0), axis=0)
    mean = sums / batch.to(tl.float32)
    log_mean = safe_log(mean)
    tl.store(log_means + jc, log_mean * entropy_weight, mask=inside)
    entropy = tl.sum(tl.where(inside, mean * log_mean, 0.0), axis=0)
    tl.store(entropies + tl.program_id(0), entropy * entropy_weight / views)


@triton.jit(do_not_specialize=["batch"])
def predictions_gradient_kernel(
    scores,  # [views, batch, k]
    log_sums,  # [views, batch, 2] float32
    logarithms,  # log(J / m) [views clusters, views k] float32
    partials,  # [views, batch, views clusters] float32: U G^T of each view of U, without its factor
    batch,
    inverse_temperature,
    views: tl.constexpr,
    clusters: tl.constexpr,
    k: tl.constexpr,
    cluster_block: tl.constexpr,
    prototype_block: tl.constexpr,
    sample_block: tl.constexpr,
):
    cluster_blocks: tl.constexpr = (views * clusters + cluster_block - 1) // cluster_block
    jc = tl.program_id(0) % cluster_blocks * cluster_block + tl.arange(0, cluster_block)
    view = tl.program_id(0) // cluster_blocks % views
    b = tl.program_id(0) // (cluster_blocks * views) * sample_block + tl.arange(0, sample_block)
    product = tl.zeros((sample_block, cluster_block), tl.float32)
    for first in range(0, k, prototype_block):
        kk = first + tl.arange(0, prototype_block)
        u = assignments_tile(scores, log_sums, view, b, kk, batch, k, inverse_temperature)
        at = logarithms + jc[None, :].to(tl.int64) * (views * k) + view * k + kk[:, None]
        g = tl.load(at, mask=(jc[None, :] < views * clusters) & (kk[:, None] < k), other=0.0)
        product = tl.dot(u, g, product, input_precision="ieee")
    at = (view * batch.to(tl.int64) + b[:, None]) * (views * clusters) + jc[None, :]
    tl.store(partials + at, product, mask=(b[:, None] < batch) & (jc[None, :] < views * clusters))


@triton.jit(do_not_specialize=["batch"])
def logits_gradient_kernel(
    logits,  # [views, batch, clusters]
    predictions,  # P [views, batch, clusters] float32
    partials,  # [views, batch, views clusters] float32
    log_means,  # [views clusters] float32, or None in the symmetric form
    gradient,  # [views, batch, clusters]
    batch,
    limit,
    pair_weight,  # -1 / V^2 B
    marginal_weight,  # 1 / V B
    guard_weight,
    views: tl.constexpr,
    clusters: tl.constexpr,
    cluster_block: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    view = row // batch
    sample = row % batch
    c = tl.arange(0, cluster_block)
    inside = c < clusters
    d = tl.zeros((cluster_block,), tl.float32)
    for other in range(views):
        at = (other * batch.to(tl.int64) + sample) * (views * clusters) + view * clusters + c
        d += tl.load(partials + at, mask=inside, other=0.0)
    d *= pair_weight
    if log_means is not None:
        d += tl.load(log_means + view * clusters + c, mask=inside, other=0.0) * marginal_weight
    p = tl.load(predictions + row * clusters + c, mask=inside, other=0.0)
    d = p * (d - tl.sum(p * d, axis=0))
    x = tl.load(logits + row * clusters + c, mask=inside, other=0.0).to(tl.float32)
    d += tl.where(x > limit, guard_weight, tl.where(x < -limit, -guard_weight, 0.0))
    tl.store(gradient + row * clusters + c, rounded(d, gradient.dtype.element_ty), mask=inside)


@triton.jit
def assignments_gradient(
    predictions,
    logarithms,
    view,
    b,
    kk,
    batch,
    views: tl.constexpr,
    clusters: tl.constexpr,
    k: tl.constexpr,
    cluster_block: tl.constexpr,
):
    """P log(J / m) of these samples and prototypes of a view."""
    product = tl.zeros((b.shape[0], kk.shape[0]), tl.float32)
    for first in range(0, views * clusters, cluster_block):
        jc = first + tl.arange(0, cluster_block)
        at = predictions_at(b[:, None], jc[None, :], batch, clusters)
        p = tl.load(predictions + at, mask=(b[:, None] < batch) & (jc[None, :] < views * clusters), other=0.0)
        at = logarithms + jc[:, None].to(tl.int64) * (views * k) + view * k + kk[None, :]
        g = tl.load(at, mask=(jc[:, None] < views * clusters) & (kk[None, :] < k), other=0.0)
        product = tl.dot(p, g, product, input_precision="ieee")
    return product


@triton.jit(do_not_specialize=["batch"])
def scores_gradient_kernel(
    predictions,  # P [views, batch, clusters] float32
    scores,  # [views, batch, k]
    log_sums,  # [views, batch, 2] float32
    logarithms,  # log(J / m) [views clusters, views k] float32
    gradient,  # [views, batch, k]
    batch,
    inverse_temperature,
    weight,  # -1 / V^2 B temperature
    views: tl.constexpr,
    clusters: tl.constexpr,
    k: tl.constexpr,
    cluster_block: tl.constexpr,
    prototype_block: tl.constexpr,
    sample_block: tl.constexpr,
):
    view = tl.program_id(0) % views
    b = tl.program_id(0) // views * sample_block + tl.arange(0, sample_block)
    along = tl.zeros((sample_block,), tl.float32)
    for first in range(0, k, prototype_block):
        kk = first + tl.arange(0, prototype_block)
        u = assignments_tile(scores, log_sums, view, b, kk, batch, k, inverse_temperature)
        d = assignments_gradient(predictions, logarithms, view, b, kk, batch, views, clusters, k, cluster_block)
        along += tl.sum(u * d, axis=1)
    for first in range(0, k, prototype_block):
        kk = first + tl.arange(0, prototype_block)
        u = assignments_tile(scores, log_sums, view, b, kk, batch, k, inverse_temperature)
        d = assignments_gradient(predictions, logarithms, view, b, kk, batch, views, clusters, k, cluster_block)
        d = u * (d - along[:, None]) * weight
        at = gradient + (view * batch.to(tl.int64) + b[:, None]) * k + kk[None, :]
        tl.store(at, rounded(d, gradient.dtype.element_ty), mask=(b[:, None] < batch) & (kk[None, :] < k))


def mutual_information_loss(
    inputs: Sequence[Tensor], options: Sequence[Any], needs: tuple[bool, ...]
) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    logits, scores = (tensor.contiguous() for tensor in inputs)
    temperature, entropy_weight, limit, symmetric = options
    (views, batch, clusters), k = logits.shape, scores.shape[-1]
    rows, all_clusters, inverse_temperature = views * batch, views * clusters, 1 / temperature
    loss = torch.empty((), dtype=torch.float32, device=logits.device)
    gradients = tuple(gradient_buffer(x) if needed else None for x, needed in zip((logits, scores), needs, strict=True))

    cluster_block = block_of(all_clusters, CLUSTERS, 16)
    prototype_block = block_of(k, PROTOTYPES, 16)
    cluster_blocks = -(-all_clusters // cluster_block)
    tiles = cluster_blocks * views * -(-k // prototype_block)
    cells = all_clusters * views * k
    terms = (views * views if symmetric else tiles, 0 if symmetric else cluster_blocks, rows)
    partial_sums, predictions, log_sums, log_means, joint, logarithms, partials = workspace(
        logits,
        sum(terms),
        rows * clusters,
        2 * rows,
        all_clusters,
        cells,
        cells if symmetric else 0,
        rows * all_clusters if needs[0] else 0,
    )
    entropies, marginals, guards = partial_sums[: sum(terms)].split(terms)
    sizes = {"views": views, "clusters": clusters}
    tile = {"cluster_block": cluster_block, "prototype_block": prototype_block}
    row_block = block_of(clusters, MOST_COLUMNS)

    launch(
        rows_kernel,
        (rows,),
        *(logits, scores, predictions, log_sums, guards, batch, inverse_temperature, limit, GUARD_WEIGHT / rows),
        clusters=clusters,
        k=k,
        cluster_block=row_block,
        block=block_of(k, MOST_COLUMNS),
        num_warps=warps_for(block_of(k, MOST_COLUMNS)),
    )
    launch(
        joint_kernel,
        (tiles,),
        *(predictions, scores, log_sums, joint, entropies, batch, inverse_temperature),
        **sizes,
        k=k,
        symmetric=symmetric,
        **tile,
        sample_block=SAMPLES,
        num_warps=8,
    )
    if symmetric:
        launch(
            symmetric_kernel,
            (views * views,),
            *(joint, logarithms, entropies, entropy_weight),
            **sizes,
            cluster_block=block_of(clusters, clusters * 2, 16),
            step=16,
        )
    else:
        logarithms = joint
        arguments = (predictions, log_means, marginals, batch, entropy_weight)
        launch(marginals_kernel, (cluster_blocks,), *arguments, **sizes, cluster_block=cluster_block, sample_block=64)
    launch(total_kernel, (1,), partial_sums, loss, sum(terms), block=1024)
    if gradients[0] is not None:
        samples = -(-batch // SAMPLES)
        launch(
            predictions_gradient_kernel,
            (samples * views * cluster_blocks,),
            *(scores, log_sums, logarithms, partials, batch, inverse_temperature),
            **sizes,
            k=k,
            **tile,
            sample_block=SAMPLES,
        )
        launch(
            logits_gradient_kernel,
            (rows,),
            *(logits, predictions, partials, None if symmetric else log_means, gradients[0], batch, limit),
            *(-1 / (views * rows), 1 / rows, GUARD_WEIGHT / rows),
            **sizes,
            cluster_block=block_of(clusters, 2 * clusters),
            num_warps=warps_for(row_block),
        )
    if gradients[1] is not None:
        launch(
            scores_gradient_kernel,
            (-(-batch // SAMPLES) * views,),
            *(predictions, scores, log_sums, logarithms, gradients[1], batch, inverse_temperature),
            -inverse_temperature / (views * rows),
            **sizes,
            k=k,
            **tile,
            sample_block=SAMPLES,
        )
    return loss, gradients
