"""Crops: each stage alone against Pillow or an exact reference, all stages against the specification.

Pillow rounds to 8 bits after every stage, so one stage agrees within half a step of 1/255, plus what its own integer
arithmetic adds; where Pillow works in floats (mode "F"), or the reference does, the tolerance is that of float32.
"""

import colorsys
import importlib
import re
from typing import Any

import numpy as np
import pytest
import torch
from operations import all_backends
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from imc_kernels import backends, draw_crop_parameters, multi_crop
from imc_kernels.ops.crop_parameters import Column

stages = importlib.import_module("imc_kernels.eager.multi_crop")  # the package's name is the function's
each_backend = pytest.mark.parametrize("backend", all_backends("multi_crop", torch.float64))
STEP = 1 / 255
HALF_STEP = STEP / 2 + 1e-6


def random_images(*shape: int) -> Tensor:
    return torch.randint(
        0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(len(shape) + shape[1])
    )


def neutral(count: int, height: int, width: int) -> Tensor:
    """Parameters [1, count, 13] that leave the whole image as it is."""
    parameters = torch.zeros(1, count, len(Column))
    parameters[..., Column.HEIGHT], parameters[..., Column.WIDTH] = height, width
    parameters[..., Column.BRIGHTNESS : Column.HUE] = 1
    return parameters


def run(images: Tensor, parameters: Tensor, size: int, backend: str, **options: Any) -> Tensor:
    """Crops [V, B, C, s, s] of all the images, in [0, 1]."""
    channels = images.shape[-1]
    options = {"mean": [0.0] * channels, "std": [1.0] * channels, **options}
    return multi_crop(images, torch.arange(len(images)), parameters, size=size, backend=backend, **options)


def jittered(images: Tensor, backend: str, **columns: float) -> Tensor:
    """The images after the jitter with these factors, and no other stage: float32 [B, H, W, C]."""
    parameters = neutral(len(images), *images.shape[1:3])
    parameters[..., Column.JITTER] = 1
    for name, value in columns.items():
        parameters[..., Column[name.upper()]] = value
    return run(images, parameters, images.shape[1], backend)[0].permute(0, 2, 3, 1)


def pillow(images: Tensor, function: Any) -> Tensor:
    made = [np.asarray(function(Image.fromarray(image.numpy()))) for image in images]
    return torch.from_numpy(np.stack(made)).float() / 255


BOXES = [  # height, width, (top, left, height, width), size
    (32, 32, (0, 0, 32, 32), 28),
    (32, 32, (3, 5, 20, 27), 28),
    (32, 32, (12, 0, 20, 9), 18),
    (32, 32, (31, 31, 1, 1), 5),
    (32, 32, (0, 0, 32, 32), 32),
    (96, 90, (10, 20, 70, 66), 76),
    (96, 90, (1, 2, 95, 88), 13),
    (17, 301, (0, 1, 17, 300), 16),
    (5, 3, (0, 0, 5, 3), 1),
    (40, 40, (39, 0, 1, 40), 33),
]


@each_backend
@pytest.mark.parametrize(("height", "width", "box", "size"), BOXES)
def test_resize_is_that_of_pillow(height: int, width: int, box: tuple[int, ...], size: int, backend: str) -> None:
    images = random_images(3, height, width, 3)
    parameters = neutral(3, height, width)
    parameters[..., :4] = torch.tensor(box)
    ours = run(images, parameters, size, backend)[0]
    top, left, box_height, box_width = box
    edges = (left, top, left + box_width, top + box_height)

    def resized(image: Image.Image) -> Image.Image:
        return image.crop(edges).resize((size, size), Image.Resampling.BILINEAR)

    # 8 bits: rounded after the columns and again after the rows.
    error = (ours.permute(0, 2, 3, 1) - pillow(images, resized)).abs()
    assert error.max() <= STEP + 1e-6
    assert error.mean() < 0.4 * STEP
    for image, crop in zip(images, ours, strict=True):
        for channel, expected in zip(image.unbind(-1), crop, strict=True):
            exact = np.array(resized(Image.fromarray(channel.numpy().astype(np.float32))))
            torch.testing.assert_close(expected, torch.from_numpy(exact) / 255, rtol=0, atol=1e-6)


