from __future__ import annotations

import pytest
import torch
from torch import Tensor

from imc.data.views import Crops, Views, as_float, resize


def make(images: Tensor, seed: int = 0, **changes: object) -> Views:
    settings: dict = {"scale": 1 / 255, "rotation": 15.0, "shear": 0.15, "gain": (0.6, 1.4), "noise": 0.05} | changes
    crops = settings.pop("crops", [Crops(2, 10, (0.5, 1.1)), Crops(4, 7, (0.25, 0.6))])
    return Views(images, crops, generator=torch.Generator().manual_seed(seed), **settings)


PLAIN = {"rotation": 0.0, "shear": 0.0, "gain": (1.0, 1.0), "noise": 0.0}


@pytest.fixture
def images() -> Tensor:
    return torch.randint(0, 256, (20, 8, 8, 1), dtype=torch.uint8, generator=torch.Generator().manual_seed(9))


def test_shapes_and_types(images: Tensor) -> None:
    large, small = make(images)(torch.tensor([3, 1, 2]))
    assert large.shape == (2, 3, 1, 10, 10)
    assert small.shape == (4, 3, 1, 7, 7)
    assert large.dtype == small.dtype == torch.float32


def test_a_seed_decides_everything(images: Tensor) -> None:
    indices = torch.arange(5)
    first, again, other = (make(images, seed)(indices)[0] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_every_view_of_every_image_differs(images: Tensor) -> None:
    views = make(images, noise=0.0)(torch.zeros(6, dtype=torch.int64))[0].flatten(0, 1)
    assert len(views.flatten(1).unique(dim=0)) == len(views)


def test_without_randomness_a_full_crop_is_the_resized_image(images: Tensor) -> None:
    indices = torch.arange(4)
    whole = make(images, crops=[Crops(1, 8, (1.0, 1.0))], **PLAIN)(indices)[0][0]
    torch.testing.assert_close(whole, as_float(images[:4], 1 / 255))
    torch.testing.assert_close(resize(images[:4], 8, 1 / 255), as_float(images[:4], 1 / 255))


def test_transforms_are_rotations_scaled_to_the_area(images: Tensor) -> None:
    theta = make(images, shear=0.0)._transforms(500, (0.25, 0.6))
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
    crops = [Crops(1, 8, (1.0, 1.0))]
    indices = torch.arange(20)
    noisy = make(images, crops=crops, **(PLAIN | {"noise": 0.05}))(indices)[0][0] - as_float(images, 1 / 255)
    assert noisy.std().item() == pytest.approx(0.05, rel=0.1)
    bright = make(images, crops=crops, **(PLAIN | {"gain": (2.0, 2.0)}))(indices)[0][0]
    torch.testing.assert_close(bright, 2 * as_float(images, 1 / 255))
