"""The kernels of mutual_information_loss.py, where their launches and the mathematics stand."""

import triton
import triton.language as tl

from imc_kernels.triton.primitives import rounded, safe_log


@triton.jit
def load_rows(x, rows, at, count, k: tl.constexpr):
    """These rows and columns of x [count, k], 0 outside, and what is inside."""
    inside = (rows[:, None] < count) & (at[None, :] < k)
    return tl.load(x + rows[:, None] * k + at[None, :], mask=inside, other=0.0).to(tl.float32), inside


@triton.jit
def row_log_sums(x, rows, count, k: tl.constexpr, block: tl.constexpr, scale):
    """The maxima of rows of x, and the natural log-sums of scale x above them; NaN for a row with an infinity."""
    at = tl.arange(0, block)
    s, inside = load_rows(x, rows, at, count, k)
    high = tl.max(tl.where(inside, s, -float("inf")), axis=1)
    poison = tl.sum(s * 0.0, axis=1)
    for first in range(block, k, block):
        more, more_inside = load_rows(x, rows, first + at, count, k)
        high = tl.maximum(high, tl.max(tl.where(more_inside, more, -float("inf")), axis=1))
        poison += tl.sum(more * 0.0, axis=1)
    total = tl.sum(tl.where(inside, tl.exp((s - high[:, None]) * scale), 0.0), axis=1)
    for first in range(block, k, block):
        more, more_inside = load_rows(x, rows, first + at, count, k)
        total += tl.sum(tl.where(more_inside, tl.exp((more - high[:, None]) * scale), 0.0), axis=1)
    return high, tl.log(total) + poison


