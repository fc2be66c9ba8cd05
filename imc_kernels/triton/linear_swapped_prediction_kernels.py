"""The kernels of imc_kernels/triton/linear_swapped_prediction_loss.py, which says how they work together."""

import triton
import triton.language as tl

from imc_kernels.triton.primitives import HELD, load_rows, product, rounded

LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def cosines(
    x, y, inverse_x, inverse_y, i, j, count_x, count_y, dim: tl.constexpr, depth: tl.constexpr, precision: tl.constexpr
):  # fmt: skip
    """Of the rows ``i`` of x and ``j`` of y: [block_i, block_j] float32. Norms that are None are not divided by."""
    s = tl.zeros((i.shape[0], j.shape[0]), tl.float32)
    for first in range(0, dim, depth):
        d = first + tl.arange(0, depth)
        s = product(load_rows(x, i, count_x, d, dim), tl.trans(load_rows(y, j, count_y, d, dim)), s, precision)
    if inverse_x is not None:
        s *= tl.load(inverse_x + i, mask=i < count_x, other=0.0)[:, None]
    if inverse_y is not None:
        s *= tl.load(inverse_y + j, mask=j < count_y, other=0.0)[None, :]
    return s


@triton.jit
def exponent(s, high, low, reference):
    """s + (high + low) - reference, with what the first sum rounds off (Knuth's TwoSum): scalings are as large as the
    scores and cancel against them. An infinity gives NaN."""
    x = s + high
    back = x - s
    return (x - reference) + (((s - (x - back)) + (high - back)) + low)


@triton.jit(do_not_specialize=["count_x", "count_y", "step_x", "step_y", "each"])
def log_sums_kernel(
    x,  # [problems or 1, count_x, dim]
    y,  # [problems or 1, count_y, dim]
    inverse_x,  # of their rows, float32; None: 1
    inverse_y,
    shifts,  # [2, problems, count_y] float32: of s, and what float32 rounds off them; or None
    highs,  # [splits, problems, count_x] float32: the largest of scale s + shift, rounded
    sums,  # [splits, problems, count_x]: of 2 to what is below that
    count_x,
    count_y,
    step_x,  # rows from one problem to the next; 0: one matrix for all
    step_y,
    each,  # rows of y a split
    scale,
    dim: tl.constexpr,
    block_x: tl.constexpr,
    block_y: tl.constexpr,
    depth: tl.constexpr,
    precision: tl.constexpr,
):
    split = tl.program_id(1)
    problem = tl.program_id(2).to(tl.int64)
    x += problem * step_x * dim
    y += problem * step_y * dim
    if inverse_x is not None:
        inverse_x += problem * step_x
    if inverse_y is not None:
        inverse_y += problem * step_y
    i = tl.program_id(0) * block_x + tl.arange(0, block_x)
    high = tl.full((block_x,), -float("inf"), tl.float32)
    total = tl.zeros((block_x,), tl.float32)
    for first in range(split * each, min(split * each + each, count_y), block_y):
        j = first + tl.arange(0, block_y)
        inside = (j < count_y)[None, :]
        s = cosines(x, y, inverse_x, inverse_y, i, j, count_x, count_y, dim, depth, precision) * scale
        total += tl.sum(tl.where(inside, s * 0.0, 0.0), axis=1)  # -infinity, too, gives NaN
        if shifts is not None:
            at = problem * count_y + j
            shift = tl.load(shifts + at, mask=j < count_y, other=0.0)[None, :]
            rest = tl.load(shifts + tl.num_programs(2) * count_y.to(tl.int64) + at, mask=j < count_y, other=0.0)[
                None, :
            ]
            highest = tl.maximum(high, tl.max(tl.where(inside, s + shift, -float("inf")), axis=1))
            e = tl.exp2(exponent(s, shift, rest, highest[:, None]))
        else:
            highest = tl.maximum(high, tl.max(tl.where(inside, s, -float("inf")), axis=1))
            e = tl.exp2(s - highest[:, None])
        total = total * tl.exp2(high - highest) + tl.sum(tl.where(inside, e, 0.0), axis=1)
        high = highest
    at = (split * tl.num_programs(2) + problem) * count_x + i
    tl.store(highs + at, high, mask=i < count_x)
    tl.store(sums + at, total, mask=i < count_x)


