"""The kernels of log_dot_product_loss.py, where their launches and the mathematics stand."""

from __future__ import annotations

import triton
import triton.language as tl

from imc_kernels.triton.primitives import SMALLEST_NORMAL, rounded, safe_log


@triton.jit
def predict(logits, head, view, b, c, batch, clusters: tl.constexpr):
    """The logits of these samples of a view, 0 outside, and their softmax; NaN for a row with an infinity."""
    inside = (b[:, None] < batch) & (c[None, :] < clusters)
    at = ((2 * head + view) * batch + b[:, None]) * clusters + c[None, :]
    x = tl.load(logits + at, mask=inside, other=0.0).to(tl.float32)
    high = tl.max(tl.where(c[None, :] < clusters, x, -float("inf")), axis=1)
    e = tl.where(inside, tl.exp(x - high[:, None]), 0.0)
    poison = tl.sum(x * 0.0, axis=1)
    total = tl.where(b < batch, tl.sum(e, axis=1) + poison, 1.0)
    return x, e / total[:, None]


@triton.jit
def smooth(p, b, c, batch, clusters: tl.constexpr, smoothing):
    inside = (b[:, None] < batch) & (c[None, :] < clusters)
    return tl.where(inside, (1.0 - smoothing) * p + smoothing / clusters, 0.0)


@triton.jit
def peak_of(x):
    """Columns of numbers >= 0 as their largest, and the sum of the others."""
    peak = tl.max(x, axis=0)
    is_peak = x == peak[None, :]
    count = tl.sum(is_peak.to(tl.float32), axis=0)
    # A column of NaN has no peak.
    return peak, tl.sum(tl.where(is_peak, 0.0, x), axis=0) + tl.maximum(count - 1.0, 0.0) * peak


@triton.jit
def add_peaks(peak, rest, other_peak, other_rest):
    return tl.maximum(peak, other_peak), (rest + other_rest) + tl.minimum(peak, other_peak)


@triton.jit
def load_parts(parts, first, c, groups, clusters: tl.constexpr, group_block: tl.constexpr):
    g = first + tl.arange(0, group_block)
    inside = (g[:, None] < groups) & (c[None, :] < clusters)
    return tl.load(parts + g[:, None].to(tl.int64) * clusters + c[None, :], mask=inside, other=0.0)


@triton.jit
def head_peak(peaks, rests, c, groups, clusters: tl.constexpr, group_block: tl.constexpr):
    """A head's sums, from those of its programs."""
    peak = tl.zeros(c.shape, tl.float32)
    rest = tl.zeros(c.shape, tl.float32)
    for first in range(0, groups, group_block):
        own, below = peak_of(load_parts(peaks, first, c, groups, clusters, group_block))
        below += tl.sum(load_parts(rests, first, c, groups, clusters, group_block), axis=0)
        peak, rest = add_peaks(peak, rest, own, below)
    return peak, rest


@triton.jit
def head_sum(means, c, groups, clusters: tl.constexpr, group_block: tl.constexpr):
    """The sum of the predictions of one view of a head."""
    sums = tl.zeros(c.shape, tl.float32)
    for first in range(0, groups, group_block):
        sums += tl.sum(load_parts(means, first, c, groups, clusters, group_block), axis=0)
    return sums


@triton.jit
def head_log_mean(means, c, count, groups, clusters: tl.constexpr, group_block: tl.constexpr):
    """The mean prediction of one view of a head, and its logarithm."""
    mean = head_sum(means, c, groups, clusters, group_block) / count
    return mean, safe_log(mean)


@triton.jit
def samples_in_all(samples, batch):
    """Of the batch, over all processes where it is spread: float32."""
    return batch.to(tl.float32) if samples is None else tl.load(samples)


@triton.jit
def compare(x, y, peak, rest):
    """d of the rows of both views, and r."""
    d_x = tl.sum(x * ((peak[None, :] - x) + rest[None, :]), axis=1)
    d_y = tl.sum(y * ((peak[None, :] - y) + rest[None, :]), axis=1)
    return d_x, d_y, tl.sum(x * y, axis=1)


@triton.jit
def inverse(x, numerator):
    """numerator / x, or 0 where the logarithm of x is taken of the smallest normal number, and has no gradient."""
    return tl.where(x < SMALLEST_NORMAL, 0.0, numerator / x)


@triton.jit
def excess(x, limit):
    """What a logit has beyond +-limit."""
    return tl.where(x > limit, x - limit, tl.where(x < -limit, x + limit, 0.0))


