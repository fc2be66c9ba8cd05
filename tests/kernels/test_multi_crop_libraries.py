"""Each stage of the crops against torch's own antialiased resize, torchvision and kornia, where they are installed.

All of them work in floats, so the tolerance is rounding: some operations of float32 on values in [0, 1]. Hue passes a
division by the chroma, which costs a digit where that is small.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from imc_kernels import multi_crop
from imc_kernels.ops.crop_parameters import Column

stages = importlib.import_module("imc_kernels.eager.multi_crop")  # the package's name is the function's
SIDE, COUNT = 24, 3
FACTORS = (0.6, 1.0, 1.4)
TURNS = (-0.1, 0.0, 0.07)


def library(name: str) -> Any:
    # torchvision raises RuntimeError where its build and torch's do not go together.
    return pytest.importorskip(name, exc_type=(ImportError, RuntimeError))


def images() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (COUNT, SIDE, SIDE, 3), dtype=torch.uint8, generator=generator)


def crops(size: int = SIDE, **columns: float) -> Tensor:
    """Crops [B, 3, size, size] of the images with these parameters, and no other stage."""
    parameters = torch.zeros(1, COUNT, len(Column))
    parameters[..., Column.HEIGHT] = parameters[..., Column.WIDTH] = SIDE
    parameters[..., Column.BRIGHTNESS : Column.HUE] = 1
    for name, value in columns.items():
        parameters[..., Column[name.upper()]] = value
    options: dict[str, Any] = {"size": size, "mean": [0.0] * 3, "std": [1.0] * 3}
    return multi_crop(images(), torch.arange(COUNT), parameters, **options)[0]


def floats() -> Tensor:
    return images().permute(0, 3, 1, 2).float() / 255


def close(ours: Tensor, theirs: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)


BOXES = [(0, 0, 24, 24), (3, 5, 20, 11), (23, 0, 1, 24), (2, 2, 7, 7)]


@pytest.mark.parametrize("size", [7, 18, 24, 31])
@pytest.mark.parametrize("box", BOXES)
def test_resize_is_that_of_torch(box: tuple[int, ...], size: int) -> None:
    top, left, height, width = box
    part = floats()[..., top : top + height, left : left + width]
    expected = torch.nn.functional.interpolate(part, (size, size), mode="bilinear", antialias=True)
    close(crops(size, top=top, left=left, height=height, width=width), expected)


@pytest.mark.parametrize("size", [7, 18, 31])
@pytest.mark.parametrize("box", BOXES)
def test_resized_crop_is_that_of_torchvision(box: tuple[int, ...], size: int) -> None:
    functional = library("torchvision.transforms.v2.functional")
    top, left, height, width = box
    expected = functional.resized_crop(floats(), top, left, height, width, [size, size], antialias=True)
    close(crops(size, top=top, left=left, height=height, width=width), expected)


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("stage", ["brightness", "contrast", "saturation"])
def test_colour_is_that_of_torchvision(stage: str, factor: float) -> None:
    functional = library("torchvision.transforms.v2.functional")
    adjust: Callable[[Tensor, float], Tensor] = getattr(functional, f"adjust_{stage}")
    # Its luma has 4 digits (0.2989 for 0.299): up to 1e-4 of gray, times |1 - factor|.
    close(crops(jitter=1, **{stage: factor}), adjust(floats(), factor), 1e-5 + 2e-4 * abs(1 - factor))


@pytest.mark.parametrize("turns", TURNS)
def test_hue_is_that_of_torchvision(turns: float) -> None:
    functional = library("torchvision.transforms.v2.functional")
    close(crops(jitter=1, hue=turns), functional.adjust_hue(floats(), turns), 1e-4)


def test_grayscale_is_that_of_torchvision() -> None:
    functional = library("torchvision.transforms.v2.functional")
    close(crops(grayscale=1), functional.rgb_to_grayscale(floats(), num_output_channels=3), 2e-4)


@pytest.mark.parametrize("sigma", [0.1, 0.8, 2.0])
def test_blur_is_that_of_torchvision(sigma: float) -> None:
    functional = library("torchvision.transforms.v2.functional")
    window = 2 * stages.BLUR_RADIUS + 1
    close(crops(blur=sigma), functional.gaussian_blur(floats(), [window, window], [sigma, sigma]))


@pytest.mark.parametrize("factor", FACTORS)
def test_colour_is_that_of_kornia(factor: float) -> None:
    enhance = library("kornia.enhance")
    close(crops(jitter=1, brightness=factor), enhance.adjust_brightness_accumulative(floats(), factor))
    close(crops(jitter=1, contrast=factor), enhance.adjust_contrast_with_mean_subtraction(floats(), factor))
    close(crops(jitter=1, saturation=factor), enhance.adjust_saturation_with_gray_subtraction(floats(), factor))


@pytest.mark.parametrize("turns", TURNS)
def test_hue_is_that_of_kornia(turns: float) -> None:
    enhance = library("kornia.enhance")
    close(crops(jitter=1, hue=turns), enhance.adjust_hue(floats(), 2 * math.pi * turns), 1e-4)


def test_grayscale_is_that_of_kornia() -> None:
    color = library("kornia.color")
    close(crops(grayscale=1), color.rgb_to_grayscale(floats()).expand(-1, 3, -1, -1))


@pytest.mark.parametrize("sigma", [0.1, 0.8, 2.0])
def test_blur_is_that_of_kornia(sigma: float) -> None:
    filters = library("kornia.filters")
    window = 2 * stages.BLUR_RADIUS + 1
    close(crops(blur=sigma), filters.gaussian_blur2d(floats(), (window, window), (sigma, sigma)))
