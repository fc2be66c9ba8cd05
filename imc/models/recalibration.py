"""Batch normalisation statistics estimated again on images as evaluation sees them, without augmentation."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@torch.no_grad()
def recalibrate_batch_norm(model: nn.Module, batches: Iterable[Tensor]) -> int:
    """Replace every running mean and variance by the average over these batches, weighted by their sizes.

    The batches should be shuffled: a batch of one class alone has that class's statistics. One of fewer than 2 images
    has no variance and is left out. Everything but the statistics, the mode of each module included, is left as found.

    Args:
        model: with ``predict(images)``, which runs encoder and classifier.
        batches: float [B, C, s, s], on the model's device.

    Returns:
        The number of images used. With 0, the statistics are as they were.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    modes = {module: module.training for module in model.modules()}
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.train()
    images = 0
    try:
        for batch in batches:
            if len(batch) < 2:
                continue
            images += len(batch)
            for norm in norms:
                # A first weight of 1 drops what was there; then the weights make it the running average.
                norm.momentum = len(batch) / images
            model.predict(batch)  # type: ignore[operator]
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, mode in modes.items():
            module.training = mode
    return images
