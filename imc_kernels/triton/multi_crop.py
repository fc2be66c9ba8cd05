"""Random crops. A program makes one tile of one crop, from the source pixels to the finished result.

A pixel of the result gathers the (2 max(1, scale))^2 source pixels under its triangle, from the first-level cache
but for their first reading; the weights are computed in place. The blur is two products with a band of weights. Crops
of up to MOST_SIDE pixels are one tile: one launch. Of larger ones a tile's margin of 4 pixels is computed by its
neighbours too, and the contrast needs the mean luma of all tiles as it is at that moment: a launch before computes the
tiles of crops with jitter up to there and leaves their sums. Any size of image, box and crop is served.

Operations a pixel: about 7 a tap of the resize, 4 taps where the box is no larger than the crop, 100 of the jitter, and
12 T of the blur in a tile of T x T. Floor of the bytes: the box once in, the crop once out. Of the memory itself that
is what is moved, as long as a box fits the cache; every view reads its own box. The loads ask for C bytes a tap, and
the margins of tiles are computed twice. A channels-last result is written in C strided stores that fill its lines.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from imc_kernels.ops.crop_parameters import CropDraw
from imc_kernels.triton.crop_draw import COLUMNS, drawn, given
from imc_kernels.triton.launch import launch, workspace
from imc_kernels.triton.primitives import product, rounded

MOST_SIDE = 32  # of a tile: the products of the blur of 64 x 64 would spill registers
STEP = MOST_SIDE - 8  # from one of several tiles to the next
MOST_SIZE = 255 * STEP  # the tiles are a grid's second axis, of which a launch takes 65,535
RADIUS = tl.constexpr(4)  # of the blur


@triton.jit
def first_source(at, length, size):
    """The first source pixel that weighs in the results ``at`` [T] of a box of ``length``."""
    reach = 2 * tl.maximum(length, size)
    return tl.maximum((2 * at + 1) * length - reach + size, 0) // (2 * size)


@triton.jit
def tap_weights(at, source, length, size):
    """Weights, integers, of the source pixels [T] of a box of ``length`` in the results ``at`` [T].

    The triangle filter in units of 1 / (2 size) pixels, as in the specification.
    """
    distance = (2 * source + 1) * size - (2 * at + 1) * length
    weight = 2 * tl.maximum(length, size) - tl.abs(distance)
    return tl.where((source < length) & (weight > 0), weight, 0).to(tl.float32)


@triton.jit
def luma(red, green, blue):
    return 0.299 * red + 0.587 * green + 0.114 * blue


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
    red = low + chroma * tl.clamp(tl.abs(h - 3) - 1, 0.0, 1.0)
    green = low + chroma * tl.clamp(2 - tl.abs(h - 2), 0.0, 1.0)
    blue = low + chroma * tl.clamp(2 - tl.abs(h - 4), 0.0, 1.0)
    return red, green, blue


@triton.jit
def blur_weights(at, size: tl.constexpr, sigma):
    """Weights [T, T] of the pixels ``at`` [T] in the blurred ones, of 9 taps.

    The crop goes on by reflection at its edges: a pixel r is found again at r and -r plus multiples of the period.
    """
    period: tl.constexpr = max(2 * (size - 1), 1)
    straight: tl.constexpr = (RADIUS + size - 1) // period
    mirrored: tl.constexpr = RADIUS // period
    scale = -0.5 / sigma / sigma
    weights = tl.zeros((at.shape[0], at.shape[0]), tl.float32)
    for turn in tl.static_range(-straight, straight + 1):
        away = at[:, None] - at[None, :] - turn * period
        weights += tl.where(tl.abs(away) <= RADIUS, tl.exp(scale * (away * away).to(tl.float32)), 0.0)
    mirror = ((at > 0) & (at < size - 1))[None, :]  # the pixels of the edges are their own images
    for turn in tl.static_range(-mirrored, mirrored + 2):
        away = at[:, None] + at[None, :] - turn * period
        weights += tl.where(mirror & (tl.abs(away) <= RADIUS), tl.exp(scale * (away * away).to(tl.float32)), 0.0)
    taps = tl.arange(0, 16) - RADIUS
    total = tl.sum(tl.where(taps <= RADIUS, tl.exp(scale * (taps * taps).to(tl.float32)), 0.0), axis=0)
    return tl.where(((at >= 0) & (at < size))[None, :], weights, 0.0) / total


@triton.jit(do_not_specialize=["batch", "key", "first_view"])
def multi_crop_kernel(
    images,  # uint8 [M, height, width, channels]
    indices,  # int64 [batch]
    parameters,  # float32 [views, batch, COLUMNS], or None: they are drawn here
    samples,  # int64 [batch], the samples' numbers, or None
    update,  # int64 [], the step of the draw, or None: it is in the key
    key,
    first_view,
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
    law: tl.constexpr,  # of CropDraw, or None
):
    crop = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1)
    if parameters is None:
        sample = tl.load(samples + crop % batch)
        view = first_view + crop // batch
        (
            top, left, box_height, box_width, brightness, contrast, saturation, hue, sigma, flip, jitter, grayscale,
            order,
        ) = drawn(update, key, view, sample, height, width, law)  # fmt: skip
    else:
        (
            top, left, box_height, box_width, brightness, contrast, saturation, hue, sigma, flip, jitter, grayscale,
            order,
        ) = given(parameters + crop * COLUMNS)  # fmt: skip
    if crops is None and not jitter:
        return
    margin: tl.constexpr = (side - step) // 2 if tiles > 1 else 0
    y = tile // tiles * step - margin + tl.arange(0, side)
    x = tile % tiles * step - margin + tl.arange(0, side)
    inside = ((y >= 0) & (y < size))[:, None] & ((x >= 0) & (x < size))[None, :]
    edge = tl.arange(0, side)
    own = (edge >= margin) & (edge < margin + step)  # not of the margin
    own = own[:, None] & own[None, :] & inside

    # The resize.
    image = images + tl.load(indices + crop % batch) * (height * width * channels)
    offsets: tl.constexpr = tl.int64 if height * width * channels >= 2**31 else tl.int32
    image += (top.to(offsets) * width + left.to(offsets)) * channels
    # Results beyond the crop are made from the last pixels; no other result depends on them.
    down = tl.minimum(tl.maximum(y, 0), size - 1)
    along = tl.minimum(tl.maximum(x, 0), size - 1)
    along = tl.where(flip, size - 1 - along, along)
    first_y = first_source(down, box_height, size)
    first_x = first_source(along, box_width, size)
    red = tl.zeros((side, side), tl.float32)
    green = tl.zeros((side, side), tl.float32)
    blue = tl.zeros((side, side), tl.float32)
    total = tl.zeros((side, side), tl.float32)
    for tap_y in range(tl.cdiv(2 * tl.maximum(box_height, size), size)):
        weights_y = tap_weights(down, first_y + tap_y, box_height, size)
        row = tl.minimum(first_y + tap_y, box_height - 1)[:, None].to(offsets) * width
        for tap_x in range(tl.cdiv(2 * tl.maximum(box_width, size), size)):
            weights = weights_y[:, None] * tap_weights(along, first_x + tap_x, box_width, size)[None, :]
            at = image + (row + tl.minimum(first_x + tap_x, box_width - 1)[None, :]) * channels
            total += weights
            red += weights * tl.load(at).to(tl.float32)
            if channels == 3:
                green += weights * tl.load(at + 1).to(tl.float32)
                blue += weights * tl.load(at + 2).to(tl.float32)
    total = 1.0 / (total * 255)
    red *= total
    green *= total
    blue *= total

    # The jitter, in the order of lexicographic rank ``order``: of the numbers still left, 4 bits each, take one a step.
    if jitter:
        left_over = 0x3210
        for turn in range(4):
            rank = tl.where(turn == 0, 6, tl.where(turn == 1, 2, 1))
            shift = order // rank * 4
            order = order % rank
            operation = (left_over >> shift) & 15
            left_over = (left_over & ((1 << shift) - 1)) | ((left_over >> (shift + 4)) << shift)
            factor = tl.where(operation == 0, brightness, tl.where(operation == 1, contrast, hue))
            factor = tl.where(operation == 2, saturation, factor)
            if operation == 0:
                red = tl.clamp(red * factor, 0.0, 1.0)
                if channels == 3:
                    green, blue = tl.clamp(green * factor, 0.0, 1.0), tl.clamp(blue * factor, 0.0, 1.0)
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
                red = tl.clamp(red * factor + shift_mean, 0.0, 1.0)
                if channels == 3:
                    green, blue = (
                        tl.clamp(green * factor + shift_mean, 0.0, 1.0),
                        tl.clamp(blue * factor + shift_mean, 0.0, 1.0),
                    )
            elif channels == 3:
                if operation == 2:
                    gray = luma(red, green, blue) * (1 - factor)
                    red, green = tl.clamp(red * factor + gray, 0.0, 1.0), tl.clamp(green * factor + gray, 0.0, 1.0)
                    blue = tl.clamp(blue * factor + gray, 0.0, 1.0)
                else:
                    red, green, blue = rotated(red, green, blue, factor)

    if crops is not None:
        if channels == 3 and grayscale:
            red = luma(red, green, blue)
            green = red
            blue = red
        if sigma > 0:
            blur_y, blur_x = blur_weights(y, size, sigma), tl.trans(blur_weights(x, size, sigma))
            red = product(product(blur_y, red, None, "ieee"), blur_x, None, "ieee")
            if channels == 3:
                green = product(product(blur_y, green, None, "ieee"), blur_x, None, "ieee")
                blue = product(product(blur_y, blue, None, "ieee"), blur_x, None, "ieee")
        out = crops + crop * (size * size * channels) + (y[:, None] * size + x[None, :]) * stride_pixel
        dtype = crops.dtype.element_ty
        tl.store(out, rounded(red * factor_red + offset_red, dtype), mask=own)
        if channels == 3:
            tl.store(out + stride_channel, rounded(green * factor_green + offset_green, dtype), mask=own)
            tl.store(out + 2 * stride_channel, rounded(blue * factor_blue + offset_blue, dtype), mask=own)


def multi_crop(inputs: Sequence[Tensor], options: Sequence[Any], needs: Sequence[bool]) -> tuple[Tensor]:
    images, indices, parameters = inputs
    size, dtype, mean, std, channels_last = options
    if size > MOST_SIZE:
        raise ValueError(f"multi_crop: backend 'triton' takes crops of up to {MOST_SIZE} pixels, got {size}")
    if not images.is_contiguous():  # a copy of the batch, not of the data set
        images, indices = images[indices].contiguous(), torch.arange(len(indices), device=images.device)
    indices = indices.contiguous()
    if isinstance(parameters, CropDraw):
        draw, views, batch = parameters, parameters.views, len(indices)
        step = draw.step if isinstance(draw.step, Tensor) else None
        numbers = (None, draw.indices.contiguous(), step, draw.key(), draw.first_view)
        law: tuple[float, ...] | None = draw.law()
    else:
        views, batch, _ = parameters.shape
        numbers, law = (parameters.contiguous(), None, None, 0, 0), None
    _, height, width, channels = images.shape
    shape = (views, batch, size, size, channels) if channels_last else (views, batch, channels, size, size)
    crops = torch.empty(size=shape, dtype=dtype, device=images.device)
    factors, offsets = [1 / s for s in std], [-m / s for m, s in zip(mean, std, strict=True)]
    arguments = (batch, *(factors * 3)[:3], *(offsets * 3)[:3])
    constants = {
        "height": height,
        "width": width,
        "channels": channels,
        "size": size,
        "stride_pixel": channels if channels_last else 1,
        "stride_channel": 1 if channels_last else size * size,
        "law": law,
    }
    if size <= MOST_SIDE:
        side = max(16, triton.next_power_of_2(size))
        launch(
            multi_crop_kernel, (views * batch, 1), images, indices, *numbers, crops, None, *arguments, **constants,
            side=side, step=side, tiles=1, tiles_block=1, num_warps=4 if side < 32 else 8,
        )  # fmt: skip
    else:
        tiles = triton.cdiv(size, STEP)
        (sums,) = workspace(images, views * batch * tiles * tiles)
        constants |= {
            "side": MOST_SIDE,
            "step": STEP,
            "tiles": tiles,
            "tiles_block": triton.next_power_of_2(tiles * tiles),
            "num_warps": 8,
        }
        grid = (views * batch, tiles * tiles)
        launch(multi_crop_kernel, grid, images, indices, *numbers, None, sums, *arguments, **constants)
        launch(multi_crop_kernel, grid, images, indices, *numbers, crops, sums, *arguments, **constants)
    return (crops.movedim(-1, -3) if channels_last else crops,)