@each_backend
def test_a_whole_image_at_its_own_size_is_exact(backend: str) -> None:
    images = random_images(4, 21, 21, 3)
    expected = images.permute(0, 3, 1, 2).double() / 255
    ours = run(images, neutral(4, 21, 21), 21, backend, dtype=torch.float64)[0]
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-15)


@each_backend
def test_flip(backend: str) -> None:
    images = random_images(4, 30, 20, 3)
    parameters = draw_crop_parameters(1, 1, torch.arange(4), views=2, height=30, width=20)
    parameters[..., Column.FLIP] = 0
    straight = run(images, parameters, 23, backend)
    parameters[:, ::2, Column.FLIP] = 1
    flipped = run(images, parameters, 23, backend)
    torch.testing.assert_close(flipped[:, ::2], straight[:, ::2].flip(-1), rtol=0, atol=1e-6)
    assert torch.equal(flipped[:, 1::2], straight[:, 1::2])
    whole = neutral(4, 30, 20)
    whole[..., Column.FLIP] = 1
    mirrored = pillow(images, lambda image: ImageOps.mirror(image).resize((23, 23), Image.Resampling.BILINEAR))
    assert (run(images, whole, 23, backend)[0].permute(0, 2, 3, 1) - mirrored).abs().max() <= STEP + 1e-6


@each_backend
@pytest.mark.parametrize("factor", [0.0, 0.6, 1.0, 1.4, 3.0])
def test_brightness_contrast_and_saturation_are_those_of_pillow(factor: float, backend: str) -> None:
    """Pillow truncates the blend (under one step), and for contrast and saturation rounds the luma before (half a step
    of it, times |1 - factor|)."""
    images = random_images(3, 19, 19, 3)
    gray = HALF_STEP * abs(1 - factor)
    for name, enhance, tolerance in (
        ("brightness", ImageEnhance.Brightness, STEP),
        ("contrast", ImageEnhance.Contrast, STEP + 2 * gray),
        ("saturation", ImageEnhance.Color, STEP + gray),
    ):
        theirs = pillow(images, lambda image, enhance=enhance: enhance(image).enhance(factor))
        assert (jittered(images, backend, **{name: factor}) - theirs).abs().max() <= tolerance + 1e-6, name


@each_backend
@pytest.mark.parametrize("turns", [-0.5, -0.3, -0.1, 0.0, 0.05, 0.1, 0.5])
def test_hue_is_a_rotation_in_hsv(turns: float, backend: str) -> None:
    """Against colorsys exactly. Pillow's hue has 8 bits: truncated (up to a step) and its shift rounded (half a step),
    at 6 steps of a channel for a step of hue, and one more of rounding."""
    images = random_images(1, 16, 16, 3)
    images[0, 0, :6] = torch.tensor(
        [[0, 0, 0], [255, 255, 255], [7, 7, 7], [255, 0, 0], [0, 255, 0], [0, 0, 255]], dtype=torch.uint8
    )
    ours = jittered(images, backend, hue=turns)
    exact = torch.empty_like(ours, dtype=torch.float64)
    for y, row in enumerate((images[0].double() / 255).tolist()):
        for x, (r, g, b) in enumerate(row):
            h, s, v = colorsys.rgb_to_hsv(r, g, b)
            exact[0, y, x] = torch.tensor(colorsys.hsv_to_rgb((h + turns) % 1, s, v), dtype=torch.float64)
    torch.testing.assert_close(ours.double(), exact, rtol=0, atol=2e-6)

    def rotated(image: Image.Image) -> Image.Image:
        hsv = np.array(image.convert("HSV"))
        hsv[..., 0] += np.uint8(round(turns * 255) % 256)
        return Image.fromarray(hsv, "HSV").convert("RGB")

    error = (ours - pillow(images, rotated)).abs()
    assert error.max() <= 10 * STEP
    assert error.mean() <= 2 * STEP


