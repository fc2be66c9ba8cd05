"""Where in an image the evidence for its cluster lies: Grad-CAM (arXiv 1610.02391) on the encoder's feature map."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

SMALLEST_MAP = 4  # side; a map of fewer cells says nothing about where


def heatmaps(model: nn.Module, images: Tensor) -> Tensor:
    """Heat-maps of the predicted clusters.

    The weight of a channel is the mean over the map of the gradient that the predicted cluster's logit has there; the
    heat is the weighted sum of the channels, its negative part dropped, resized to the image and divided by its
    maximum. The feature map is the last 4-D output of a module of the encoder that is at least 4 x 4; where there is
    none, the largest. With the classifier linear on the pooled map this is the class-activation map itself.

    Args:
        model: with ``encoder`` and ``predict(images)``; evaluated in eval mode, its mode left as found.
        images: float [B, C, s, s], as ``predict`` takes them.

    Returns:
        float32 [B, s, s], 0..1. An image whose cluster has no positive evidence is 0 everywhere.
    """
    maps: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: object, output: object) -> None:
        if isinstance(output, Tensor) and output.dim() == 4 and output.requires_grad:
            maps.append(output)

    encoder: nn.Module = model.encoder  # type: ignore[assignment]
    hooks = [module.register_forward_hook(keep) for module in encoder.modules()]
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.enable_grad():
            logits = model.predict(images.detach().requires_grad_())  # type: ignore[operator]
            if not maps:
                raise ValueError("the encoder has no module whose output is a feature map [B, C, H, W]")
            feature_map = _last_of_size(maps)
            (gradient,) = torch.autograd.grad(logits.max(dim=1).values.sum(), feature_map)
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes.items():
            module.training = mode
    weights = gradient.float().mean(dim=(2, 3), keepdim=True)
    heat = (weights * feature_map.detach().float()).sum(dim=1, keepdim=True).relu()
    heat = functional.interpolate(heat, size=images.shape[-2:], mode="bilinear", align_corners=False).squeeze(1)
    highest = heat.amax(dim=(1, 2), keepdim=True)
    return torch.where(highest > 0, heat / highest, 0.0)


def _last_of_size(maps: list[Tensor]) -> Tensor:
    large = [map for map in maps if min(map.shape[-2:]) >= SMALLEST_MAP]
    return large[-1] if large else max(reversed(maps), key=lambda map: map.shape[-1])