@triton.jit(do_not_specialize=["count"])
def rows_kernel(
    logits,  # [views batch, clusters]
    scores,  # [views batch, k]
    predictions,  # P [views batch, clusters] float32
    log_sums,  # [views batch, 2] float32: maximum of a row of scores; log-sum, over the temperature, above it
    guards,  # [programs] float32: the rows' part of the guard
    count,  # views batch
    inverse_temperature,
    limit,
    guard_weight,
    clusters: tl.constexpr,
    k: tl.constexpr,
    row_block: tl.constexpr,
    cluster_block: tl.constexpr,
    block: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * row_block + tl.arange(0, row_block)
    high, log_total = row_log_sums(scores, rows, count, k, block, inverse_temperature)
    tl.store(log_sums + 2 * rows, high, mask=rows < count)
    tl.store(log_sums + 2 * rows + 1, log_total, mask=rows < count)
    high, log_total = row_log_sums(logits, rows, count, clusters, cluster_block, 1.0)
    guard = 0.0
    for first in range(0, clusters, cluster_block):
        c = first + tl.arange(0, cluster_block)
        x, inside = load_rows(logits, rows, c, count, clusters)
        p = tl.exp(x - high[:, None] - log_total[:, None])
        tl.store(predictions + rows[:, None] * clusters + c[None, :], p, mask=inside)
        beyond = tl.abs(x) - limit
        guard += tl.sum(tl.sum(tl.where((beyond > 0) & inside, beyond, 0.0), axis=1), axis=0)
    tl.store(guards + tl.program_id(0), guard * guard_weight)


@triton.jit
def assignments_tile(scores, log_sums, view, b, kk, batch, k: tl.constexpr, inverse_temperature):
    """U of these samples and prototypes of a view, 0 outside."""
    row = view * batch.to(tl.int64) + b[:, None]
    inside = (b[:, None] < batch) & (kk[None, :] < k)
    s = tl.load(scores + row * k + kk[None, :], mask=inside, other=0.0).to(tl.float32)
    high = tl.load(log_sums + 2 * row, mask=b[:, None] < batch, other=0.0)
    log_total = tl.load(log_sums + 2 * row + 1, mask=b[:, None] < batch, other=0.0)
    return tl.where(inside, tl.exp((s - high) * inverse_temperature - log_total), 0.0)


@triton.jit
def predictions_at(b, jc, batch, clusters: tl.constexpr):
    """Offsets of P for samples b and columns jc, over the clusters of all views."""
    return (jc // clusters * batch.to(tl.int64) + b) * clusters + jc % clusters


@triton.jit
def joint_tile(views: tl.constexpr, k: tl.constexpr, cluster_block: tl.constexpr, prototype_block: tl.constexpr):
    """This program's view of U, its prototypes, and its clusters of all views."""
    prototype_blocks: tl.constexpr = (k + prototype_block - 1) // prototype_block
    column = tl.program_id(0) % (views * prototype_blocks)
    kk = column % prototype_blocks * prototype_block + tl.arange(0, prototype_block)
    jc = tl.program_id(0) // (views * prototype_blocks) * cluster_block + tl.arange(0, cluster_block)
    return column // prototype_blocks, kk, jc


@triton.jit
def conditional_entropy(j, mean, inside, views: tl.constexpr):
    """log(J / m) of a tile, and its part of the mean of H(Y|U)."""
    log_j = safe_log(j) - safe_log(mean)[None, :]
    return log_j, tl.sum(tl.sum(tl.where(inside, -j * log_j, 0.0), axis=1), axis=0) / (views * views)


@triton.jit(do_not_specialize=["batch"])
def joint_kernel(
    predictions,  # P [views, batch, clusters] float32
    scores,  # [views, batch, k]
    log_sums,  # [views, batch, 2] float32
    joint,  # [views clusters, views k] float32: log(J / m), or J itself, or B J
    entropies,  # [programs] float32: a tile's part of the mean of H(Y|U); None: J is asked for
    batch,
    inverse_temperature,
    views: tl.constexpr,
    clusters: tl.constexpr,
    k: tl.constexpr,
    summed: tl.constexpr,  # B J is asked for
    cluster_block: tl.constexpr,
    prototype_block: tl.constexpr,
    sample_block: tl.constexpr,
):
    view, kk, jc = joint_tile(views, k, cluster_block, prototype_block)
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
    j = product if summed else product / size
    inside = (jc[:, None] < views * clusters) & (kk[None, :] < k)
    if entropies is not None:
        j, entropy = conditional_entropy(j, mean / size, inside, views)
        tl.store(entropies + tl.program_id(0), entropy)
    at = joint + jc[:, None].to(tl.int64) * (views * k) + view * k + kk[None, :]
    tl.store(at, j, mask=inside)


@triton.jit
def entropies_kernel(
    joint,  # N J of all processes [views clusters, views k] float32, which becomes log(J / m)
    means,  # N m [views k] float32
    entropies,  # [programs] float32: a tile's part of the mean of H(Y|U)
    samples,  # N [] float32
    views: tl.constexpr,
    clusters: tl.constexpr,
    k: tl.constexpr,
    cluster_block: tl.constexpr,
    prototype_block: tl.constexpr,
):
    view, kk, jc = joint_tile(views, k, cluster_block, prototype_block)
    size = tl.load(samples)
    inside = (jc[:, None] < views * clusters) & (kk[None, :] < k)
    at = joint + jc[:, None].to(tl.int64) * (views * k) + view * k + kk[None, :]
    mean = tl.load(means + view * k + kk, mask=kk < k, other=0.0) / size
    log_j, entropy = conditional_entropy(tl.load(at, mask=inside, other=0.0) / size, mean, inside, views)
    tl.store(entropies + tl.program_id(0), entropy)
    tl.store(at, log_j, mask=inside)


@triton.jit
def symmetric_tile(joint, pair_at, c, other, clusters: tl.constexpr, stride: tl.constexpr):
    """(J + J^T) / 2 of a pair of views, 0 outside."""
    inside = (c[:, None] < clusters) & (other[None, :] < clusters)
    straight = tl.load(joint + pair_at + c[:, None].to(tl.int64) * stride + other[None, :], mask=inside, other=0.0)
    turned = tl.load(joint + pair_at + other[None, :].to(tl.int64) * stride + c[:, None], mask=inside, other=0.0)
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
        tl.store(logarithms + pair_at + c[:, None].to(tl.int64) * stride + other[None, :], g, mask=inside)
    tl.store(entropies + pair, entropy / (views * views))


@triton.jit(do_not_specialize=["batch"])
def marginals_kernel(
    predictions,  # P [views, batch, clusters] float32
    sums,  # N mean P of all processes [views clusters] float32, or None where there is one
    log_means,  # [views clusters] float32: log(mean P) times the weight of the entropy
    entropies,  # [programs] float32: minus the weighted entropy of a block of clusters
    samples,  # N [] float32, or None
    batch,
    entropy_weight,
    views: tl.constexpr,
    clusters: tl.constexpr,
    cluster_block: tl.constexpr,
    sample_block: tl.constexpr,
):
    jc = tl.program_id(0) * cluster_block + tl.arange(0, cluster_block)
    inside = jc < views * clusters
    if sums is not None:
        mean = tl.load(sums + jc, mask=inside, other=0.0) / tl.load(samples)
    else:
        mean = tl.zeros((cluster_block,), tl.float32)
        for first in range(0, batch, sample_block):
            b = first + tl.arange(0, sample_block)
            at = predictions_at(b[:, None], jc[None, :], batch, clusters)
            mean += tl.sum(tl.load(predictions + at, mask=(b[:, None] < batch) & inside[None, :], other=0.0), axis=0)
        mean /= batch.to(tl.float32)
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


@triton.jit
def share(samples, batch):
    """Of this process's samples in those of all."""
    return 1.0 if samples is None else batch / tl.load(samples)


@triton.jit(do_not_specialize=["batch"])
def logits_gradient_kernel(
    logits,  # [views, batch, clusters]
    predictions,  # P [views, batch, clusters] float32
    partials,  # [views, batch, views clusters] float32
    log_means,  # [views clusters] float32, or None in the symmetric form
    gradient,  # [views, batch, clusters]
    samples,  # [] float32, those of all processes, or None where there is one
    batch,
    limit,
    pair_weight,  # -1 / V^2 B
    marginal_weight,  # 1 / V B
    guard_weight,
    views: tl.constexpr,
    clusters: tl.constexpr,
    cluster_block: tl.constexpr,
    sample_block: tl.constexpr,
):
    blocks = tl.cdiv(batch, sample_block)
    view = (tl.program_id(0) // blocks).to(tl.int64)
    b = tl.program_id(0) % blocks * sample_block + tl.arange(0, sample_block)
    c = tl.arange(0, cluster_block)
    inside = (b[:, None] < batch) & (c[None, :] < clusters)
    d = tl.zeros((sample_block, cluster_block), tl.float32)
    for other in range(views):
        at = (other * batch.to(tl.int64) + b[:, None]) * (views * clusters) + view * clusters + c[None, :]
        d += tl.load(partials + at, mask=inside, other=0.0)
    d *= pair_weight
    if log_means is not None:
        log_mean = tl.load(log_means + view * clusters + c, mask=c < clusters, other=0.0)
        d += log_mean[None, :] * marginal_weight
    at = (view * batch + b[:, None]) * clusters + c[None, :]
    p = tl.load(predictions + at, mask=inside, other=0.0)
    d -= tl.sum(p * d, axis=1)[:, None]
    d = p * (d - tl.sum(p * d, axis=1)[:, None])  # twice: where p is 1, d less its mean is below the last digit of both
    x = tl.load(logits + at, mask=inside, other=0.0).to(tl.float32)
    d += tl.where(x > limit, guard_weight, tl.where(x < -limit, -guard_weight, 0.0))
    d *= share(samples, batch)
    tl.store(gradient + at, rounded(d, gradient.dtype.element_ty), mask=inside)


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
    samples,  # [] float32 or None
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
    weight *= share(samples, batch)
    # The mean of d under u, from d at the largest u: where that is 1, d less its mean is below the last digit of both.
    high = tl.zeros((sample_block,), tl.float32)
    centre, mass, rest = high, high, high  # rest: the sum of u (d - centre)
    for first in range(0, k, prototype_block):
        kk = first + tl.arange(0, prototype_block)
        u = assignments_tile(scores, log_sums, view, b, kk, batch, k, inverse_temperature)
        d = assignments_gradient(predictions, logarithms, view, b, kk, batch, views, clusters, k, cluster_block)
        peak = tl.max(u, axis=1)
        at_peak = tl.max(tl.where(u == peak[:, None], d, -float("inf")), axis=1)
        moved = tl.where(peak > high, at_peak, centre)
        rest += mass * (centre - moved) + tl.sum(u * (d - moved[:, None]), axis=1)
        mass += tl.sum(u, axis=1)
        centre, high = moved, tl.maximum(high, peak)
    mean = rest / mass
    for first in range(0, k, prototype_block):
        kk = first + tl.arange(0, prototype_block)
        u = assignments_tile(scores, log_sums, view, b, kk, batch, k, inverse_temperature)
        d = assignments_gradient(predictions, logarithms, view, b, kk, batch, views, clusters, k, cluster_block)
        d = u * ((d - centre[:, None]) - mean[:, None]) * weight
        at = gradient + (view * batch.to(tl.int64) + b[:, None]) * k + kk[None, :]
        tl.store(at, rounded(d, gradient.dtype.element_ty), mask=(b[:, None] < batch) & (kk[None, :] < k))
