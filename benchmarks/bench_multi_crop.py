"""The views of IMC-SwAV on one core: `pytest --benchmark-only benchmarks/bench_multi_crop.py`.

A step's crops of CIFAR-10 (2 of 28 pixels and 4 of 18 from 256 images of 32 pixels): the backends, and the official
transforms as they are usually written, image by image in Pillow. Each row's `images_per_second` counts source images.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from imc_kernels import backends, draw_crop_parameters, multi_crop
from imc_kernels.eager.multi_crop import ORDERS
from imc_kernels.ops.crop_parameters import Column

BATCH, SIDE = 256, 32
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
CROPS = ((2, 28, (0.2, 1.0)), (4, 18, (0.08, 0.4)))  # views, size, scale
ROUNDS = {"cpu": 40, "eager": 3, "pillow": 1}


def draw() -> list[tuple[int, Tensor]]:
    """Sizes and parameters of all crops."""
    made, first = [], 0
    for views, size, scale in CROPS:
        options = {"views": views, "first_view": first, "scale": scale, "grayscale": 0.25}
        made.append((size, draw_crop_parameters(0, 0, torch.arange(BATCH), height=SIDE, width=SIDE, **options)))  # type: ignore[arg-type]
        first += views
    return made


def shift_hue(image: Image.Image, turns: float) -> Image.Image:
    hue, saturation, value = image.convert("HSV").split()
    shifted = np.array(hue) + np.uint8(round(turns * 255) % 256)
    return Image.merge("HSV", (Image.fromarray(shifted), saturation, value)).convert("RGB")


def pillow_crop(image: Image.Image, row: list[float], size: int) -> Tensor:
    top, left, height, width = (int(x) for x in row[:4])
    crop = image.crop((left, top, left + width, top + height)).resize((size, size), Image.Resampling.BILINEAR)
    if row[Column.FLIP]:
        crop = ImageOps.mirror(crop)
    if row[Column.JITTER]:
        operations: tuple[Callable[[Image.Image], Image.Image], ...] = (
            lambda x: ImageEnhance.Brightness(x).enhance(row[Column.BRIGHTNESS]),
            lambda x: ImageEnhance.Contrast(x).enhance(row[Column.CONTRAST]),
            lambda x: ImageEnhance.Color(x).enhance(row[Column.SATURATION]),
            lambda x: shift_hue(x, row[Column.HUE]),
        )
        for operation in ORDERS[int(row[Column.ORDER])]:
            crop = operations[operation](crop)
    if row[Column.GRAYSCALE]:
        crop = crop.convert("L").convert("RGB")
    tensor = torch.from_numpy(np.array(crop)).permute(2, 0, 1).contiguous().float().div_(255)
    return tensor.sub_(torch.tensor(MEAN)[:, None, None]).div_(torch.tensor(STD)[:, None, None])


def pillow_crops(images: Tensor, parameters: Tensor, size: int) -> Tensor:
    sources = [Image.fromarray(image.numpy()) for image in images]
    views = [
        torch.stack([pillow_crop(image, row, size) for image, row in zip(sources, rows, strict=True)])
        for rows in parameters.tolist()
    ]
    return torch.stack(views)


@pytest.fixture
def one_thread():  # type: ignore[no-untyped-def]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("backend", [*(name for name in ("cpu", "eager") if name in backends.available()), "pillow"])
def bench_crops(benchmark, backend: str) -> None:  # type: ignore[no-untyped-def]
    benchmark.group = f"multi_crop imc-swav-cifar10 B{BATCH} one core"
    benchmark.name = backend
    images = torch.randint(0, 256, (BATCH, SIDE, SIDE, 3), dtype=torch.uint8)
    indices, drawn = torch.arange(BATCH), draw()

    def step() -> None:
        for size, parameters in drawn:
            if backend == "pillow":
                pillow_crops(images, parameters, size)
            else:
                multi_crop(images, indices, parameters, size=size, mean=MEAN, std=STD, backend=backend)

    benchmark.pedantic(step, rounds=ROUNDS[backend], warmup_rounds=min(ROUNDS[backend] - 1, 3))
    if benchmark.stats is not None:
        benchmark.extra_info["images_per_second"] = round(BATCH / benchmark.stats.stats.min)


@pytest.mark.usefixtures("one_thread")
def bench_draw(benchmark) -> None:  # type: ignore[no-untyped-def]
    benchmark.group = f"draw_crop_parameters V6-B{BATCH} one core"
    benchmark.name = "eager"
    benchmark.pedantic(
        lambda: draw_crop_parameters(0, 0, torch.arange(BATCH), views=6, height=SIDE, width=SIDE),
        rounds=50,
        warmup_rounds=5,
    )
