"""Random resized crops with flip, colour jitter, grayscale and blur, for all views and samples at once.

Every stage takes crops [V, B, C, s, s] with values in [0, 1] and numbers [V, B, 1, 1, 1], one a crop.
"""

from collections.abc import Sequence
from itertools import permutations

import torch
from torch import Tensor

from imc_kernels.ops.constants import constants
from imc_kernels.ops.crop_parameters import Column

ORDERS = tuple(permutations(range(4)))  # of brightness, contrast, saturation and hue, by rank
# Each turn's operation for all ranks, two bits each: numbers travel with a launch, a tensor of them would be a copy.
TABLES = tuple(sum(order[turn] << 2 * rank for rank, order in enumerate(ORDERS)) for turn in range(4))
BLUR_RADIUS = 4


def multi_crop(
    images: Tensor,
    indices: Tensor,
    parameters: Tensor,
    size: int,
    dtype: torch.dtype,
    mean: Sequence[float],
    std: Sequence[float],
    memory_format: torch.memory_format,
) -> Tensor:
    """uint8 images [M, H, W, C], indices [B] and parameters [V, B, 13] -> crops [V, B, C, size, size] of ``dtype``."""
    working = torch.float64 if dtype == torch.float64 else torch.float32
    number = {column: parameters[..., column, None, None, None].to(working) for column in Column}
    crops = resize(images[indices], parameters, size, working)
    crops = torch.where(number[Column.FLIP] > 0, crops.flip(-1), crops)
    crops = torch.where(number[Column.JITTER] > 0, jitter(crops, number), crops)
    crops = torch.where(number[Column.GRAYSCALE] > 0, gray(crops).expand_as(crops), crops)
    crops = torch.where(number[Column.BLUR] > 0, blur(crops, parameters[..., Column.BLUR]), crops)
    mean_, std_ = (constants(values, crops.dtype, crops.device).view(-1, 1, 1) for values in (mean, std))
    crops = ((crops - mean_) / std_).to(dtype)
    return crops.flatten(0, 1).contiguous(memory_format=memory_format).unflatten(0, crops.shape[:2])


def resize(images: Tensor, parameters: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """Boxes of uint8 images [B, H, W, C], resized to [V, B, C, size, size] and scaled to [0, 1]."""
    rows = resize_weights(parameters[..., Column.TOP], parameters[..., Column.HEIGHT], images.shape[1], size, dtype)
    columns = resize_weights(parameters[..., Column.LEFT], parameters[..., Column.WIDTH], images.shape[2], size, dtype)
    narrow = torch.einsum("vbyh,bhwc->vbcyw", rows, images.to(dtype) / 255)
    return torch.einsum("vbcyw,vbxw->vbcyx", narrow, columns)


def resize_weights(start: Tensor, length: Tensor, total: int, size: int, dtype: torch.dtype) -> Tensor:
    """Antialiased bilinear weights [V, B, size, total] of boxes [start, start + length) on an axis of ``total`` pixels.

    The triangle filter, as Pillow's BILINEAR: its half-width is one pixel of the source or of the result, whichever is
    larger, pixels outside the box weigh nothing, and the weights of one result add up to 1. Distances are counted in
    units of 1 / (2 size) pixels, which makes them, and so the weights but for their sum, integers.
    """
    start, length = (x.long()[..., None, None] for x in (start, length))
    source = torch.arange(total, device=start.device) - start
    centre = (2 * torch.arange(size, device=start.device)[:, None] + 1) * length
    weights = 2 * length.clamp(min=size) - ((2 * source + 1) * size - centre).abs()
    weights = torch.where((source >= 0) & (source < length), weights.clamp(min=0), 0).to(dtype)
    return weights / weights.sum(dim=-1, keepdim=True)


def jitter(crops: Tensor, number: dict[Column, Tensor]) -> Tensor:
    """The four colour operations, in each crop's own order."""
    place = 2 * number[Column.ORDER].long()
    for table in TABLES:
        operation = torch.bitwise_right_shift(table, place) & 3
        candidates = (
            brightness(crops, number[Column.BRIGHTNESS]),
            contrast(crops, number[Column.CONTRAST]),
            saturation(crops, number[Column.SATURATION]),
            hue(crops, number[Column.HUE]),
        )
        for rank, candidate in enumerate(candidates):
            crops = torch.where(operation == rank, candidate, crops)
    return crops


def gray(crops: Tensor) -> Tensor:
    """[..., C, s, s] -> luma [..., 1, s, s] of ITU-R BT.601."""
    if crops.shape[-3] == 1:
        return crops
    red, green, blue = crops.split(1, dim=-3)
    return 0.299 * red + 0.587 * green + 0.114 * blue


def brightness(crops: Tensor, factor: Tensor) -> Tensor:
    return (crops * factor).clamp(0, 1)


def contrast(crops: Tensor, factor: Tensor) -> Tensor:
    """Away from the mean luma of the crop, or towards it."""
    mean = gray(crops).mean(dim=(-3, -2, -1), keepdim=True)
    return (crops * factor + mean * (1 - factor)).clamp(0, 1)


def saturation(crops: Tensor, factor: Tensor) -> Tensor:
    """Away from each pixel's luma, or towards it."""
    if crops.shape[-3] == 1:
        return crops
    return (crops * factor + gray(crops) * (1 - factor)).clamp(0, 1)


def hue(crops: Tensor, turns: Tensor) -> Tensor:
    """Rotate the hue of HSV; saturation and value stay."""
    if crops.shape[-3] == 1:
        return crops
    red, green, blue = crops.split(1, dim=-3)
    value, low = crops.amax(-3, keepdim=True), crops.amin(-3, keepdim=True)
    chroma = value - low
    divisor = torch.where(chroma > 0, chroma, 1)
    sector = torch.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor)
    sector = torch.where(value == red, (green - blue) / divisor, sector)
    channel = torch.arange(5, 0, -2, dtype=crops.dtype, device=crops.device).view(3, 1, 1)
    phase = (channel + sector + 6 * turns) % 6
    return (value - chroma * torch.minimum(phase, 4 - phase).clamp(0, 1)).clamp(0, 1)


def blur(crops: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian of 9 x 9 pixels and standard deviation sigma [V, B], the crop continued by reflection at its edges."""
    size, offsets = crops.shape[-1], torch.arange(-BLUR_RADIUS, BLUR_RADIUS + 1, device=crops.device)
    sigma = torch.where(sigma > 0, sigma, 1).to(crops.dtype)
    kernel = torch.exp(-0.5 * (offsets / sigma[..., None]) ** 2)
    kernel = kernel / kernel.sum(dim=-1, keepdim=True)
    pixels = torch.arange(size, device=crops.device)
    period = max(2 * (size - 1), 1)
    folded = (pixels[:, None] + offsets) % period
    source = torch.minimum(folded, period - folded) if size > 1 else folded  # [s, 9]
    taken = (source[..., None] == pixels).to(crops.dtype)  # [s, 9, s]
    weights = torch.einsum("vbk,xkw->vbxw", kernel, taken)
    return torch.einsum("vbyh,vbchw,vbxw->vbcyx", weights, crops, weights)
