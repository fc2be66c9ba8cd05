"""Images that look alike to a model: the neighbours of each, and groups of nearly the same."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from imc.features.neighbours import BLOCK, nearest_neighbours

NEIGHBOURS = 8
# Cosine. Of 160 photographs that EfficientNet-Lite0 saw, the nearest others had 0.75 at most, and copies cut by 5% or
# mirrored 0.85 at least. An encoder trained on the images themselves puts more above: hence no more than so many pairs.
NEARLY_SAME = 0.85
PAIRS = 200


def find_neighbours(features: Tensor, seed: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """The nearest other images of each, by the cosine of their features' differences from the mean of all.

    Args:
        features: float32 [M, F].
        seed: of the search, which is approximate among many (:mod:`imc.features.neighbours`).

    Returns:
        Their numbers int32 [M, k], the nearest first, and the cosines float32 [M, k]; k is at most 8.
    """
    count = min(NEIGHBOURS, len(features) - 1)
    if count < 1:
        return np.empty((len(features), 0), np.int32), np.empty((len(features), 0), np.float32)
    mean = features.mean(dim=0)
    found = nearest_neighbours(features, count, transform=lambda block: block - mean, seed=seed)
    cosines = []
    for start in range(0, len(features), BLOCK):
        own = functional.normalize(features[start : start + BLOCK] - mean, dim=1)
        others = functional.normalize(features[found[start : start + BLOCK].long()] - mean, dim=2)
        cosines.append((own[:, None] * others).sum(dim=2))
    return found.numpy(), torch.cat(cosines).numpy()


def nearly_same(neighbours: NDArray[np.int32], cosines: NDArray[np.float32]) -> list[list[int]]:
    """Groups of images of which each is nearly the same as another of its group; the most alike first, of the
    200 most alike pairs."""
    group_of: dict[int, list[int]] = {}
    found = np.argwhere(cosines >= NEARLY_SAME)
    pairs = np.sort(np.stack([found[:, 0], neighbours[tuple(found.T)]], axis=1), axis=1)
    order = np.argsort(-cosines[tuple(found.T)], kind="stable")
    for image, other in list(dict.fromkeys(map(tuple, pairs[order].tolist())))[:PAIRS]:
        one, another = (group_of.setdefault(i, [i]) for i in (image, other))
        if one is not another:
            one += another
            group_of.update(dict.fromkeys(another, one))
    return list({id(group): group for group in group_of.values()}.values())
