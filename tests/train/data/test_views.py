from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from imc.config import Config
from imc.config.filling import filled
from imc.data.outline import Outline
from imc.data.pixels import ResidentPixels, StreamedPixels, open_pixels
from imc.data.views import AffineViews, Batch, CropViews, as_float, epoch_order, prepare, resize
from imc.errors import UserError
from imc_kernels import multi_crop


@pytest.fixture
def images() -> Tensor:
    return torch.randint(0, 256, (20, 8, 8, 1), dtype=torch.uint8, generator=torch.Generator().manual_seed(9))


def configured(**changes: object) -> Config:
    config = filled(Config(clusters=2), Outline("digits", 1000, 10, side=8, channels=1))
    defaults = {"pixel_scale": 1 / 255, "mean": (0.3,), "std": (0.2,), "channels_last": "on"}
    return dataclasses.replace(config, **(defaults | changes))


def batch(images: Tensor, samples: Tensor, start: int = 0, total: int | None = None) -> Batch:
    return Batch(images, samples, samples, start, len(samples) if total is None else total)


def affine(images: Tensor, samples: Tensor, update: int = 0, **changes: object) -> list[Tensor]:
    return AffineViews(configured(**changes), torch.device("cpu"))(batch(images, samples), update)


KINDS = {
    "affine": lambda config: AffineViews(config, torch.device("cpu")),
    "crops": CropViews,
}
PLAIN = {"rotation": 0.0, "shear": 0.0, "gain": (1.0, 1.0), "noise": 0.0}
ONE = {"large_crops": 1, "large_size": 8, "large_area": (1.0, 1.0), "small_crops": 0}


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_and_types(kind: str, images: Tensor) -> None:
    config = configured(large_size=10, small_size=7)
    large, small = KINDS[kind](config)(batch(images, torch.tensor([3, 1, 2])), 0)
    assert large.shape == (2, 3, 1, 10, 10)
    assert small.shape == (4, 3, 1, 7, 7)
    assert large.dtype == small.dtype == torch.float32


@pytest.mark.parametrize("kind", KINDS)
def test_seed_update_and_samples_decide_everything(kind: str, images: Tensor) -> None:
    samples = torch.arange(5)
    first, again, other_update = (KINDS[kind](configured())(batch(images, samples), update)[0] for update in (3, 3, 4))
    other_seed = KINDS[kind](configured(seed=1))(batch(images, samples), 3)[0]
    assert torch.equal(first, again)
    assert not torch.equal(first, other_update)
    assert not torch.equal(first, other_seed)


@pytest.mark.parametrize("kind", KINDS)
def test_the_parts_of_the_ranks_are_the_batch_of_one(kind: str, images: Tensor) -> None:
    samples = torch.randperm(20)[:6]
    views = KINDS[kind](configured())
    whole = views(batch(images, samples), 5)
    parts = [views(batch(images, samples[start : start + 2], start, 6), 5) for start in (0, 2, 4)]
    for size, expected in enumerate(whole):
        assert torch.equal(torch.cat([part[size] for part in parts], dim=1), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("order", ["on", "off"])
def test_memory_order(kind: str, order: str, images: Tensor) -> None:
    colour = images.expand(-1, -1, -1, 3).contiguous()
    config = configured(channels_last=order, mean=(0.3,) * 3, std=(0.2,) * 3)
    expected = torch.channels_last if order == "on" else torch.contiguous_format
    for size in KINDS[kind](config)(batch(colour, torch.arange(4)), 0):
        assert size.flatten(0, 1).is_contiguous(memory_format=expected)


def test_every_view_of_every_image_differs(images: Tensor) -> None:
    views = affine(images, torch.zeros(6, dtype=torch.int64), noise=0.0)[0].flatten(0, 1)
    assert len(views.flatten(1).unique(dim=0)) == len(views)


def test_without_randomness_a_full_crop_is_the_prepared_image(images: Tensor) -> None:
    samples = torch.arange(4)
    whole = affine(images, samples, **ONE, **PLAIN)[0][0]
    torch.testing.assert_close(whole, as_float(images[:4], 1 / 255))
    torch.testing.assert_close(resize(images[:4], 8, 1 / 255), whole)
    torch.testing.assert_close(prepare(images[:4], configured(**ONE)), whole)

    config = configured(**ONE, augmentation="crops", flip=0.0, jitter_probability=0.0, grayscale=0.0)
    parameters = CropViews(config).draws(batch(images, samples), 0)[0].parameters()
    parameters[..., :4] = torch.tensor([0.0, 0.0, 8.0, 8.0])  # the whole image
    whole = multi_crop(images, samples, parameters, size=config.large_size, mean=config.mean, std=config.std)[0]
    torch.testing.assert_close(whole, prepare(images[:4], config), rtol=1e-5, atol=1e-5)


def test_transforms_are_rotations_scaled_to_the_area() -> None:
    theta = AffineViews(configured(shear=0.0), torch.device("cpu"))._transforms(5, 100, (0.25, 0.6)).flatten(0, 1)
    linear, shift = theta[:, :, :2], theta[:, :, 2]
    area = torch.linalg.det(linear)
    assert 0.25 <= area.min() < 0.3
    assert 0.55 < area.max() <= 0.6
    torch.testing.assert_close(linear @ linear.mT, area.view(-1, 1, 1) * torch.eye(2).expand(500, 2, 2))
    degrees = torch.rad2deg(torch.atan2(linear[:, 1, 0], linear[:, 0, 0]))
    assert 13 < degrees.max() <= 15
    assert -15 <= degrees.min() < -13
    assert (shift.abs() <= 1 - area.sqrt().view(-1, 1) + 1e-6).all()


def test_noise_and_gain(images: Tensor) -> None:
    samples = torch.arange(20)
    noisy = affine(images, samples, **ONE, **(PLAIN | {"noise": 0.05}))[0][0] - as_float(images, 1 / 255)
    assert noisy.std().item() == pytest.approx(0.05, rel=0.1)
    bright = affine(images, samples, **ONE, **(PLAIN | {"gain": (2.0, 2.0)}))[0][0]
    torch.testing.assert_close(bright, 2 * as_float(images, 1 / 255))


def test_every_epoch_has_its_own_order_of_all_samples() -> None:
    first, again, second = (epoch_order(configured(), 50, epoch) for epoch in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    assert torch.equal(second.sort().values, torch.arange(50))


def test_streamed_images_are_the_resident_ones(images: Tensor) -> None:
    parts, device = [images[:7], images[7:]], torch.device("cpu")
    rows = list(torch.randperm(20).split(6))
    pairs = zip(
        ResidentPixels(parts, device).batches(rows, 0, 6),
        StreamedPixels(parts, device).batches(rows, 0, 6),
        strict=True,
    )
    for resident, streamed in pairs:
        assert torch.equal(resident.samples, streamed.samples)
        assert torch.equal(resident.images[resident.positions], streamed.images[streamed.positions])


def test_the_device_holds_the_data_by_choice_or_where_they_fit(images: Tensor) -> None:
    device = torch.device("cpu")
    assert isinstance(open_pixels([images], device, "auto"), ResidentPixels)
    assert isinstance(open_pixels([images, images], device, "auto"), StreamedPixels)  # one tensor would be a copy
    assert isinstance(open_pixels([images], device, "off"), StreamedPixels)
    with pytest.raises(UserError, match="images of one shape"):
        open_pixels([images, images[:, :4]], device, "on")