@each_backend
def test_grayscale_is_that_of_pillow(backend: str) -> None:
    images = random_images(3, 25, 25, 3)
    parameters = neutral(3, 25, 25)
    parameters[..., Column.GRAYSCALE] = 1
    ours = run(images, parameters, 25, backend)[0].permute(0, 2, 3, 1)
    assert torch.equal(ours[..., 0], ours[..., 1])
    assert torch.equal(ours[..., 0], ours[..., 2])
    # Half a step of rounding, and Pillow's weights are multiples of 2^-16.
    assert (
        ours[..., 0] - pillow(images, lambda image: image.convert("L"))
    ).abs().max() <= HALF_STEP + 255 * 2e-5 * STEP


@each_backend
@pytest.mark.parametrize("size", [1, 2, 3, 5, 16, 23])
@pytest.mark.parametrize("sigma", [1e-3, 0.1, 0.8, 2.0, 50.0])
def test_blur_is_a_gaussian_convolution(size: int, sigma: float, backend: str) -> None:
    images = random_images(2, size, size, 3)
    parameters = neutral(2, size, size)
    parameters[..., Column.BLUR] = sigma
    kernel = np.exp(-0.5 * (np.arange(-4, 5) / np.float64(np.float32(sigma))) ** 2)
    kernel /= kernel.sum()
    padded = np.pad(images.double().numpy() / 255, ((0, 0), (4, 4), (4, 4), (0, 0)), mode="reflect")
    expected = np.zeros(images.shape)
    for i in range(9):
        for j in range(9):
            expected += kernel[i] * kernel[j] * padded[:, i : i + size, j : j + size]
    ours = run(images, parameters, size, backend)[0].permute(0, 2, 3, 1)
    torch.testing.assert_close(ours.double(), torch.from_numpy(expected), rtol=0, atol=1e-6)


@each_backend
@pytest.mark.parametrize("order", range(24))
def test_the_jitter_runs_in_its_order(order: int, backend: str) -> None:
    """Against the specification's stages, one after the other."""
    images = random_images(5, 11, 11, 3)
    factors = {"brightness": 1.3, "contrast": 0.7, "saturation": 1.4, "hue": 0.1}
    expected = images.permute(0, 3, 1, 2)[None].double() / 255
    names = list(factors)
    for operation in stages.ORDERS[order]:
        name = names[operation]
        expected = getattr(stages, name)(expected, torch.tensor(factors[name], dtype=torch.float64))
    ours = jittered(images, backend, order=order, **factors)
    torch.testing.assert_close(ours.double(), expected[0].permute(0, 2, 3, 1), rtol=0, atol=2e-6)


@each_backend
def test_normalisation(backend: str) -> None:
    images, parameters = random_images(3, 9, 9, 3), neutral(3, 9, 9)
    mean, std = [0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010]
    plain = run(images, parameters, 9, backend, dtype=torch.float64)
    ours = run(images, parameters, 9, backend, dtype=torch.float64, mean=mean, std=std)
    expected = (plain - torch.tensor(mean).double().view(3, 1, 1)) / torch.tensor(std).double().view(3, 1, 1)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6)


SHAPES = [(32, 32, 28), (32, 32, 18), (96, 96, 76), (7, 50, 13), (1, 1, 1), (1, 1, 9), (5, 3, 2), (100, 300, 33)]


