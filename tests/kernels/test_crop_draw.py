"""Crops whose random numbers the kernels draw: the same bits as of parameters that were drawn before."""

from __future__ import annotations

import importlib.util
import inspect
from typing import Any

import pytest
import torch
from operations import native_backends
from torch import Tensor

from imc_kernels import CropDraw, backends, draw_crop_parameters, multi_crop
from imc_kernels.ops.crop_parameters import Column

SAMPLES = [3, 2**40 + 1, 0]
DRAWS: dict[str, dict[str, Any]] = {
    "usual": {"height": 9, "width": 8},
    "all happens": {"height": 9, "width": 8, "jitter_probability": 1.0, "blur_probability": 1.0, "grayscale": 1.0},
    "nothing happens": {"height": 9, "width": 8, "jitter_probability": 0.0, "flip": 0.0, "grayscale": 0.0},
    "no attempt fits, wide": {"height": 4, "width": 60, "scale": (0.9, 1.0)},
    "no attempt fits, high": {"height": 60, "width": 4, "scale": (0.9, 1.0)},
    "later views, small boxes": {"height": 40, "width": 30, "first_view": 2**40, "scale": (0.01, 0.5)},
}
STEPS = {"a number": lambda: -5, "a tensor": lambda: torch.tensor(2**62)}


if importlib.util.find_spec("triton") is not None:
    import triton
    import triton.language as tl

    from imc_kernels.triton.crop_draw import COLUMNS, drawn

    @triton.jit
    def draw_kernel(
        samples, update, key, first_view, to, batch, height: tl.constexpr, width: tl.constexpr, law: tl.constexpr
    ):
        crop = tl.program_id(0).to(tl.int64)
        sample = tl.load(samples + crop % batch)
        (
            top, left, box_height, box_width, brightness, contrast, saturation, hue, sigma, flip, jitter, gray, order,
        ) = drawn(update, key, first_view + crop // batch, sample, height, width, law)  # fmt: skip
        to += crop * COLUMNS
        tl.store(to, top.to(tl.float32))
        tl.store(to + 1, left.to(tl.float32))
        tl.store(to + 2, box_height.to(tl.float32))
        tl.store(to + 3, box_width.to(tl.float32))
        tl.store(to + 4, brightness)
        tl.store(to + 5, contrast)
        tl.store(to + 6, saturation)
        tl.store(to + 7, hue)
        tl.store(to + 8, sigma)
        tl.store(to + 9, flip.to(tl.float32))
        tl.store(to + 10, jitter.to(tl.float32))
        tl.store(to + 11, gray.to(tl.float32))
        tl.store(to + 12, order.to(tl.float32))


def draw(name: str, step: Any, views: int = 2, samples: list[int] = SAMPLES) -> CropDraw:
    return CropDraw(2**63 - 1, step, torch.tensor(samples), views=views, **DRAWS[name])


# In Triton's interpreter a crop takes a second: the other draws are those of test_triton_draws_the_same_bits.
SLOW = "triton" if backends.BACKENDS["triton"].emulated() else None
CROPS = [(b, name) for b in native_backends("multi_crop") for name in (["usual"] if b == SLOW else DRAWS)]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(("backend", "name"), CROPS)
def test_crops_are_those_of_the_drawn_parameters(backend: str, name: str, step: str) -> None:
    made = draw(name, STEPS[step](), *((1, [2**40 + 1]) if backend == SLOW else ()))
    size = 40 if name == "usual" and backend != SLOW else 5
    images = torch.randint(0, 256, (2, made.height, made.width, 3), generator=torch.Generator().manual_seed(0))
    given = images.to(torch.uint8), torch.tensor([1, 0, 1])[: len(made.indices)]
    options: dict[str, Any] = {"size": size, "mean": [0.5] * 3, "std": [0.2] * 3, "backend": backend}
    expected = multi_crop(*given, made.parameters(), **options)
    assert torch.equal(multi_crop(*given, made, **options), expected)


@pytest.mark.skipif(SLOW is None, reason="Triton's interpreter is not on")
@pytest.mark.parametrize("name", DRAWS)
def test_triton_draws_the_same_bits(name: str) -> None:
    step = torch.tensor(-7)
    made = draw(name, step, views=2, samples=[*range(10), 2**50])
    expected, found = made.parameters(), torch.empty(2, 11, len(Column))
    numbers = (made.indices, step, made.key(), made.first_view, found, 11)
    draw_kernel[(22,)](*numbers, made.height, made.width, made.law())
    assert torch.equal(found, expected)


def test_the_function_and_the_class_take_the_same() -> None:
    ours, theirs = inspect.signature(draw_crop_parameters), inspect.signature(CropDraw)
    assert ours.parameters == theirs.parameters
    options = DRAWS["usual"]
    parameters = draw_crop_parameters(1, 2, torch.arange(3), views=2, **options)
    assert torch.equal(parameters, CropDraw(1, 2, torch.arange(3), views=2, **options).parameters())


IMAGES = torch.zeros(3, 9, 8, 3, dtype=torch.uint8)
WRONG: dict[str, tuple[Tensor, str]] = {
    "size": (torch.zeros(3, 8, 9, 3, dtype=torch.uint8), "must be for images of 8 x 9, got one for 9 x 8"),
    "samples": (IMAGES, r"indices must be \[B\] with B = 2, the number of indices, on cpu, got \[3\] on cpu"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_draw_for_something_else_is_refused(case: str) -> None:
    images, sentence = WRONG[case]
    indices = torch.arange(2 if case == "samples" else 3)
    with pytest.raises(ValueError, match=f"multi_crop: the draw.*{sentence}"):
        multi_crop(images, indices, draw("usual", 0), size=4, mean=[0.5] * 3, std=[0.2] * 3)
