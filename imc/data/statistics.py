"""Mean and standard deviation of the channels of uint8 images."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

SAMPLE = 1 << 28  # bytes of pixels; reading the whole of a large memory map would change the third digit
CHUNK = 256


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, pixels in 0..1.

    Args:
        images: uint8 [M, H, W, C]. Of more than 268 MB, evenly spaced images of that size together are read.

    Returns:
        Two tuples of C numbers. The deviation of a constant channel is given as 1, so that one can divide by it.
    """
    count = len(images)
    sample = min(count, max(1, SAMPLE // images[0].numel()))
    chosen = torch.linspace(0, count - 1, sample, dtype=torch.float64).round().long()
    channels = images.shape[-1]
    counts = np.zeros((channels, 256), np.int64)
    for indices in chosen.split(CHUNK):
        pixels = images[indices].reshape(-1, channels).numpy()
        for channel in range(channels):
            counts[channel] += np.bincount(pixels[:, channel], minlength=256)
    levels = np.arange(256) / 255
    weights = counts / counts.sum(axis=1, keepdims=True)
    mean = weights @ levels
    std = np.sqrt((weights * (levels - mean[:, None]) ** 2).sum(axis=1))
    return tuple(mean.tolist()), tuple(np.where(std > 0, std, 1.0).tolist())
