"""Random views of a batch of images, as a pure function of the seed, the number of the update and the samples.

So a resumed run, or one on another number of ranks, sees the views that the uninterrupted one sees. Every view of every
image draws its own numbers. There are two kinds:

    crops   random resized crops with flips and colour jitter, for natural images (imc_kernels.multi_crop)
    affine  rotated and sheared crops with gain and noise, for signs, which a flip would change
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from imc.command_line.options import part
from imc.data.options import (
    AffineOptions,
    AugmentationOptions,
    CropOptions,
    SampleInputOptions,
    SeedOptions,
    ViewOptions,
)
from imc_kernels import CropDraw, multi_crop


def derived_seed(*path: int) -> int:
    """A seed of 32 bits, well mixed, from integers such as (seed, purpose, update)."""
    return int(np.random.SeedSequence(path).generate_state(1)[0])


class Batch(NamedTuple):
    """One rank's part of a batch.

    Attributes:
        images: uint8 [M, H, W, C] on the device: the data set, or the batch's images alone.
        positions: int64 [B], where the batch's images are in ``images``.
        samples: int64 [B], their numbers in the data set.
        start, total: the part begins at row ``start`` of the ``total`` rows of all ranks.
    """

    images: Tensor
    positions: Tensor
    samples: Tensor
    start: int
    total: int


@dataclass(frozen=True)
class Crops:
    """Crops of one size: how many per image, their side in pixels, and the range of their area / image area."""

    count: int
    size: int
    area: tuple[float, float]


class Views(Protocol):
    """What makes the views of a batch."""

    def __call__(self, batch: Batch, update: int) -> list[Tensor]:
        """For each size a tensor [V, B, C, s, s], in channels-last order as [V*B, C, s, s] where that was asked for."""


class CropViews:
    """Views for natural images.

    Args:
        options: resolved.
    """

    def __init__(self, options: CropOptions) -> None:
        self.options = options
        self.crops = crops_of(options)

    def draws(self, batch: Batch, update: int | Tensor) -> list[CropDraw]:
        """The random numbers of each size's crops; the update may be an int64 tensor [] on the device."""
        firsts = itertools.accumulate((crops.count for crops in self.crops), initial=0)
        return [self._draw(batch, update, crops, first) for crops, first in zip(self.crops, firsts, strict=False)]

    def __call__(self, batch: Batch, update: int | Tensor) -> list[Tensor]:
        return [
            self._cut(batch, crops, draw) for crops, draw in zip(self.crops, self.draws(batch, update), strict=True)
        ]

    def _draw(self, batch: Batch, update: int | Tensor, crops: Crops, first: int) -> CropDraw:
        """The random numbers of crops, of which the first has this number among all views of a sample."""
        options = self.options
        return CropDraw(
            options.seed,
            update,
            batch.samples,
            views=crops.count,
            first_view=first,
            height=batch.images.shape[1],
            width=batch.images.shape[2],
            scale=crops.area,
            flip=options.flip,
            jitter_probability=options.jitter_probability,
            brightness=options.brightness,
            contrast=options.contrast,
            saturation=options.saturation,
            hue=options.hue,
            grayscale=options.grayscale,
            blur_probability=options.blur_probability,
            blur_sigma=options.blur_sigma,
        )

    def _cut(self, batch: Batch, crops: Crops, draw: CropDraw) -> Tensor:
        mean, std = self.options.mean, self.options.std
        # bfloat16 crops would save the encoder's first cast, and cost what 8 bits of mantissa cannot hold of a pixel.
        order = torch.contiguous_format if self.options.channels_last == "off" else torch.channels_last
        return multi_crop(batch.images, batch.positions, draw, size=crops.size, mean=mean, std=std, memory_format=order)


