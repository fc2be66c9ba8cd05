"""Batch normalisation of V views of N rows and C channels, x[v][n][c], with each view's mean m and variance s:

    y = a (x - m) + b (+ r),   a = w / sqrt(s + eps),   or max(y, 0)

where r is a residual. Backward, with g = dL/dy, 0 where max(y, 0) held y back, and sums over the rows of a view:

    dL/dx = a (g - sum g / N - (x - m) sum g (x - m) / (N (s + eps)))     dL/dr = g
    dL/dw = sum over views of sum g (x - m) / sqrt(s + eps)               dL/db = sum over views of sum g

Two launches forward, two backward, of the same programs. Each owns some rows of a view, at most MOST_GROUPS of them
share its channels, and some neighbouring channels. The first launch leaves what a program finds of its rows: mean and
squared differences from it (both of x less its first row, which costs no digits where the mean is far above the
deviation), or the sums of g, g (x - m) and x - m. The second adds these up, in every program alike, and finishes; those
of the first rows write what is one per channel: the statistics, the running statistics, the gradients of w and b.

Moved: forward x twice and y once, r once; backward x and g twice, dx once; with a residual and ReLU x twice, g and r
once, dr written and read. Half precision is read and written as it is, all else is float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from imc_kernels.ops.autograd import memory
from imc_kernels.triton.launch import block_of, launch, warps_for, workspace
from imc_kernels.triton.primitives import rounded

TILE = 4096  # elements that a program holds at a time
LINE = 128  # bytes of neighbouring channels
MOST_GROUPS = 128  # of rows of a view
PARTS = 32  # of a view, whose sums of gradients a program adds up at a time
PROGRAMS = 1024  # of a launch: a few for every multiprocessor


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


@triton.jit(do_not_specialize=["rows", "groups", "tiles", "views"])
def statistics_kernel(
    x,  # [views, rows, channels]
    partials,  # [views, groups, 2, channels] float32
    statistics,  # [2, views, channels] float32: means, and sums of squared differences from them
    rows,
    groups,
    tiles,
    views,
    channels: tl.constexpr,
    block_rows: tl.constexpr,
    block: tl.constexpr,
    most_groups: tl.constexpr,
):
    """Of each view: what processes exchange."""
    view, _, _, kk, _ = place(1, tiles, channels, block_rows, block)
    mean, variance = view_moments(x, partials, view, rows, groups, tiles * block_rows, kk, channels, most_groups)
    tl.store(statistics + view * channels + kk, mean, mask=kk < channels)
    tl.store(statistics + (views + view) * channels + kk, variance * rows, mask=kk < channels)


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
    partials,  # [views, groups, 2, channels] float32, or None: mean and variance are given
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
        m = tl.load(mean + at, mask=kk < channels, other=0.0)
        s = tl.load(variance + at, mask=kk < channels, other=0.0)
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
    if weight_gradient is not None or bias_gradient is not None:  # noqa: SIM102  # the same
        if tl.program_id(0) == 0:
            of_weight = tl.zeros((block,), tl.float32)
            of_bias = tl.zeros((block,), tl.float32)
            each = view
            for _turn in range(views):
                sums_v, products_v = view_sums(partials, each, rows, parts, kk, channels, most_parts)
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
        sums, products = view_sums(partials, view, rows, parts, kk, channels, most_parts)
        level = sums / rows
        along = products * inverse * inverse / rows
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


class Plan(NamedTuple):
    """How a view's rows are spread: ``groups`` programs of ``tiles`` tiles, for each block of channels."""

    groups: int
    tiles: int
    block_rows: int
    block: int

    @classmethod
    def of(cls, views: int, rows: int, channels: int, size: int) -> Plan:
        """For elements of ``size`` bytes."""
        block = block_of(channels, LINE // size)
        block_rows = TILE // block
        blocks = -(-channels // block)
        groups = max(1, min(MOST_GROUPS, PROGRAMS // (views * blocks)))
        tiles = -(-rows // (block_rows * groups))
        return cls(-(-rows // (block_rows * tiles)), tiles, block_rows, block)

    def grid(self, views: int, channels: int) -> tuple[int, int]:
        return views * self.groups, -(-channels // self.block)

    def constants(self, channels: int) -> dict[str, int]:
        warps = warps_for(self.block_rows * self.block, 16)
        return {"channels": channels, "block_rows": self.block_rows, "block": self.block, "num_warps": warps}


Running = tuple[Tensor, Tensor, float]  # mean and variance, float32 [C], that a call moves, and how far


def rows_of(x: Tensor, views: int) -> Tensor:
    """[V*B, C, ...] -> [V, N, C], contiguous; no copy of one whose channels lie together."""
    return memory(x.movedim(1, -1).reshape(views, -1, x.shape[1]))


def memory_like(x: Tensor) -> Tensor:
    """Of the shape and dtype of ``x``, whose channels lie together."""
    order = (0, *range(2, x.dim()), 1)[: x.dim()]
    return torch.empty_permuted(x.shape, order, dtype=x.dtype, device=x.device)


class Sweep:
    """Launches over the rows of some maps [V*B, C, ...], all by one plan."""

    def __init__(self, inputs: Sequence[Any], views: int, eps: float, relu: bool) -> None:
        self.maps, self.weight, self.bias, self.residual = inputs
        self.views, self.eps, self.relu = views, eps, relu
        self.x = rows_of(self.maps, views)
        _, rows, self.channels = self.x.shape
        plan = Plan.of(views, rows, self.channels, self.x.itemsize)
        self.spread = (rows, plan.groups, plan.tiles)
        self.grid, self.constants = plan.grid(views, self.channels), plan.constants(self.channels)

    def rows(self, maps: Tensor | None) -> Tensor | None:
        return None if maps is None else rows_of(maps, self.views)

    def of_views(self) -> Tensor:
        return self.x.new_empty(size=(self.views, self.channels), dtype=torch.float32)

    def moments(self) -> Tensor:
        """Of each group of rows."""
        (partials,) = workspace(self.x, 2 * self.grid[0] * self.channels)
        launch(moments_kernel, self.grid, self.x, partials, *self.spread, **self.constants)
        return partials

    def normalise(self, partials: Tensor | None, mean: Tensor, variance: Tensor, running: Running | None) -> Tensor:
        """The output; from partials the statistics too."""
        output = memory_like(self.maps)
        launch(
            normalise_kernel,
            self.grid,
            *(self.x, self.weight, self.bias, self.rows(self.residual), partials, self.rows(output), mean, variance),
            *(running or (None, None, 0.0)),
            *(self.eps, *self.spread, self.views),
            relu=self.relu,
            most_groups=MOST_GROUPS,
            **self.constants,
        )
        return output

    def gradient_sums(self, mean: Tensor, variance: Tensor, grad_output: Tensor) -> tuple[Tensor, Tensor]:
        """Of each group of rows, [V, groups, 3, C]; and what of grad_output passes ReLU, as far as that was asked."""
        held_back = self.relu and self.residual is not None
        passed = memory_like(self.maps) if held_back else None
        (partials,) = workspace(self.x, 3 * self.grid[0] * self.channels)
        launch(
            gradient_sums_kernel,
            self.grid,
            *(self.x, self.weight, self.bias, self.rows(self.residual) if held_back else None, mean, variance),
            *(self.rows(grad_output), self.rows(passed), partials, self.eps, *self.spread),
            relu=self.relu,
            **self.constants,
        )
        return partials, grad_output if passed is None else passed

    def gradients(
        self, mean: Tensor, variance: Tensor, partials: Tensor, groups: int, passed: Tensor, needs: Sequence[bool]
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Of the input, the weight and the bias, from ``groups`` partial sums of each view."""
        of_input = memory_like(self.maps) if needs[0] else None
        of_weight, of_bias = (mean.new_empty(size=(self.channels,)) if need else None for need in needs[1:3])
        if any(needs[:3]):
            launch(
                gradient_kernel,
                self.grid,
                *(self.x, self.weight, self.bias, mean, variance, self.rows(passed), partials),
                *(self.rows(of_input), of_weight, of_bias, self.eps, *self.spread, groups, self.views),
                relu=self.relu and self.residual is None,
                most_parts=PARTS,
                **self.constants,
            )
        return of_input, of_weight, of_bias


def per_view_batch_norm(
    inputs: Sequence[Any], options: Sequence[Any], needs: Sequence[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """The output, and mean and variance [V, C]. Behind the options may stand running statistics, to be moved."""
    views, eps, relu, *rest = options
    running: Running | None = rest[0] if rest else None
    sweep = Sweep(inputs, views, eps, relu)
    mean, variance = sweep.of_views(), sweep.of_views()
    return sweep.normalise(sweep.moments(), mean, variance, running), mean, variance


def per_view_batch_norm_backward(
    inputs: Sequence[Any],
    saved: Sequence[Tensor],
    grad_output: Tensor,
    options: Sequence[Any],
    needs: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    if not any(needs[:3]) and not options[2]:
        return None, None, None, grad_output
    sweep = Sweep(inputs, *options[:3])
    mean, variance = saved
    partials, passed = sweep.gradient_sums(mean, variance, grad_output)
    gradients = sweep.gradients(mean, variance, partials, sweep.spread[1], passed, needs)
    return *gradients, passed if needs[3] else None


def statistics(maps: Tensor, views: int) -> Tensor:
    """Means and sums of squared differences from them: float32 [2, V, C]."""
    sweep = Sweep((maps, None, None, None), views, 0.0, False)
    found = sweep.x.new_empty(size=(2, views, sweep.channels), dtype=torch.float32)
    rows, groups, tiles = sweep.spread
    grid = (views, sweep.grid[1])
    launch(
        statistics_kernel,
        grid,
        *(sweep.x, sweep.moments(), found, rows, groups, tiles, views),
        most_groups=MOST_GROUPS,
        **sweep.constants,
    )
    return found