@triton.jit(do_not_specialize=["batch", "groups"])
def sums_kernel(
    logits,  # [heads, 2, batch, clusters]
    peaks,  # [heads, groups, clusters] float32: the largest q of a program's rows
    rests,  # [heads, groups, clusters] float32: the sum of the others
    means,  # [2, heads, groups, clusters] float32: the sum of p of each view
    batch,
    groups,  # programs of a head
    smoothing,
    heads: tl.constexpr,
    clusters: tl.constexpr,
    rows: tl.constexpr,
    block: tl.constexpr,
):
    part = tl.program_id(0).to(tl.int64) * clusters
    head = (tl.program_id(0) // groups).to(tl.int64)
    b = tl.program_id(0) % groups * rows + tl.arange(0, rows)
    c = tl.arange(0, block)
    _, p_x = predict(logits, head, 0, b, c, batch, clusters)
    _, p_y = predict(logits, head, 1, b, c, batch, clusters)
    peak_x, rest_x = peak_of(smooth(p_x, b, c, batch, clusters, smoothing))
    peak_y, rest_y = peak_of(smooth(p_y, b, c, batch, clusters, smoothing))
    peak, rest = add_peaks(peak_x, rest_x, peak_y, rest_y)
    tl.store(peaks + part + c, peak, mask=c < clusters)
    tl.store(rests + part + c, rest, mask=c < clusters)
    tl.store(means + part + c, tl.sum(p_x, axis=0), mask=c < clusters)
    tl.store(means + groups.to(tl.int64) * (heads * clusters) + part + c, tl.sum(p_y, axis=0), mask=c < clusters)


@triton.jit(do_not_specialize=["batch", "groups", "parts"])
def compare_kernel(
    logits,  # [heads, 2, batch, clusters]
    peaks,  # [heads, parts, clusters] float32
    rests,  # [heads, parts, clusters] float32
    over_peaks,  # [heads, groups, clusters] float32: the same of q / N d, or None
    over_rests,  # [heads, groups, clusters] float32
    losses,  # [heads, groups] float32: a program's part of a head's loss
    samples,  # [] float32, those of all processes, or None where there is one
    batch,
    groups,
    parts,
    smoothing,
    limit,
    guard_weight,
    clusters: tl.constexpr,
    rows: tl.constexpr,
    block: tl.constexpr,
    group_block: tl.constexpr,
):
    part = tl.program_id(0).to(tl.int64) * clusters
    head = (tl.program_id(0) // groups).to(tl.int64)
    b = tl.program_id(0) % groups * rows + tl.arange(0, rows)
    c = tl.arange(0, block)
    start = head * parts * clusters
    peak, rest = head_peak(peaks + start, rests + start, c, parts, clusters, group_block)
    x, p_x = predict(logits, head, 0, b, c, batch, clusters)
    y, p_y = predict(logits, head, 1, b, c, batch, clusters)
    q_x = smooth(p_x, b, c, batch, clusters, smoothing)
    q_y = smooth(p_y, b, c, batch, clusters, smoothing)
    d_x, d_y, r = compare(q_x, q_y, peak, rest)
    log_r = safe_log(r)
    terms = tl.where(b < batch, (safe_log(d_x) - log_r) + (safe_log(d_y) - log_r), 0.0)
    beyond_x, beyond_y = excess(x, limit), excess(y, limit)
    guard = tl.sum(tl.sum(beyond_x * beyond_x + beyond_y * beyond_y, axis=1), axis=0) * (0.5 * guard_weight)
    count = samples_in_all(samples, batch)
    tl.store(losses + tl.program_id(0), (tl.sum(terms, axis=0) + guard) / (2.0 * count))
    if over_peaks is not None:
        inverse_rows = 1.0 / (2.0 * count)
        peak_x, rest_x = peak_of(q_x * inverse(d_x, inverse_rows)[:, None])
        peak_y, rest_y = peak_of(q_y * inverse(d_y, inverse_rows)[:, None])
        over_peak, over_rest = add_peaks(peak_x, rest_x, peak_y, rest_y)
        tl.store(over_peaks + part + c, over_peak, mask=c < clusters)
        tl.store(over_rests + part + c, over_rest, mask=c < clusters)


@triton.jit(do_not_specialize=["batch", "groups", "parts"])
def loss_kernel(
    losses,  # [heads, groups] float32
    means,  # [2, heads, parts, clusters] float32
    loss,  # [heads] float32
    samples,  # [] float32 or None
    batch,
    groups,
    parts,
    entropy_weight,
    heads: tl.constexpr,
    clusters: tl.constexpr,
    block: tl.constexpr,
    group_block: tl.constexpr,
    loss_block: tl.constexpr,
):
    head = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, block)
    g = tl.arange(0, loss_block)
    sums = tl.zeros((loss_block,), tl.float32)
    for first in range(0, groups, loss_block):
        sums += tl.load(losses + head * groups + first + g, mask=first + g < groups, other=0.0)
    count = samples_in_all(samples, batch)
    entropy = 0.0
    for view in range(2):
        start = (view * heads + head) * parts * clusters
        mean, log_mean = head_log_mean(means + start, c, count, parts, clusters, group_block)
        entropy -= 0.5 * tl.sum(mean * log_mean, axis=0)
    if samples is not None:  # it belongs to no process: each gives its samples' share
        entropy *= batch / count
    tl.store(loss + head, tl.sum(sums, axis=0) - entropy_weight * entropy)


@triton.jit(do_not_specialize=["groups"])
def process_sums_kernel(
    peaks,  # [heads, groups, clusters] float32
    rests,  # [heads, groups, clusters] float32
    means,  # [2, heads, groups, clusters] float32, or None
    sums,  # [heads, clusters, 4, or 2 without means] float32: peak and rest, then the means' sums
    groups,
    heads: tl.constexpr,
    clusters: tl.constexpr,
    block: tl.constexpr,
    group_block: tl.constexpr,
):
    head = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, block)
    start = head * groups * clusters
    peak, rest = head_peak(peaks + start, rests + start, c, groups, clusters, group_block)
    width: tl.constexpr = 2 if means is None else 4
    to = sums + (head * clusters + c) * width
    tl.store(to, peak, mask=c < clusters)
    tl.store(to + 1, rest, mask=c < clusters)
    if means is not None:
        for view in tl.static_range(2):
            own = means + view * groups.to(tl.int64) * (heads * clusters) + start
            tl.store(to + 2 + view, head_sum(own, c, groups, clusters, group_block), mask=c < clusters)


