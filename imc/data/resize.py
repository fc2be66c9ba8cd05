"""Arrays of images to squares of another size."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

CHUNK = 256


def resized(images: Tensor, size: int, interpolation: str = "bilinear") -> Tensor:
    """The short side resized to ``size`` by an antialiased filter, then the centre square.

    Args:
        images: uint8 [M, H, W, C].
        size: side in pixels.
        interpolation: bilinear or bicubic.

    Returns:
        uint8 [M, size, size, C], contiguous.
    """
    _, height, width, channels = images.shape
    short = min(height, width)
    top, left = (height - short) // 2, (width - short) // 2
    result = torch.empty(len(images), size, size, channels, dtype=torch.uint8)
    for start in range(0, len(images), CHUNK):
        square = images[start : start + CHUNK, top : top + short, left : left + short]
        planes = square.permute(0, 3, 1, 2).float()
        scaled = functional.interpolate(planes, (size, size), mode=interpolation, antialias=True, align_corners=False)
        result[start : start + CHUNK] = scaled.round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
    return result
