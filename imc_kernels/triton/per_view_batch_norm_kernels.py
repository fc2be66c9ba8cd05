"""The kernels of per_view_batch_norm.py, where their launches and the mathematics stand."""

from __future__ import annotations

import triton
import triton.language as tl

from imc_kernels.triton.primitives import rounded


@triton.jit
def place(groups, tiles, channels: tl.constexpr, block_rows: tl.constexpr, block: tl.constexpr):
    """This program's view and group of rows, its first row, its channels, and the cells of a tile from its first on."""
    view = (tl.program_id(0) // groups).to(tl.int64)
    group = (tl.program_id(0) % groups).to(tl.int64)
    kk = tl.program_id(1) * block + tl.arange(0, block)
    return view, group, group * tiles * block_rows, kk, tl.arange(0, block_rows)[:, None] * channels + kk[None, :]


@triton.jit
def filled(first, rows, block_rows: tl.constexpr):
    """How many rows a tile has from row ``first`` on."""
    return tl.minimum(tl.maximum(rows - first, 0), block_rows).to(tl.int32)


@triton.jit
def inside(first, rows, kk, channels: tl.constexpr, block_rows: tl.constexpr):
    return (tl.arange(0, block_rows) < filled(first, rows, block_rows))[:, None] & (kk < channels)[None, :]


@triton.jit
def per_channel(vector, kk, channels: tl.constexpr, otherwise):
    """float32 elements of a vector [channels], or ``otherwise`` of one that is None."""
    if vector is None:
        return tl.full(kk.shape, otherwise, tl.float32)
    return tl.load(vector + kk, mask=kk < channels, other=otherwise).to(tl.float32)


@triton.jit(do_not_specialize=["rows", "groups", "tiles"])
def moments_kernel(
    x,  # [views, rows, channels]
    partials,  # [views, groups, 2, channels] float32: means less the view's first row, and squared differences
    rows,
    groups,
    tiles,  # of a program
    channels: tl.constexpr,
    block_rows: tl.constexpr,
    block: tl.constexpr,
):
    view, group, row, kk, cells = place(groups, tiles, channels, block_rows, block)
    x += view * rows * channels
    shift = per_channel(x, kk, channels, 0.0)
    mean = tl.zeros((block,), tl.float32)
    squares = tl.zeros((block,), tl.float32)
    count = 0.0
    for tile in range(tiles):
        first = row + tile * block_rows
        held = inside(first, rows, kk, channels, block_rows)
        away = tl.load(x + first * channels + cells, mask=held, other=0.0).to(tl.float32)
        away = tl.where(held, away - shift[None, :], 0.0)
        more = filled(first, rows, block_rows).to(tl.float32)
        tile_mean = tl.sum(away, axis=0) / tl.maximum(more, 1.0)
        apart = tl.where(held, away - tile_mean[None, :], 0.0)
        both = tl.maximum(count + more, 1.0)
        step = tile_mean - mean
        mean += step * (more / both)
        squares += tl.sum(apart * apart, axis=0) + step * step * (count * more / both)
        count += more
    to = partials + (view * groups + group) * 2 * channels + kk
    tl.store(to, mean, mask=kk < channels)
    tl.store(to + channels, squares, mask=kk < channels)


@triton.jit
def view_moments(x, partials, view, rows, groups, group_rows, kk, channels: tl.constexpr, most_groups: tl.constexpr):
    """Mean and variance of a view, from what its programs found."""
    g = tl.arange(0, most_groups)
    counts = tl.minimum(tl.maximum(rows - g.to(tl.int64) * group_rows, 0), group_rows).to(tl.float32)[:, None]
    known = (g < groups)[:, None] & (kk < channels)[None, :]
    at = partials + view * groups * 2 * channels + g[:, None] * (2 * channels) + kk[None, :]
    means = tl.load(at, mask=known, other=0.0)
    mean = tl.sum(means * counts, axis=0) / rows
    apart = tl.where(known, means - mean[None, :], 0.0)
    squares = tl.load(at + channels, mask=known, other=0.0) + apart * apart * counts
    return per_channel(x + view * rows * channels, kk, channels, 0.0) + mean, tl.sum(squares, axis=0) / rows


@triton.jit
def inverse_deviation(variance, eps):
    return 1.0 / tl.sqrt_rn(variance + eps)


@triton.jit
def affine(weight, bias, variance, eps, kk, channels: tl.constexpr):
    """Scale and bias. NaN for an infinite weight, whose products ReLU would let pass as 0."""
    w = per_channel(weight, kk, channels, 1.0)
    return inverse_deviation(variance, eps) * w, per_channel(bias, kk, channels, 0.0) + (w - w)


@triton.jit
def normalised(x, residual, start, cells, held, mean, scale, bias):
    """x - m, and y before ReLU, of a tile."""
    centred = tl.load(x + start + cells, mask=held, other=0.0).to(tl.float32) - mean[None, :]
    value = scale[None, :] * centred + bias[None, :]
    if residual is not None:
        value += tl.load(residual + start + cells, mask=held, other=0.0).to(tl.float32)
    return centred, value


@triton.jit(do_not_specialize=["rows", "groups", "tiles", "views"])
def normalise_kernel(
    x,  # [views, rows, channels]
    weight,  # [channels] or None
    bias,  # [channels] or None
    residual,  # [views, rows, channels] or None
    partials,  # [views, groups, 2, channels] float32, or None where mean and variance are given
    output,  # [views, rows, channels]
    mean,  # [views, channels] float32
    variance,  # [views, channels] float32
    running_mean,  # [channels] float32, moved view by view, or None
    running_variance,  # [channels] float32 or None
    momentum,
    eps,
    rows,
    groups,
    tiles,
    views,
    relu: tl.constexpr,
    channels: tl.constexpr,
    block_rows: tl.constexpr,
    block: tl.constexpr,
    most_groups: tl.constexpr,
):
    view, group, row, kk, cells = place(groups, tiles, channels, block_rows, block)
    group_rows = tiles * block_rows
    at = view * channels + kk
    if partials is None:
        m = per_channel(mean + view * channels, kk, channels, 0.0)
        s = per_channel(variance + view * channels, kk, channels, 1.0)
    else:
        m, s = view_moments(x, partials, view, rows, groups, group_rows, kk, channels, most_groups)
        if group == 0:
            tl.store(mean + at, m, mask=kk < channels)
            tl.store(variance + at, s, mask=kk < channels)
    if running_mean is not None:  # noqa: SIM102  # known as it compiles, unlike the next
        if tl.program_id(0) == 0:
            moved_mean = per_channel(running_mean, kk, channels, 0.0)
            moved_variance = per_channel(running_variance, kk, channels, 0.0)
            unbiased = rows / tl.maximum(rows - 1, 1).to(tl.float32)
            each = view
            for _turn in range(views):
                m_v, s_v = view_moments(x, partials, each, rows, groups, group_rows, kk, channels, most_groups)
                each += 1
                moved_mean = moved_mean * (1 - momentum) + m_v * momentum
                moved_variance = moved_variance * (1 - momentum) + s_v * unbiased * momentum
            tl.store(running_mean + kk, moved_mean, mask=kk < channels)
            tl.store(running_variance + kk, moved_variance, mask=kk < channels)
    scale, offset = affine(weight, bias, s, eps, kk, channels)
    for tile in range(tiles):
        first = row + tile * block_rows
        start = (view * rows + first) * channels
        held = inside(first, rows, kk, channels, block_rows)
        _, value = normalised(x, residual, start, cells, held, m, scale, offset)
        if relu:
            value = tl.where(value < 0, 0.0, value)  # NaN stays
        tl.store(output + start + cells, rounded(value, output.dtype.element_ty), mask=held)


@triton.jit(do_not_specialize=["rows", "groups", "tiles"])
def gradient_sums_kernel(
    x,  # [views, rows, channels]
    weight,  # [channels] or None
    bias,  # [channels] or None
    residual,  # [views, rows, channels] or None
    mean,  # [views, channels] float32
    variance,  # [views, channels] float32
    grad_output,  # [views, rows, channels]
    passed,  # [views, rows, channels], g: what passes ReLU; or None: it is not asked for
    partials,  # [views, groups, 3, channels] float32: sums of g, g (x - m) and x - m
    eps,
    rows,
    groups,
    tiles,
    relu: tl.constexpr,
    channels: tl.constexpr,
    block_rows: tl.constexpr,
    block: tl.constexpr,
):
    view, group, row, kk, cells = place(groups, tiles, channels, block_rows, block)
    m = per_channel(mean + view * channels, kk, channels, 0.0)
    scale, offset = affine(weight, bias, per_channel(variance + view * channels, kk, channels, 1.0), eps, kk, channels)
    sums = tl.zeros((block,), tl.float32)
    products = tl.zeros((block,), tl.float32)
    beside = tl.zeros((block,), tl.float32)
    for tile in range(tiles):
        first = row + tile * block_rows
        held = inside(first, rows, kk, channels, block_rows)
        start = (view * rows + first) * channels
        centred, value = normalised(x, residual, start, cells, held, m, scale, offset)
        g = tl.load(grad_output + start + cells, mask=held, other=0.0).to(tl.float32)
        if relu:
            g = tl.where(value <= 0, 0.0, g)
        if passed is not None:
            tl.store(passed + start + cells, rounded(g, passed.dtype.element_ty), mask=held)
        centred = tl.where(held, centred, 0.0)
        sums += tl.sum(g, axis=0)
        products += tl.sum(g * centred, axis=0)
        beside += tl.sum(centred, axis=0)
    to = partials + (view * groups + group) * 3 * channels + kk
    tl.store(to, sums, mask=kk < channels)
    tl.store(to + channels, products, mask=kk < channels)
    tl.store(to + 2 * channels, beside, mask=kk < channels)


@triton.jit
def view_sums(partials, view, rows, parts, kk, channels: tl.constexpr, most_parts: tl.constexpr):
    """The sums of g and g (x - m) over a view. That of x - m is 0 but for the rounding of m, which the second must not
    carry times the first."""
    sums = tl.zeros(kk.shape, tl.float32)
    products = tl.zeros(kk.shape, tl.float32)
    beside = tl.zeros(kk.shape, tl.float32)
    for first in range(0, parts, most_parts):
        part = first + tl.arange(0, most_parts)
        known = (part < parts)[:, None] & (kk < channels)[None, :]
        at = partials + view * parts * 3 * channels + part[:, None] * (3 * channels) + kk[None, :]
        sums += tl.sum(tl.load(at, mask=known, other=0.0), axis=0)
        products += tl.sum(tl.load(at + channels, mask=known, other=0.0), axis=0)
        beside += tl.sum(tl.load(at + 2 * channels, mask=known, other=0.0), axis=0)
    return sums, products - beside / rows * sums


@triton.jit(do_not_specialize=["rows", "groups", "tiles", "parts", "views"])
def gradient_kernel(
    x,  # [views, rows, channels]
    weight,  # [channels] or None
    bias,  # [channels] or None
    mean,  # [views, channels] float32
    variance,  # [views, channels] float32
    grad_output,  # [views, rows, channels], or what of it passed ReLU
    partials,  # [views, parts, 3, channels] float32
    gradient,  # [views, rows, channels], or None where it is not needed
    weight_gradient,  # [channels] or None
    bias_gradient,  # [channels] or None
    count,  # [] float64: the rows that the partial sums are of, those of all processes; or None: this view's
    eps,
    rows,
    groups,
    tiles,
    parts,
    views,
    relu: tl.constexpr,
    channels: tl.constexpr,
    block_rows: tl.constexpr,
    block: tl.constexpr,
    most_parts: tl.constexpr,  # added up at a time
):
    view, _, row, kk, cells = place(groups, tiles, channels, block_rows, block)
    size = rows if count is None else tl.load(count).to(tl.float32)
    if weight_gradient is not None or bias_gradient is not None:  # noqa: SIM102  # the same
        if tl.program_id(0) == 0:
            of_weight = tl.zeros((block,), tl.float32)
            of_bias = tl.zeros((block,), tl.float32)
            each = view
            for _turn in range(views):
                sums_v, products_v = view_sums(partials, each, size, parts, kk, channels, most_parts)
                s_v = per_channel(variance + each * channels, kk, channels, 1.0)
                each += 1
                of_weight += products_v * inverse_deviation(s_v, eps)
                of_bias += sums_v
            if weight_gradient is not None:
                tl.store(weight_gradient + kk, of_weight, mask=kk < channels)
            if bias_gradient is not None:
                tl.store(bias_gradient + kk, of_bias, mask=kk < channels)
    if gradient is not None:
        m = per_channel(mean + view * channels, kk, channels, 0.0)
        s = per_channel(variance + view * channels, kk, channels, 1.0)
        scale, offset = affine(weight, bias, s, eps, kk, channels)
        inverse = inverse_deviation(s, eps)
        sums, products = view_sums(partials, view, size, parts, kk, channels, most_parts)
        level = sums / size
        along = products * inverse * inverse / size
        for tile in range(tiles):
            first = row + tile * block_rows
            held = inside(first, rows, kk, channels, block_rows)
            start = (view * rows + first) * channels
            centred, value = normalised(x, None, start, cells, held, m, scale, offset)
            g = tl.load(grad_output + start + cells, mask=held, other=0.0).to(tl.float32)
            if relu:
                g = tl.where(value <= 0, 0.0, g)
            result = scale[None, :] * (g - level[None, :] - centred * along[None, :])
            tl.store(gradient + start + cells, rounded(result, gradient.dtype.element_ty), mask=held)


@triton.jit(do_not_specialize=["rows", "groups", "tiles", "views"])
def process_moments_kernel(
    x,  # [views, rows, channels]
    partials,  # [views, groups, 2, channels] float32
    moments,  # [views 2 channels + 1] float64: means, squared differences from them, and the number of rows
    rows,
    groups,
    tiles,
    views,
    channels: tl.constexpr,
    block_rows: tl.constexpr,
    block: tl.constexpr,
    most_groups: tl.constexpr,
):
    view = tl.program_id(0).to(tl.int64)
    kk = tl.program_id(1) * block + tl.arange(0, block)
    m, s = view_moments(x, partials, view, rows, groups, tiles * block_rows, kk, channels, most_groups)
    to = moments + view * 2 * channels + kk
    tl.store(to, m.to(tl.float64), mask=kk < channels)
    tl.store(to + channels, (s * rows).to(tl.float64), mask=kk < channels)
    if view == 0 and tl.program_id(1) == 0:
        tl.store(moments + views.to(tl.int64) * 2 * channels, rows.to(tl.float64))


@triton.jit(do_not_specialize=["processes", "views"])
def group_moments_kernel(
    gathered,  # [processes, views 2 channels + 1] float64: what each found
    mean,  # [views, channels] float32
    variance,  # [views, channels] float32
    count,  # [] float64: the rows of a view in all processes
    running_mean,  # [channels] float32, moved view by view, or None
    running_variance,  # [channels] float32 or None
    momentum,
    processes,
    views,
    channels: tl.constexpr,
    block: tl.constexpr,
):
    kk = tl.program_id(0) * block + tl.arange(0, block)
    held = kk < channels
    stride = views.to(tl.int64) * 2 * channels + 1
    if running_mean is not None:
        moved_mean = per_channel(running_mean, kk, channels, 0.0)
        moved_variance = per_channel(running_variance, kk, channels, 0.0)
    for view in range(views):
        size = tl.zeros((), tl.float64)
        m = tl.zeros((block,), tl.float64)
        squares = tl.zeros((block,), tl.float64)
        at = gathered
        for _process in range(processes):
            more = tl.load(at + stride - 1)
            both = tl.maximum(size + more, 1.0)
            step = tl.load(at + view * 2 * channels + kk, mask=held, other=0.0) - m
            m += step * (more / both)
            squares += tl.load(at + (view * 2 + 1) * channels + kk, mask=held, other=0.0)
            squares += step * step * (size * more / both)
            size += more
            at += stride
        s = squares / size
        tl.store(mean + view * channels + kk, m.to(tl.float32), mask=held)
        tl.store(variance + view * channels + kk, s.to(tl.float32), mask=held)
        if running_mean is not None:
            unbiased = s * (size / tl.maximum(size - 1, 1.0))
            moved_mean = moved_mean * (1 - momentum) + m.to(tl.float32) * momentum
            moved_variance = moved_variance * (1 - momentum) + unbiased.to(tl.float32) * momentum
        if tl.program_id(0) == 0:
            tl.store(count, size)  # the same of every view
    if running_mean is not None:
        tl.store(running_mean + kk, moved_mean, mask=held)
        tl.store(running_variance + kk, moved_variance, mask=held)


@triton.jit(do_not_specialize=["views"])
def own_affine_kernel(
    own,  # [views, 3, channels] float32: sums of g, g (x - m) and x - m over this process's rows
    everybody,  # [views, 3, channels] float32: over those of all processes
    variance,  # [views, channels] float32
    count,  # [] float64
    weight_gradient,  # [channels] or None
    bias_gradient,  # [channels] or None
    eps,
    views,
    channels: tl.constexpr,
    block: tl.constexpr,
):
    """This process's part: over processes the parts add up."""
    kk = tl.program_id(0) * block + tl.arange(0, block)
    size = tl.load(count).to(tl.float32)
    of_weight = tl.zeros((block,), tl.float32)
    of_bias = tl.zeros((block,), tl.float32)
    for view in range(views):
        at = view * 3 * channels
        sums = per_channel(own + at, kk, channels, 0.0)
        off = (
            per_channel(everybody + at + 2 * channels, kk, channels, 0.0) / size
        )  # of the mean from the rows', rounded
        products = per_channel(own + at + channels, kk, channels, 0.0) - off * sums
        of_weight += products * inverse_deviation(per_channel(variance + view * channels, kk, channels, 1.0), eps)
        of_bias += sums
    if weight_gradient is not None:
        tl.store(weight_gradient + kk, of_weight, mask=kk < channels)
    if bias_gradient is not None:
        tl.store(bias_gradient + kk, of_bias, mask=kk < channels)
