"""Mean and standard deviation of the channels of uint8 images."""

from __future__ import annotations

import numpy as np
from torch import Tensor

SAMPLE = 1 << 27  # bytes of pixels; reading the whole of a large memory map would change the third digit
RUNS = 256  # a sample is this many runs of neighbours, evenly spaced: a disk reads neighbours at once


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, pixels in 0..1.

    Args:
        images: uint8 [M, H, W, C]. Of more than 134 MB, a sample of that size is read.

    Returns:
        Two tuples of C numbers. The deviation of a constant channel is given as 1, so that one can divide by it.
    """
    count, channels = len(images), images.shape[-1]
    length = -(-count // RUNS)
    sampled = max(1, min(length, SAMPLE // RUNS // images[0].numel()))
    counts = np.zeros((channels, 256), np.int64)
    for start in range(0, count, length):
        pixels = images[start : start + sampled].reshape(-1, channels).numpy()
        for channel in range(channels):
            counts[channel] += np.bincount(pixels[:, channel], minlength=256)
    levels = np.arange(256) / 255
    weights = counts / counts.sum(axis=1, keepdims=True)
    mean = weights @ levels
    std = np.sqrt((weights * (levels - mean[:, None]) ** 2).sum(axis=1))
    return tuple(mean.tolist()), tuple(np.where(std > 0, std, 1.0).tolist())
