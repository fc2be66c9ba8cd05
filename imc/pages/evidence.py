"""Examples of every cluster with heat-maps of what in them speaks for it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from imc.data import Images
from imc.pages.heatmaps import heatmaps
from imc.pages.plain_matplotlib import colormaps
from imc.pages.thumbnails import GAP, GROUND, jpeg
from imc.runs.model import LoadedRun

EXAMPLES = 4  # of a cluster
ALL_EXAMPLES = 120  # of all clusters together, each of which has one at least
LEAST_SIDE, MOST_SIDE = 64, 96  # of an example, pixels
WARMTH = 0.6  # opacity of a heat-map


def evidence(run: LoadedRun, images: Images, members: dict[int, NDArray[np.int64]]) -> Iterator[tuple[int, int, bytes]]:
    """For each cluster some of its images, and below each the same under its heat-map.

    Args:
        run: the model.
        images: of the run's kind.
        members: the images of each cluster, the most certain first.

    Yields:
        The cluster, the number of examples, and a JPEG file.
    """
    each = max(1, min(EXAMPLES, ALL_EXAMPLES // max(1, len(members))))
    for cluster, found in members.items():
        chosen = found[np.unique(np.linspace(0, len(found) - 1, each).round().astype(np.int64))]
        pixels = images.images[torch.from_numpy(chosen)]
        heat = heatmaps(run.model, run.prepare(pixels.to(run.device))).cpu().numpy()
        examples = [_pair(image, warmth) for image, warmth in zip(pixels.numpy(), heat, strict=True)]
        gap = np.full((examples[0].shape[0], GAP, 3), GROUND, np.uint8)
        strip = np.concatenate([part for example in examples for part in (gap, example)][1:], axis=1)
        yield cluster, len(chosen), jpeg(strip, small=True)


def _pair(pixels: NDArray[np.uint8], heat: NDArray[np.float32]) -> NDArray[np.uint8]:
    """An image [h, w, C] above itself under its heat-map [s, s]: uint8 [2 side + gap, width, 3]."""
    colour = np.broadcast_to(pixels, (*pixels.shape[:2], 3))
    height, width = colour.shape[:2]
    longest = max(height, width)
    scale = MOST_SIDE / longest if longest > MOST_SIDE else max(1, -(-LEAST_SIDE // longest))
    size = (round(width * scale), round(height * scale))
    sharp = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BILINEAR
    image = Image.fromarray(np.ascontiguousarray(colour)).resize(size, sharp)
    warm = Image.fromarray((heat * 255).round().astype(np.uint8)).resize(size, Image.Resampling.BILINEAR)
    tinted = (colormaps["inferno"](np.asarray(warm))[..., :3] * 255).round().astype(np.uint8)
    blended = Image.blend(image, Image.fromarray(tinted), WARMTH)
    gap = np.full((GAP, size[0], 3), GROUND, np.uint8)
    return np.concatenate([np.asarray(image), gap, np.asarray(blended)])
