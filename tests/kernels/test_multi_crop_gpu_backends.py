"""Crops of the backends for GPUs, against the specification. These lack float64, for which test_multi_crop.py asks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kernels.test_multi_crop import neutral, options, random_images
from operations import all_backends, device_of
from torch import Tensor

from imc_kernels import draw_crop_parameters, multi_crop
from imc_kernels.ops.crop_parameters import Column

# Slow where they are emulated, so that they are given few crops.
each_gpu_backend = pytest.mark.parametrize(
    "backend", [name for name in all_backends("multi_crop") if name not in ("cpu", "eager")]
)


def few(height: int, width: int, views: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Two images of three, every stage on in each crop; mirrored in every other view."""
    indices = torch.tensor([2, 0])
    sides: dict[str, Any] = {"height": height, "width": width, "blur_probability": 1.0, "jitter_probability": 1.0}
    parameters = draw_crop_parameters(1, 2, indices, views=views, scale=(0.05, 1.0), **sides)
    parameters[..., Column.FLIP] = (torch.arange(views) % 2)[:, None]
    return random_images(3, height, width, 3), indices, parameters


@each_gpu_backend
@pytest.mark.parametrize(
    ("height", "width", "size"),
    [(32, 32, 28), (7, 50, 13), (1, 1, 1), (5, 3, 2), (9, 9, 5), (20, 30, 16), (1, 40, 33)],
)
def test_agrees_with_the_specification(height: int, width: int, size: int, backend: str) -> None:
    """Sizes around the edges of blocks; reflections that fold once, or several times; more than one tile."""
    inputs = few(height, width, views=1 if size > 32 else 2)
    exact = multi_crop(*inputs, **options(3, size), dtype=torch.float64, backend="eager")
    device = device_of(backend)
    ours = multi_crop(*(x.to(device) for x in inputs), **options(3, size), backend=backend).cpu()
    torch.testing.assert_close(ours.double(), exact, rtol=0, atol=1e-5)


@each_gpu_backend
def test_the_jitter_runs_in_every_order(backend: str) -> None:
    images = random_images(3, 6, 6, 3)
    parameters = neutral(24, 6, 6)
    parameters[..., Column.JITTER] = 1
    parameters[..., Column.BRIGHTNESS : Column.BLUR] = torch.tensor([1.3, 0.7, 1.4, 0.1])
    parameters[..., Column.ORDER] = torch.arange(24)
    inputs = (images, torch.arange(24) % 3, parameters)
    exact = multi_crop(*inputs, **options(3, 6), dtype=torch.float64, backend="eager")
    device = device_of(backend)
    ours = multi_crop(*(x.to(device) for x in inputs), **options(3, 6), backend=backend).cpu()
    torch.testing.assert_close(ours.double(), exact, rtol=0, atol=1e-5)


@each_gpu_backend
def test_one_channel_in_every_format_and_dtype(backend: str) -> None:
    images, indices, parameters = (x.to(device_of(backend)) for x in few(12, 10, views=1))
    inputs = (images[..., :1], indices, parameters)
    single = multi_crop(*inputs, **options(1, 7), backend=backend)
    for dtype in (torch.bfloat16, torch.float16):
        half = multi_crop(*inputs, **options(1, 7), dtype=dtype, backend=backend)
        assert torch.equal(half, single.to(dtype))
    first = multi_crop(images, indices, parameters, **options(3, 7), backend=backend)
    last = multi_crop(
        images, indices, parameters, **options(3, 7), memory_format=torch.contiguous_format, backend=backend
    )
    assert torch.equal(first, last)
    assert last.is_contiguous()