@triton.jit(do_not_specialize=["count", "splits", "shares_count"])
def combine_kernel(
    highs,  # [splits, count] float32
    sums,  # [splits, count]
    shares,  # [shares_count] float32 of problems of so many, or None
    scalings,  # [2, count]: log2(share) - the logarithm of the sum, and what float32 rounds off it; or None
    softmaxes,  # [2, count]: the largest and 1 / the sum, or None
    count,
    splits,
    shares_count,
    log_share,  # where there are no shares
    block: tl.constexpr,
):
    i = tl.program_id(0) * block + tl.arange(0, block)
    inside = i < count
    high = tl.full((block,), -float("inf"), tl.float32)
    for split in range(splits):
        high = tl.maximum(high, tl.load(highs + split * count.to(tl.int64) + i, mask=inside, other=0.0))
    total = tl.zeros((block,), tl.float32)
    for split in range(splits):
        at = split * count.to(tl.int64) + i
        of_split = tl.load(highs + at, mask=inside, other=0.0)
        total += tl.load(sums + at, mask=inside, other=1.0) * tl.exp2(of_split - high)
    if scalings is not None:
        share = log_share
        if shares is not None:
            share = tl.log2(tl.load(shares + i % shares_count, mask=inside, other=1.0))
        below = share - tl.log2(total)
        scaling = below - high
        back = scaling - below
        rest = (below - (scaling - back)) - (high + back)
        tl.store(scalings + i, scaling, mask=inside)
        tl.store(scalings + count.to(tl.int64) + i, rest, mask=inside)
    if softmaxes is not None:
        tl.store(softmaxes + i, high, mask=inside)
        tl.store(softmaxes + count.to(tl.int64) + i, 1.0 / total, mask=inside)


@triton.jit
def targets(
    view, zt, wt, inverse_zt, inverse_wt, columns, rows, i, j, batch, k, scale,
    assigned: tl.constexpr, dim: tl.constexpr, depth: tl.constexpr, precision: tl.constexpr,
):  # fmt: skip
    """The sum of the assignments of the samples ``i`` to the prototypes ``j`` over all assigned views but ``view``."""
    inside = (i < batch)[:, None] & (j < k)[None, :]
    target = tl.zeros((i.shape[0], j.shape[0]), tl.float32)
    for a in range(assigned):
        if a != view:
            row = a * batch.to(tl.int64)
            inverse = inverse_zt + row
            s = cosines(zt + row * dim, wt, inverse, inverse_wt, i, j, batch, k, dim, depth, precision) * scale
            column = a * k.to(tl.int64) + j
            shift = tl.load(columns + column, mask=j < k, other=0.0)[None, :]
            rest = tl.load(columns + assigned * k.to(tl.int64) + column, mask=j < k, other=0.0)[None, :]
            high = tl.load(rows + row + i, mask=i < batch, other=0.0)[:, None]
            inverse_sum = tl.load(rows + assigned * batch.to(tl.int64) + row + i, mask=i < batch, other=0.0)
            q = tl.exp2(exponent(s, shift, rest, high)) * inverse_sum[:, None]
            target += tl.where(inside, q, 0.0)
    return target


@triton.jit
def gradient_of_tile(s, target, predicted, weights, view, number, i, j, batch, k, scale, weight, views: tl.constexpr):
    """dL/ds of a tile of cosines of a view, and the rows' factors."""
    row = view * batch.to(tl.int64) + i
    high = tl.load(predicted + row, mask=i < batch, other=0.0)
    inverse = tl.load(predicted + views * batch.to(tl.int64) + row, mask=i < batch, other=0.0)
    factor = tl.full((i.shape[0],), weight, tl.float32)
    if weights is not None:
        factor *= tl.load(weights + row, mask=i < batch, other=0.0)
    p = tl.exp2(s * scale - high[:, None]) * (inverse * number)[:, None]
    g = (p - target) * factor[:, None]
    return tl.where((i < batch)[:, None] & (j < k)[None, :], g, 0.0)