class AffineViews:
    """Views for small images of signs.

    A crop of area a (a fraction of the image's, possibly above 1) is a square of side sqrt(a), rotated and sheared, at
    a uniform position from edge to edge. Outside the image is 0.

    Args:
        options: resolved.
        device: that of the images.
    """

    def __init__(self, options: AffineOptions, device: torch.device) -> None:
        self.options = options
        self.crops = crops_of(options)
        self.rotation = math.radians(options.rotation)
        self.generator = torch.Generator(device)

    def __call__(self, batch: Batch, update: int) -> list[Tensor]:
        self.generator.manual_seed(derived_seed(self.options.seed, VIEWS, update))
        images = as_float(batch.images[batch.positions], self.options.pixel_scale)
        return [self._views(images, crops, batch) for crops in self.crops]

    def _views(self, images: Tensor, crops: Crops, batch: Batch) -> Tensor:
        rows = slice(batch.start, batch.start + len(images))
        theta = self._transforms(crops.count, batch.total, crops.area)[:, rows].flatten(0, 1)
        repeated = images.expand(crops.count, *images.shape).flatten(0, 1)
        views = sample(repeated, theta, crops.size).unflatten(0, (crops.count, -1))
        views = views * self._uniform(crops.count, batch.total, *self.options.gain)[:, rows, None, None, None]
        shape = (crops.count, batch.total, *views.shape[2:])
        noise = torch.randn(shape, generator=self.generator, dtype=views.dtype, device=views.device)[:, rows]
        views = views.add_(noise, alpha=self.options.noise)
        if self.options.channels_last == "off":
            return views.contiguous()
        return views.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, views.shape[:2])

    def _transforms(self, views: int, total: int, area: tuple[float, float]) -> Tensor:
        """Random maps from crop to image coordinates, both in -1..1: [views, total, 2, 3]."""
        side = self._uniform(views, total, *area).sqrt()
        angle = self._uniform(views, total, -self.rotation, self.rotation)
        shear = self._uniform(views, total, -self.options.shear, self.options.shear)
        cosine, sine = side * angle.cos(), side * angle.sin()
        x, y = ((1 - side) * self._uniform(views, total, -1, 1) for _ in range(2))
        rows = [cosine, shear * cosine - sine, x, sine, shear * sine + cosine, y]
        return torch.stack(rows, dim=-1).view(views, total, 2, 3)

    def _uniform(self, views: int, total: int, low: float, high: float) -> Tensor:
        drawn = torch.rand(views, total, generator=self.generator, dtype=torch.float32, device=self.generator.device)
        return drawn * (high - low) + low


VIEWS, ORDER = 1, 2  # purposes of a derived seed


def crops_of(options: ViewOptions) -> list[Crops]:
    """The crops of each size that are asked for, the large ones first."""
    crops = [Crops(options.large_crops, options.large_size, options.large_area)]
    if options.small_crops:
        crops.append(Crops(options.small_crops, options.small_size, options.small_area))
    return crops


def make_views(options: AugmentationOptions, device: torch.device) -> CropViews | AffineViews:
    """The views of the augmentation that is chosen."""
    if options.augmentation == "affine":
        return AffineViews(part(options, AffineOptions), device)
    return CropViews(part(options, CropOptions))


def epoch_order(options: SeedOptions, count: int, epoch: int) -> Tensor:
    """The samples 0 .. count - 1 in the order of this epoch, counted from 0: int64 [count] on the host."""
    generator = torch.Generator().manual_seed(derived_seed(options.seed, ORDER, epoch))
    return torch.randperm(count, generator=generator)


def prepare(images: Tensor, options: SampleInputOptions) -> Tensor:
    """The whole images as a trained model takes them, without augmentation; rows of features as they are.

    Args:
        images: uint8 [B, H, W, C], or rows [B, D].
        options: resolved.

    Returns:
        float32 [B, C, s, s]: for crops the images at their size, normalised; for affine views resized to a large crop;
        of rows float32 [B, D].
    """
    if options.columns is not None:
        return images.float()
    if options.augmentation == "affine":
        return resize(images, options.large_size, options.pixel_scale)
    mean, std = (
        torch.tensor(x, dtype=torch.float32, device=images.device).view(-1, 1, 1) for x in (options.mean, options.std)
    )
    return as_float(images, 1 / 255).sub_(mean).div_(std)


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
    # Not len(images), which torch.export would take for a constant.
    theta = torch.eye(2, 3, dtype=torch.float32, device=images.device).expand(images.shape[0], 2, 3)
    return sample(as_float(images, scale), theta, size)