def everything(height: int, width: int, channels: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images, indices and parameters with every stage on in some crop."""
    indices = torch.randint(0, 40, (17,), generator=torch.Generator().manual_seed(1))
    sides: dict[str, Any] = {"height": height, "width": width, "blur_probability": 0.5}
    parameters = draw_crop_parameters(1, 2, indices, views=3, scale=(0.05, 1.0), **sides)
    return random_images(40, height, width, channels), indices, parameters


def options(channels: int, size: int, **more: Any) -> dict[str, Any]:
    return {"size": size, "mean": [0.5, 0.4, 0.45][:channels], "std": [0.2, 0.25, 0.3][:channels], **more}


@each_backend
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("height", "width", "size"), SHAPES)
def test_agrees_with_the_specification_in_float64(
    height: int, width: int, size: int, channels: int, backend: str
) -> None:
    """float32: some 30 roundings of 2^-24 on values up to 1, divided by a std of 0.2. float64 is that exact."""
    inputs = everything(height, width, channels)
    exact = multi_crop(*inputs, **options(channels, size), dtype=torch.float64, backend="eager")
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        ours = multi_crop(*inputs, **options(channels, size), dtype=dtype, backend=backend)
        assert ours.dtype == dtype
        torch.testing.assert_close(ours.double(), exact, rtol=0, atol=tolerance)


@each_backend
def test_a_crop_does_not_depend_on_its_batch(backend: str) -> None:
    images = random_images(60, 32, 32, 3)

    def crops(indices: Tensor, views: int = 4, first_view: int = 0) -> Tensor:
        parameters = draw_crop_parameters(
            1, 2, indices, views=views, first_view=first_view, height=32, width=32, blur_probability=0.5
        )
        return multi_crop(images, indices, parameters, **options(3, 18), backend=backend)

    whole = crops(torch.arange(60))
    chosen = torch.tensor([59, 3, 3, 17, 0])
    # Plain PyTorch multiplies batches of another size in another order.
    tolerance = 0 if backend == "cpu" else 1e-5
    torch.testing.assert_close(crops(chosen), whole[:, chosen], rtol=0, atol=tolerance)
    torch.testing.assert_close(crops(chosen, 2, 1), whole[1:3, chosen], rtol=0, atol=tolerance)


def test_bitwise_the_same_for_any_number_of_threads() -> None:
    if "cpu" not in backends.available():
        pytest.skip("only the CPU kernels run on threads")
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3, 2):
            torch.set_num_threads(count)
            results.append(multi_crop(*everything(96, 90, 3), **options(3, 76), backend="cpu"))
        assert all(torch.equal(results[0], other) for other in results[1:])
    finally:
        torch.set_num_threads(threads)


@each_backend
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("channels", [1, 3])
def test_half_precision_is_rounded_once(channels: int, dtype: torch.dtype, backend: str) -> None:
    inputs = everything(32, 32, channels)
    for small in (1.0, 1e-6, 1e6):  # float16 also below its normal numbers, and beyond its largest
        scaled = options(channels, 18, std=[0.2 / small] * channels)
        single = multi_crop(*inputs, **scaled, backend=backend)
        half = multi_crop(*inputs, **scaled, dtype=dtype, backend=backend)
        assert half.dtype == dtype
        assert torch.equal(half, single.to(dtype))


@each_backend
@pytest.mark.parametrize("channels", [1, 3])
def test_memory_formats(channels: int, backend: str) -> None:
    inputs = everything(32, 32, channels)
    last = multi_crop(*inputs, **options(channels, 18), backend=backend)
    first = multi_crop(*inputs, **options(channels, 18), memory_format=torch.contiguous_format, backend=backend)
    assert last.shape == first.shape == (3, 17, channels, 18, 18)
    assert torch.equal(last, first)
    assert first.is_contiguous()
    assert last.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)
    assert not last.requires_grad


@each_backend
def test_autocast_changes_nothing(backend: str) -> None:
    inputs = everything(32, 32, 3)
    expected = multi_crop(*inputs, **options(3, 18), backend=backend)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(multi_crop(*inputs, **options(3, 18), backend=backend), expected)


@each_backend
def test_input_layout_does_not_matter(backend: str) -> None:
    images, indices, parameters = everything(32, 30, 3)
    expected = multi_crop(images, indices, parameters, **options(3, 18), backend=backend)
    strided = (
        images.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1),
        torch.stack([indices, indices + 1], dim=1)[:, 0],
        parameters.permute(2, 0, 1).contiguous().permute(1, 2, 0),
    )
    assert not any(tensor.is_contiguous() for tensor in strided)
    torch.testing.assert_close(multi_crop(*strided, **options(3, 18), backend=backend), expected, rtol=0, atol=1e-5)


@each_backend
def test_one_channel_has_no_colour(backend: str) -> None:
    images, indices, parameters = everything(32, 32, 1)
    expected = multi_crop(images, indices, parameters, **options(1, 18), backend=backend)
    parameters[..., Column.SATURATION] = 0
    parameters[..., Column.HUE] = 0.4
    parameters[..., Column.GRAYSCALE] = 1
    assert torch.equal(multi_crop(images, indices, parameters, **options(1, 18), backend=backend), expected)


def changed(column: Column, value: float) -> dict[str, Tensor]:
    parameters = everything(32, 32, 3)[2]
    parameters[1, 2, column] = value
    return {"parameters": parameters}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"images": [1]}, TypeError, "images must be a torch.Tensor [M, H, W, C], got list"),
        ({"images": torch.rand(40, 32, 32, 3)}, TypeError, "images [M, H, W, C] must be torch.uint8"),
        ({"images": random_images(32, 32, 3)}, ValueError, "images must have the shape [M, H, W, C]"),
        ({"images": random_images(40, 3, 32, 32)}, ValueError, "images [M, H, W, C] must have 1 or 3 channels"),
        ({"indices": torch.arange(17).int()}, TypeError, "indices [B] must be torch.int64"),
        ({"indices": torch.arange(16)}, ValueError, "parameters must be [V, B, 13] with B = 16"),
        ({"indices": torch.arange(24, 41)}, ValueError, "indices must lie in [0, 40), got 24 to 40"),
        ({"indices": torch.arange(-1, 16)}, ValueError, "indices must lie in [0, 40), got -1 to 15"),
        ({"parameters": torch.rand(3, 17, 12)}, ValueError, "parameters must be [V, B, 13]"),
        (changed(Column.TOP, -1), ValueError, "parameters of the column TOP must lie in [0, 32]"),
        (changed(Column.WIDTH, 33), ValueError, "parameters of the column WIDTH must lie in [1, 32]"),
        (changed(Column.HEIGHT, 0), ValueError, "parameters of the column HEIGHT must lie in [1, 32]"),
        (changed(Column.LEFT, 32), ValueError, "the boxes of parameters must be whole pixels inside the images"),
        (changed(Column.HEIGHT, 1.5), ValueError, "the boxes of parameters must be whole pixels inside the images"),
        (changed(Column.ORDER, 24), ValueError, "parameters of the column ORDER must lie in [0, 23]"),
        (changed(Column.ORDER, 2.5), ValueError, "parameters of the column ORDER must be whole numbers"),
        (changed(Column.HUE, torch.nan), ValueError, "parameters of the column HUE must lie in [-0.5, 0.5]"),
        (changed(Column.CONTRAST, torch.inf), ValueError, "parameters of the column CONTRAST must lie in"),
        ({"size": 0}, ValueError, "size must be an integer of at least 1, got 0"),
        ({"size": 40000}, ValueError, "crops of 40000 pixels from images of 32 are too large"),
        ({"mean": [0.5]}, ValueError, "mean must be 3 numbers, got 1"),
        ({"std": [0.2, 0.0, 0.2]}, ValueError, "std[1] must be a finite number above 0, got 0"),
        ({"dtype": torch.uint8}, TypeError, "dtype must be float32, float64, bfloat16 or float16"),
        ({"memory_format": torch.channels_last_3d}, ValueError, "memory_format must be channels_last or contiguous"),
    ],
)
def test_bad_input_is_one_sentence(change: dict[str, Any], error: type[Exception], message: str) -> None:
    given = dict(zip(("images", "indices", "parameters"), everything(32, 32, 3), strict=True))
    given = {**given, **options(3, 18), **change}
    with pytest.raises(error, match=re.escape(f"multi_crop: {message}")):
        multi_crop(**given)