@triton.jit(do_not_specialize=["batch", "k", "each"])
def samples_kernel(
    z,  # [views, batch, dim]
    w,  # [k, dim]
    zt,  # [assigned, batch, teacher_dim]
    wt,  # [k, teacher_dim]
    inverse_z,  # [views, batch] float32
    inverse_w,  # [k], or None
    inverse_zt,  # [assigned, batch]
    inverse_wt,  # [k], or None
    columns,  # [2, assigned, k]: logarithms of their scalings
    rows,  # [2, assigned, batch] of the assignments' softmaxes
    predicted,  # [2, views, batch] of the predictions'
    weights,  # [views, batch] or None
    losses,  # [splits, views, batch]: the sums of target times logit
    along,  # [splits, views, batch], or None where no gradient is needed: of it what is along the sample's embedding
    received,  # [splits, views, batch, dim] float32, or None
    batch,
    k,
    each,  # prototypes a split
    teacher_scale,  # log2(e) / epsilon
    scale,  # log2(e) / temperature
    weight,  # of a row of g
    views: tl.constexpr,
    assigned: tl.constexpr,
    every: tl.constexpr,
    dim: tl.constexpr,
    teacher_dim: tl.constexpr,
    block_samples: tl.constexpr,
    block_k: tl.constexpr,
    depth: tl.constexpr,
    block_dim: tl.constexpr,
    precision: tl.constexpr,
    weights_dtype: tl.constexpr,
    weights_precision: tl.constexpr,
):
    blocks = tl.cdiv(batch, block_samples)
    view = tl.program_id(0) // blocks
    i = tl.program_id(0) % blocks * block_samples + tl.arange(0, block_samples)
    split = tl.program_id(1)
    d = tl.program_id(2) * block_dim + tl.arange(0, block_dim)
    x = z + view * batch.to(tl.int64) * dim
    inverse_x = inverse_z + view * batch.to(tl.int64)
    left_out = view
    number = assigned + 0.0
    if every:
        left_out = assigned
    elif view < assigned:
        number = assigned - 1.0
    row = view * batch.to(tl.int64) + i
    high = tl.load(predicted + row, mask=i < batch, other=0.0)
    aligned = tl.zeros((block_samples,), tl.float32)
    along_rows = tl.zeros((block_samples,), tl.float32)
    sums = tl.zeros((block_samples, block_dim), tl.float32)
    for first in range(split * each, min(split * each + each, k), block_k):
        j = first + tl.arange(0, block_k)
        s = cosines(x, w, inverse_x, inverse_w, i, j, batch, k, dim, depth, precision)
        target = targets(
            left_out, zt, wt, inverse_zt, inverse_wt, columns, rows, i, j, batch, k, teacher_scale,
            assigned, teacher_dim, depth, precision,
        )  # fmt: skip
        aligned += tl.sum(target * (s * scale - high[:, None]), axis=1)
        if received is not None:
            g = gradient_of_tile(s, target, predicted, weights, view, number, i, j, batch, k, scale, weight, views)
            along_rows += tl.sum(g * s, axis=1)
            if inverse_w is not None:
                g *= tl.load(inverse_w + j, mask=j < k, other=0.0)[None, :]
            w_tile = load_rows(w, j, k, d, dim).to(weights_dtype)
            sums = product(rounded(g, weights_dtype), w_tile, sums, weights_precision)
    at = split * views * batch.to(tl.int64) + row
    if tl.program_id(2) == 0:
        tl.store(losses + at, aligned, mask=i < batch)
    if received is not None:
        if tl.program_id(2) == 0:
            tl.store(along + at, along_rows, mask=i < batch)
        inside = (i < batch)[:, None] & (d < dim)[None, :]
        tl.store(received + at[:, None] * dim + d[None, :], sums, mask=inside)


