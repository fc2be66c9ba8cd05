"""Views of small images: random affine crops, gain and noise; no flips, which would change a digit.

A crop of area a (a fraction of the image's, possibly above 1) is a square of side sqrt(a), rotated and sheared, at a
uniform position from edge to edge. Outside the image is 0. Every view of every image draws its own numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Crops:
    """Crops of one size: how many per image, their side in pixels, and the range of their area / image area."""

    count: int
    size: int
    area: tuple[float, float]


class Views:
    """The views of a batch of images.

    Args:
        images: uint8 [M, H, W, C]; stays on its device.
        crops: the crops of each size, largest first.
        scale: factor on the pixels.
        rotation: up to +-this, degrees.
        shear: up to +-this, horizontal displacement per height.
        gain: range of the factor on the pixels.
        noise: standard deviation of the normal noise, on the scaled pixels.
        generator: source of all randomness, on the images' device.
    """

    def __init__(
        self,
        images: Tensor,
        crops: list[Crops],
        *,
        scale: float,
        rotation: float,
        shear: float,
        gain: tuple[float, float],
        noise: float,
        generator: torch.Generator,
    ) -> None:
        self.images = images
        self.scale = scale
        self.crops = crops
        self.rotation = math.radians(rotation)
        self.shear = shear
        self.gain = gain
        self.noise = noise
        self.generator = generator

    def __call__(self, indices: Tensor) -> list[Tensor]:
        """Views of the images ``indices`` (int64 [B]): for each size a float32 tensor [V, B, C, s, s]."""
        images = as_float(self.images[indices], self.scale)
        return [self._views(images, crops) for crops in self.crops]

    def _views(self, images: Tensor, crops: Crops) -> Tensor:
        count = crops.count * len(images)
        theta = self._transforms(count, crops.area)
        repeated = images.expand(crops.count, *images.shape).flatten(0, 1)
        views = sample(repeated, theta, crops.size)
        views = views * self._uniform(count, *self.gain).view(count, 1, 1, 1)
        noise = torch.randn(views.shape, generator=self.generator, device=views.device)
        views = views.add_(noise, alpha=self.noise).contiguous(memory_format=torch.channels_last)
        return views.unflatten(0, (crops.count, len(images)))

    def _transforms(self, count: int, area: tuple[float, float]) -> Tensor:
        """Random maps from crop to image coordinates, both in -1..1: [count, 2, 3]."""
        side = self._uniform(count, *area).sqrt()
        angle = self._uniform(count, -self.rotation, self.rotation)
        shear = self._uniform(count, -self.shear, self.shear)
        cosine, sine = side * angle.cos(), side * angle.sin()
        x, y = ((1 - side) * self._uniform(count, -1, 1) for _ in range(2))
        rows = [cosine, shear * cosine - sine, x, sine, shear * sine + cosine, y]
        return torch.stack(rows, dim=1).view(count, 2, 3)

    def _uniform(self, count: int, low: float, high: float) -> Tensor:
        return torch.rand(count, generator=self.generator, device=self.images.device) * (high - low) + low


def unit_scale(images: Tensor) -> float:
    """The factor that gives uint8 images [M, H, W, C] a standard deviation of 1. A background of 0 stays 0."""
    deviation = float(images.float().std())
    return 1 / deviation if deviation > 0 else 1.0


def as_float(images: Tensor, scale: float) -> Tensor:
    """uint8 [B, H, W, C] -> float32 [B, C, H, W], times ``scale``."""
    return images.permute(0, 3, 1, 2).float().mul_(scale)


def sample(images: Tensor, theta: Tensor, size: int) -> Tensor:
    """Bilinear crops [N, C, size, size] of images float32 [N, C, H, W]; theta [N, 2, 3]: crop to image coordinates."""
    grid = functional.affine_grid(theta, [*images.shape[:2], size, size], align_corners=False)
    return functional.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def resize(images: Tensor, size: int, scale: float) -> Tensor:
    """The whole images without augmentation, by the sampler of the views: uint8 [B, H, W, C] -> [B, C, size, size]."""
    theta = torch.eye(2, 3, device=images.device).expand(len(images), 2, 3)
    return sample(as_float(images, scale), theta, size)
