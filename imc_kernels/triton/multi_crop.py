"""Random crops. A program makes one tile of one crop, from the source pixels to the finished result.

The resize is two small matrix products, rows then columns of the box, whose weights are computed in place; the blur is
two more. Crops of up to MOST_SIDE pixels are one tile: one launch. Of larger ones a tile's margin of 4 pixels is
computed by its neighbours too, and the contrast needs the mean luma of all tiles as it is at that moment: a launch
before computes every tile up to there and leaves its sum, for crops whose contrast changes.

Any size and any image: boxes are read in pieces of CHUNK x CHUNK pixels, and a tile reads its part of the box only.
Operations: for a tile of T x T from a part of h x w pixels, 2 C T w (h + T) of the resize, in float32: 0.4 MFLOP for
32 x 32 from 32 x 32. Floor of the bytes: C bytes a pixel of the box in, C numbers a pixel of the crop out. Moved: that
for one tile; for more, the margins of tiles again, and the box twice where the contrast changes. Views of one image
read it once each. A channels-last result is written in three strided stores that together fill its lines.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from imc_kernels.ops.crop_parameters import Column
from imc_kernels.triton.launch import launch, workspace
from imc_kernels.triton.primitives import product, rounded

MOST_SIDE = 64  # of a tile
RADIUS = tl.constexpr(4)  # of the blur
CHUNK = 32  # source pixels, each way, in one product

COLUMNS = tl.constexpr(len(Column))
TOP, LEFT, HEIGHT, WIDTH = (tl.constexpr(int(c)) for c in (Column.TOP, Column.LEFT, Column.HEIGHT, Column.WIDTH))
FACTORS = tl.constexpr(int(Column.BRIGHTNESS))  # then those of contrast, saturation and hue
BLUR, FLIP, JITTER = (tl.constexpr(int(c)) for c in (Column.BLUR, Column.FLIP, Column.JITTER))
GRAYSCALE, ORDER = (tl.constexpr(int(c)) for c in (Column.GRAYSCALE, Column.ORDER))


@triton.jit
def source_range(low, high, length, size):
    """Where the source pixels of the results low to high (included) lie, one or two too many at either end."""
    reach = 2 * tl.maximum(length, size)
    first = ((2 * low + 1) * length - reach) // (2 * size) - 1
    last = ((2 * high + 1) * length + reach) // (2 * size) + 2
    return tl.maximum(first, 0), tl.minimum(last, length)


@triton.jit
def resize_weights(at, source, length, size):
    """Weights, integers, of the source pixels [S] of a box of ``length`` in the results ``at`` [T]: float32 [T, S].

    The triangle filter in units of 1 / (2 size) pixels, as in the specification. Results outside the crop weigh 0.
    """
    centre = (2 * at[:, None] + 1) * length
    distance = (2 * source[None, :] + 1) * size - centre
    weight = 2 * tl.maximum(length, size) - tl.maximum(distance, -distance)
    inside = (source < length)[None, :] & (at >= 0)[:, None] & (at < size)[:, None] & (weight > 0)
    return tl.where(inside, weight, 0).to(tl.float32)


@triton.jit
def luma(red, green, blue):
    return 0.299 * red + 0.587 * green + 0.114 * blue


@triton.jit
def clamp01(x):
    return tl.minimum(tl.maximum(x, 0.0), 1.0)


@triton.jit
def trapezium(low, chroma, x, centre, offset, sign):
    """A channel of HSV: low + chroma * clamp01(offset + sign * |x - centre|)."""
    return low + chroma * clamp01(offset + sign * tl.abs(x - centre))


@triton.jit
def rotated(red, green, blue, turns):
    """The hue of HSV turned; saturation and value stay. With h in sixths of a turn each channel is a trapezium of h."""
    high = tl.maximum(tl.maximum(red, green), blue)
    low = tl.minimum(tl.minimum(red, green), blue)
    chroma = high - low
    difference = tl.where(high == green, blue - red, red - green)
    sector = tl.where(high == green, 2.0, 4.0)
    difference = tl.where(high == red, green - blue, difference)
    sector = tl.where(high == red, 0.0, sector)
    h = difference / tl.where(chroma > 0, chroma, 1.0) + (sector + 6 * turns)
    h = tl.where(h < 0, h + 6, h)
    h = tl.where(h >= 6, h - 6, h)
    return (
        trapezium(low, chroma, h, 3.0, -1.0, 1.0),
        trapezium(low, chroma, h, 2.0, 2.0, -1.0),
        trapezium(low, chroma, h, 4.0, 2.0, -1.0),
    )


@triton.jit
def blur_weights(at, size, sigma):
    """Weights [T, T] of the pixels ``at`` [T] in the blurred ones: 9 taps, folded back at the edges of the crop."""
    period = tl.maximum(2 * (size - 1), 1)
    weights = tl.zeros((at.shape[0], at.shape[0]), tl.float32)
    total = 0.0
    for tap in tl.static_range(-RADIUS, RADIUS + 1):
        z = tap / sigma
        weight = tl.exp(-0.5 * z * z)
        total += weight
        folded = (at + tap + 2 * RADIUS * period) % period  # at is -4 or more
        folded = tl.where(folded < size, folded, period - folded)
        weights += tl.where(folded[:, None] == at[None, :], weight, 0.0)
    return weights / total


@triton.jit(do_not_specialize=["batch"])
def multi_crop_kernel(
    images,  # uint8 [M, height, width, channels]
    indices,  # int64 [batch]
    parameters,  # float32 [views, batch, COLUMNS]
    crops,  # [views, batch, size, size, channels] by the strides, or None: only the sums are wanted
    sums,  # float32 [views * batch, tiles]: luma of the tiles where the contrast changes, or None: one tile is all
    batch,
    factor_red,
    factor_green,
    factor_blue,
    offset_red,
    offset_green,
    offset_blue,
    height: tl.constexpr,
    width: tl.constexpr,
    channels: tl.constexpr,
    size: tl.constexpr,
    stride_pixel: tl.constexpr,
    stride_channel: tl.constexpr,
    side: tl.constexpr,  # of a tile
    step: tl.constexpr,  # between tiles
    tiles: tl.constexpr,  # along an edge
    tiles_block: tl.constexpr,
    chunk: tl.constexpr,
):
    crop = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1)
    p = parameters + crop * COLUMNS
    jitter = tl.load(p + JITTER) > 0
    if crops is None:
        if not jitter:
            return
    margin: tl.constexpr = (side - step) // 2 if tiles > 1 else 0
    y = tile // tiles * step - margin + tl.arange(0, side)
    x = tile % tiles * step - margin + tl.arange(0, side)
    inside = ((y >= 0) & (y < size))[:, None] & ((x >= 0) & (x < size))[None, :]
    edge = tl.arange(0, side)
    own = (edge >= margin) & (edge < margin + step)  # not of the margin
    own = own[:, None] & own[None, :] & inside

    # The resize.
    box_height, box_width = tl.load(p + HEIGHT).to(tl.int32), tl.load(p + WIDTH).to(tl.int32)
    image = images + tl.load(indices + crop % batch) * (height * width * channels)
    image += (tl.load(p + TOP).to(tl.int32) * width + tl.load(p + LEFT).to(tl.int32)) * channels
    flip = tl.load(p + FLIP) > 0
    across = tl.where(flip, size - 1 - x, x)
    low_y = tl.maximum(tile // tiles * step - margin, 0)
    low_x = tl.maximum(tile % tiles * step - margin, 0)
    high_y = tl.minimum(tile // tiles * step - margin + side, size) - 1
    high_x = tl.minimum(tile % tiles * step - margin + side, size) - 1
    first_y, last_y = source_range(low_y, high_y, box_height, size)
    first_x, last_x = source_range(
        tl.where(flip, size - 1 - high_x, low_x), tl.where(flip, size - 1 - low_x, high_x), box_width, size
    )
    red = tl.zeros((side, side), tl.float32)
    green = tl.zeros((side, side), tl.float32)
    blue = tl.zeros((side, side), tl.float32)
    total_y = tl.zeros((side,), tl.float32)
    total_x = tl.zeros((side,), tl.float32)
    for start_x in range(first_x, last_x, chunk):
        source_x = start_x + tl.arange(0, chunk)
        weights_x = resize_weights(across, source_x, box_width, size)
        total_x += tl.sum(weights_x, axis=1)
        total_y = tl.zeros((side,), tl.float32)
        for start_y in range(first_y, last_y, chunk):
            source_y = start_y + tl.arange(0, chunk)
            weights_y = resize_weights(y, source_y, box_height, size)
            total_y += tl.sum(weights_y, axis=1)
            at = image + (source_y[:, None] * width + source_x[None, :]) * channels
            known = (source_y < last_y)[:, None] & (source_x < last_x)[None, :]
            for channel in tl.static_range(channels):
                pixels = tl.load(at + channel, mask=known, other=0).to(tl.float32)
                narrow = product(weights_y, pixels, None, "ieee")
                resized = product(narrow, tl.trans(weights_x), None, "ieee")
                if channel == 0:
                    red += resized
                elif channel == 1:
                    green += resized
                else:
                    blue += resized
    total_y = 1.0 / tl.where(total_y > 0, total_y, 1.0)
    total_x = 1.0 / tl.where(total_x > 0, total_x * 255, 1.0)
    red = red * total_y[:, None] * total_x[None, :]
    if channels == 3:
        green = green * total_y[:, None] * total_x[None, :]
        blue = blue * total_y[:, None] * total_x[None, :]

    # The jitter, in the order of lexicographic rank ``order``: of the numbers still left, 4 bits each, take one a step.
    if jitter:
        order = tl.load(p + ORDER).to(tl.int32)
        left = 0x3210
        for turn in range(4):
            rank = tl.where(turn == 0, 6, tl.where(turn == 1, 2, 1))
            shift = order // rank * 4
            order = order % rank
            operation = (left >> shift) & 15
            left = (left & ((1 << shift) - 1)) | ((left >> (shift + 4)) << shift)
            factor = tl.load(p + FACTORS + operation)
            if operation == 0:
                red = clamp01(red * factor)
                if channels == 3:
                    green, blue = clamp01(green * factor), clamp01(blue * factor)
            elif operation == 1:
                gray = luma(red, green, blue) if channels == 3 else red
                if sums is None:
                    mean = tl.sum(tl.where(inside, gray, 0.0)) / (size * size)
                elif crops is None:
                    mean = tl.sum(tl.where(own, gray, 0.0))
                    tl.store(sums + crop * (tiles * tiles) + tile, mean)
                else:
                    each = tl.arange(0, tiles_block)
                    known = each < tiles * tiles
                    mean = tl.sum(tl.load(sums + crop * (tiles * tiles) + each, mask=known, other=0.0)) / (size * size)
                shift_mean = mean * (1 - factor)
                red = clamp01(red * factor + shift_mean)
                if channels == 3:
                    green, blue = clamp01(green * factor + shift_mean), clamp01(blue * factor + shift_mean)
            elif channels == 3:
                if operation == 2:
                    gray = luma(red, green, blue) * (1 - factor)
                    red, green = clamp01(red * factor + gray), clamp01(green * factor + gray)
                    blue = clamp01(blue * factor + gray)
                else:
                    red, green, blue = rotated(red, green, blue, factor)

    if crops is not None:
        if channels == 3:
            if tl.load(p + GRAYSCALE) > 0:
                red = luma(red, green, blue)
                green = red
                blue = red
        sigma = tl.load(p + BLUR)
        if sigma > 0:
            down, along = blur_weights(y, size, sigma), tl.trans(blur_weights(x, size, sigma))
            red = product(product(down, red, None, "ieee"), along, None, "ieee")
            if channels == 3:
                green = product(product(down, green, None, "ieee"), along, None, "ieee")
                blue = product(product(down, blue, None, "ieee"), along, None, "ieee")
        out = crops + crop * (size * size * channels) + (y[:, None] * size + x[None, :]) * stride_pixel
        dtype = crops.dtype.element_ty
        tl.store(out, rounded(red * factor_red + offset_red, dtype), mask=own)
        if channels == 3:
            tl.store(out + stride_channel, rounded(green * factor_green + offset_green, dtype), mask=own)
            tl.store(out + 2 * stride_channel, rounded(blue * factor_blue + offset_blue, dtype), mask=own)


def multi_crop(
    images: Tensor,
    indices: Tensor,
    parameters: Tensor,
    size: int,
    dtype: torch.dtype,
    mean: Sequence[float],
    std: Sequence[float],
    channels_last: bool,
) -> Tensor:
    if not images.is_contiguous():  # a copy of the batch, not of the data set
        images, indices = images[indices].contiguous(), torch.arange(len(indices), device=images.device)
    indices, parameters = indices.contiguous(), parameters.contiguous()
    views, batch, _ = parameters.shape
    _, height, width, channels = images.shape
    shape = (views, batch, size, size, channels) if channels_last else (views, batch, channels, size, size)
    crops = torch.empty(shape, dtype=dtype, device=images.device)
    factors, offsets = [1 / s for s in std], [-m / s for m, s in zip(mean, std, strict=True)]
    arguments = (batch, *(factors * 3)[:3], *(offsets * 3)[:3])
    constants = {
        "height": height,
        "width": width,
        "channels": channels,
        "size": size,
        "stride_pixel": channels if channels_last else 1,
        "stride_channel": 1 if channels_last else size * size,
        "chunk": CHUNK,
    }
    if size <= MOST_SIDE:
        side = max(16, triton.next_power_of_2(size))
        launch(
            multi_crop_kernel, (views * batch, 1), images, indices, parameters, crops, None, *arguments, **constants,
            side=side, step=side, tiles=1, tiles_block=1, num_warps=4 if side <= 32 else 8,
        )  # fmt: skip
    else:
        step = MOST_SIDE - 8
        tiles = triton.cdiv(size, step)
        (sums,) = workspace(parameters, views * batch * tiles * tiles)
        constants |= {
            "side": MOST_SIDE,
            "step": step,
            "tiles": tiles,
            "tiles_block": triton.next_power_of_2(tiles * tiles),
            "num_warps": 8,
        }
        grid = (views * batch, tiles * tiles)
        launch(multi_crop_kernel, grid, images, indices, parameters, None, sums, *arguments, **constants)
        launch(multi_crop_kernel, grid, images, indices, parameters, crops, sums, *arguments, **constants)
    return crops.movedim(-1, -3) if channels_last else crops