@triton.jit
def differentiate(x, p, q, pair, w, w_r, peak, rest, over_peak, over_rest, entropy, smoothing, limit, guard_weight):
    """The gradient of the logits x of one view."""
    over = q * w[:, None]
    # Compared, not only subtracted: where the compiler fuses the product, it would not cancel against its own peak.
    others = tl.where(over < over_peak[None, :], over_peak[None, :] - over, 0.0) + over_rest[None, :]
    contrast = ((peak[None, :] - q) + rest[None, :]) * w[:, None] + others - pair * w_r[:, None]
    d = (1.0 - smoothing) * contrast + entropy[None, :]
    return p * (d - tl.sum(p * d, axis=1)[:, None]) + guard_weight * excess(x, limit)


@triton.jit(do_not_specialize=["batch", "groups", "parts"])
def gradient_kernel(
    logits,  # [heads, 2, batch, clusters]
    peaks,  # [heads, parts, clusters] float32
    rests,  # [heads, parts, clusters] float32
    over_peaks,  # [heads, parts, clusters] float32
    over_rests,  # [heads, parts, clusters] float32
    means,  # [2, heads, parts, clusters] float32
    gradient,  # [heads, 2, batch, clusters]
    samples,  # [] float32 or None
    batch,
    groups,
    parts,
    smoothing,
    entropy_weight,
    limit,
    guard_weight,
    heads: tl.constexpr,
    clusters: tl.constexpr,
    rows: tl.constexpr,
    block: tl.constexpr,
    group_block: tl.constexpr,
):
    head = (tl.program_id(0) // groups).to(tl.int64)
    b = tl.program_id(0) % groups * rows + tl.arange(0, rows)
    c = tl.arange(0, block)
    start = head * parts * clusters
    peak, rest = head_peak(peaks + start, rests + start, c, parts, clusters, group_block)
    over_peak, over_rest = head_peak(over_peaks + start, over_rests + start, c, parts, clusters, group_block)
    other_means = means + parts.to(tl.int64) * (heads * clusters)
    count = samples_in_all(samples, batch)
    _, log_x = head_log_mean(means + start, c, count, parts, clusters, group_block)
    _, log_y = head_log_mean(other_means + start, c, count, parts, clusters, group_block)
    x, p_x = predict(logits, head, 0, b, c, batch, clusters)
    y, p_y = predict(logits, head, 1, b, c, batch, clusters)
    q_x = smooth(p_x, b, c, batch, clusters, smoothing)
    q_y = smooth(p_y, b, c, batch, clusters, smoothing)
    d_x, d_y, r = compare(q_x, q_y, peak, rest)
    inverse_rows = 1.0 / (2.0 * count)
    w_x, w_y, w_r = inverse(d_x, inverse_rows), inverse(d_y, inverse_rows), inverse(r, 2.0 * inverse_rows)
    weight = entropy_weight * inverse_rows
    guard = guard_weight * inverse_rows
    d_x = differentiate(
        x, p_x, q_x, q_y, w_x, w_r, peak, rest, over_peak, over_rest, weight * log_x, smoothing, limit, guard
    )
    d_y = differentiate(
        y, p_y, q_y, q_x, w_y, w_r, peak, rest, over_peak, over_rest, weight * log_y, smoothing, limit, guard
    )
    inside = (b[:, None] < batch) & (c[None, :] < clusters)
    at = gradient + (2 * head * batch + b[:, None]) * clusters + c[None, :]
    tl.store(at, rounded(d_x, gradient.dtype.element_ty), mask=inside)
    at += batch.to(tl.int64) * clusters
    tl.store(at, rounded(d_y, gradient.dtype.element_ty), mask=inside)
