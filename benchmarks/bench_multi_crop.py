"""The views of IMC-SwAV on one core: `pytest --benchmark-only benchmarks/bench_multi_crop.py`.

A step's crops of CIFAR-10 (2 of 28 pixels and 4 of 18 from 256 images of 32 pixels): the backends, and

    released        the official transforms as they are usually written, image by image in Pillow
    batched         whole batches in PyTorch, each colour operation on just the crops whose turn it is
    torch.compile   of the eager form, whose masks the compiler fuses; the batched form's index lists it cannot
    kornia          its augmentations of the same kinds on whole batches; it draws its own crops: these are not compared

Each row's `images_per_second` counts source images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from measure import DEVICE, finish
from operations import measured_backends
from pillow_crops import MEAN, STD, pillow_crops
from targets import keep
from torch import Tensor

from imc_kernels import backends, draw_crop_parameters, multi_crop
from imc_kernels.eager.multi_crop import ORDERS, brightness, contrast, gray, hue, resize, saturation
from imc_kernels.eager.multi_crop import multi_crop as specification
from imc_kernels.ops.crop_parameters import Column

BATCH, SIDE = 256, 32
CROPS = ((2, 28, (0.2, 1.0)), (4, 18, (0.08, 0.4)))  # views, size, scale
GRAYSCALE = 0.25
ROUNDS = {"cpu": 40, "eager": 3, "released": 1, "batched": 4, "torch.compile": 10, "kornia": 3}


def draw() -> list[tuple[int, Tensor]]:
    """Sizes and parameters of all crops."""
    made, first = [], 0
    for views, size, scale in CROPS:
        options = {"views": views, "first_view": first, "scale": scale, "grayscale": GRAYSCALE}
        made.append((size, draw_crop_parameters(0, 0, torch.arange(BATCH), height=SIDE, width=SIDE, **options)))  # type: ignore[arg-type]
        first += views
    return made


def batched_crops(images: Tensor, parameters: Tensor, size: int) -> Tensor:
    """uint8 [B, H, W, 3] and parameters [V, B, 13] -> [V, B, 3, size, size], and no mask over what stays."""
    crops = resize(images, parameters, size, torch.float32).flatten(0, 1)
    columns = parameters.flatten(0, 1)
    flipped = columns[:, Column.FLIP].nonzero().squeeze(1)
    crops[flipped] = crops[flipped].flip(-1)
    orders = torch.tensor(ORDERS, device=crops.device)[columns[:, Column.ORDER].long()]
    operations = (
        (brightness, Column.BRIGHTNESS),
        (contrast, Column.CONTRAST),
        (saturation, Column.SATURATION),
        (hue, Column.HUE),
    )
    jittered = columns[:, Column.JITTER] > 0
    for turn in orders.unbind(1):
        for rank, (operation, column) in enumerate(operations):
            rows = ((turn == rank) & jittered).nonzero().squeeze(1)
            crops[rows] = operation(crops[rows], columns[rows, column, None, None, None])
    colourless = columns[:, Column.GRAYSCALE].nonzero().squeeze(1)
    crops[colourless] = gray(crops[colourless]).expand(-1, 3, -1, -1)
    mean, std = (crops.new_tensor(values)[:, None, None] for values in (MEAN, STD))
    return crops.sub_(mean).div_(std).unflatten(0, parameters.shape[:2])


def compiled_crops() -> Callable[[Tensor, Tensor, int], Tensor]:
    def crops(images: Tensor, parameters: Tensor, size: int) -> Tensor:
        indices = torch.arange(len(images), device=images.device)
        return specification(images, indices, parameters, size, torch.float32, MEAN, STD, torch.contiguous_format)

    return torch.compile(crops, fullgraph=True, dynamic=False)


def kornia_crops() -> Callable[[Tensor, Tensor, int], Tensor]:
    import kornia.augmentation as augmentation

    pipelines: dict[int, Any] = {
        size: augmentation.AugmentationSequential(
            augmentation.RandomHorizontalFlip(p=0.5),
            augmentation.RandomResizedCrop((size, size), scale=scale, ratio=(3 / 4, 4 / 3)),
            augmentation.ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8),
            augmentation.RandomGrayscale(p=GRAYSCALE),
            augmentation.Normalize(torch.tensor(MEAN), torch.tensor(STD)),
        )
        for _, size, scale in CROPS
    }

    def crops(images: Tensor, parameters: Tensor, size: int) -> Tensor:
        batch = images.permute(0, 3, 1, 2).float() / 255
        # One view at a time: on two cores faster than all views as one batch.
        return torch.stack([pipelines[size](batch) for _ in range(len(parameters))])

    return crops


def make(form: str) -> Callable[[Tensor, Tensor, int], Tensor]:
    if form in backends.BACKENDS:
        return lambda images, parameters, size: multi_crop(
            images,
            torch.arange(len(images), device=images.device),
            parameters,
            size=size,
            mean=MEAN,
            std=STD,
            backend=form,
        )
    if form == "released":
        return pillow_crops
    return {"batched": lambda: batched_crops, "torch.compile": compiled_crops, "kornia": kornia_crops}[form]()


@contextmanager
def one_core() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@pytest.fixture
def one_thread() -> Iterator[None]:
    with one_core():
        yield


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("form", [*measured_backends(DEVICE.type), "batched", "torch.compile", "released", "kornia"])
def bench_crops(benchmark, form: str) -> None:  # type: ignore[no-untyped-def]
    if form == "kornia" and find_spec("kornia") is None:
        pytest.skip("kornia is not installed")
    benchmark.group = f"multi_crop imc-swav-cifar10 B{BATCH} one core"
    benchmark.name = form
    device = torch.device("cpu") if form == "released" else DEVICE
    images = torch.randint(0, 256, (BATCH, SIDE, SIDE, 3), dtype=torch.uint8, device=device)
    drawn = [(size, parameters.to(device)) for size, parameters in draw()]
    crops = make(form)
    if form in ("batched", "torch.compile"):
        for size, parameters in drawn:
            exact = make("eager")(images, parameters, size)
            torch.testing.assert_close(crops(images, parameters, size), exact, rtol=1e-3, atol=1e-3)

    def step() -> None:
        for size, parameters in drawn:
            crops(images, parameters, size)
        finish(device)

    keep(benchmark.group, form, one_core()(step))
    rounds = ROUNDS.get(form, 40)
    benchmark.pedantic(step, rounds=rounds, warmup_rounds=min(rounds - 1, 3))
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