@triton.jit(do_not_specialize=["batch", "splits"])
def finish_kernel(
    z,  # [views, batch, dim]
    inverse_z,  # [views, batch]
    predicted,  # [2, views, batch]
    weights,  # [views, batch] or None
    losses,  # [splits, views, batch]
    along,  # [splits, views, batch] or None
    received,  # [splits, views, batch, dim] or None
    partials,  # [views, batch]
    gradient,  # [views, batch, dim] or None
    batch,
    splits,
    weight,  # of one cross-entropy in the mean
    views: tl.constexpr,
    assigned: tl.constexpr,
    every: tl.constexpr,
    dim: tl.constexpr,
    block_dim: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    count = views * batch.to(tl.int64)
    view = row // batch
    aligned = 0.0
    for split in range(splits):
        aligned += tl.load(losses + split * count + row)
    number = assigned + 0.0
    if not every:
        number = tl.where(view < assigned, assigned - 1.0, number)
    factor = weight * LN2
    if weights is not None:
        factor *= tl.load(weights + row)
    log_sum = -tl.log2(tl.load(predicted + count + row))
    tl.store(partials + row, (number * log_sum - aligned) * factor)
    if gradient is not None:
        inverse = tl.load(inverse_z + row)
        back = 0.0
        for split in range(splits):
            back += tl.load(along + split * count + row)
        back = tl.where(inverse < HELD, back, 0.0)
        for first in range(0, dim, block_dim):
            d = first + tl.arange(0, block_dim)
            sums = tl.zeros((block_dim,), tl.float32)
            for split in range(splits):
                sums += tl.load(received + (split * count + row) * dim + d, mask=d < dim, other=0.0)
            x = tl.load(z + row * dim + d, mask=d < dim, other=0.0).to(tl.float32)
            sums = (sums - x * (inverse * back)) * inverse
            tl.store(gradient + row * dim + d, rounded(sums, gradient.dtype.element_ty), mask=d < dim)


@triton.jit(do_not_specialize=["batch", "k"])
def prototypes_kernel(
    z,  # as above
    w,
    zt,
    wt,
    inverse_z,
    inverse_w,
    inverse_zt,
    inverse_wt,
    columns,
    rows,
    predicted,
    weights,
    gradient,  # [k, dim]
    batch,
    k,
    teacher_scale,
    scale,
    weight,
    views: tl.constexpr,
    assigned: tl.constexpr,
    every: tl.constexpr,
    dim: tl.constexpr,
    teacher_dim: tl.constexpr,
    block_samples: tl.constexpr,
    block_k: tl.constexpr,
    depth: tl.constexpr,
    block_dim: tl.constexpr,
    precision: tl.constexpr,
    weights_dtype: tl.constexpr,
    weights_precision: tl.constexpr,
):
    j = tl.program_id(0) * block_k + tl.arange(0, block_k)
    d = tl.program_id(1) * block_dim + tl.arange(0, block_dim)
    along = tl.zeros((block_k,), tl.float32)
    sums = tl.zeros((block_k, block_dim), tl.float32)
    for first in range(0, batch, block_samples):
        i = first + tl.arange(0, block_samples)
        everything = tl.zeros((block_samples, block_k), tl.float32)
        if every or views > assigned:  # what more than one view predicts
            everything = targets(
                assigned, zt, wt, inverse_zt, inverse_wt, columns, rows, i, j, batch, k, teacher_scale,
                assigned, teacher_dim, depth, precision,
            )  # fmt: skip
        for view in range(views):
            row = view * batch.to(tl.int64)
            inverse = inverse_z + row
            x = z + row * dim
            s = cosines(x, w, inverse, inverse_w, i, j, batch, k, dim, depth, precision)
            target = everything
            number = assigned + 0.0
            if not every and view < assigned:
                target = targets(
                    view, zt, wt, inverse_zt, inverse_wt, columns, rows, i, j, batch, k, teacher_scale,
                    assigned, teacher_dim, depth, precision,
                )  # fmt: skip
                number = assigned - 1.0
            g = gradient_of_tile(s, target, predicted, weights, view, number, i, j, batch, k, scale, weight, views)
            along += tl.sum(g * s, axis=0)
            g *= tl.load(inverse + i, mask=i < batch, other=0.0)[:, None]
            z_tile = load_rows(x, i, batch, d, dim).to(weights_dtype)
            sums = product(tl.trans(rounded(g, weights_dtype)), z_tile, sums, weights_precision)
    if inverse_w is not None:
        inverse_j = tl.load(inverse_w + j, mask=j < k, other=0.0)
        along = tl.where(inverse_j < HELD, along * inverse_j, 0.0)
        x = load_rows(w, j, k, d, dim).to(tl.float32)
        sums = (sums - x * along[:, None]) * inverse_j[:, None]
    at = j.to(tl.int64)[:, None] * dim + d[None, :]
    tl.store(gradient + at, rounded(sums, gradient.dtype.element_ty), mask=(j < k)[:, None] & (d < dim)[None, :])
