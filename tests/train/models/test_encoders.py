from __future__ import annotations

import pytest
import torch
from torch import nn

from imc.errors import UserError
from imc.models.convolution import PointwiseConvolution
from imc.models.encoders import CustomEncoder
from imc.models.resnet import ResNet


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("name", "stem", "count"),
    [
        ("resnet18", "cifar", 11_168_832),  # the specification's number
        ("resnet34", "cifar", 21_276_992),
        ("resnet50", "imagenet", 23_508_032),  # torchvision's 25,557,032 less the last layer's 2,049,000
    ],
)
def test_parameter_counts(name: str, stem: str, count: int) -> None:
    with torch.device("meta"):
        assert parameters(ResNet(name, 3, stem=stem, bn_momentum=0.1)) == count


@pytest.mark.parametrize(("stem", "side"), [("cifar", 32), ("cifar-pool", 64), ("imagenet", 128)])
def test_each_stem_gives_the_last_stage_a_map_of_four_pixels(stem: str, side: int) -> None:
    encoder = ResNet("resnet18", 3, stem=stem, bn_momentum=0.1).to("meta")
    maps: list[torch.Size] = []
    encoder.layer4[-1].register_forward_hook(lambda _module, _inputs, output: maps.append(output.shape))
    assert encoder(torch.empty(4, 3, side, side, device="meta"), 2).shape == (4, 512)
    assert maps == [(4, 512, 4, 4)]


def test_convolutions_are_initialised_by_their_fan_out() -> None:
    torch.manual_seed(0)
    weight = ResNet("resnet18", 3, stem="cifar", bn_momentum=0.1).layer3[0].conv1.weight
    assert weight.std().item() == pytest.approx((2 / (256 * 9)) ** 0.5, rel=0.01)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_batching_of_views_equals_one_pass_per_view(name: str) -> None:
    torch.manual_seed(0)
    encoder = ResNet(name, 3, stem="cifar", bn_momentum=0.1).double()
    images = torch.rand(2, 3, 3, 12, 12, dtype=torch.float64)
    together = encoder(images.flatten(0, 1), 2)
    torch.testing.assert_close(together, torch.cat([encoder(view) for view in images]))


@pytest.mark.parametrize("stride", [1, 2])
def test_a_pointwise_convolution_is_one_in_training_too(stride: int) -> None:
    torch.manual_seed(0)
    layer = PointwiseConvolution(5, 7, 1, stride=stride, bias=False)
    x = torch.randn(3, 5, 9, 9).contiguous(memory_format=torch.channels_last).requires_grad_()
    trained, evaluated = layer.train()(x), layer.eval()(x)
    torch.testing.assert_close(trained, evaluated)
    assert trained.is_contiguous(memory_format=torch.channels_last)
    direction = torch.randn_like(trained)
    for ours, expected in zip(
        torch.autograd.grad(trained, (x, layer.weight), direction),
        torch.autograd.grad(evaluated, (x, layer.weight), direction),
        strict=True,
    ):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_any_module_sees_one_view_at_a_time() -> None:
    module = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.AdaptiveAvgPool2d(1))
    encoder = CustomEncoder(module, 3, 8)
    assert encoder.feature_dim == 5
    images = torch.rand(6, 3, 8, 8) + torch.arange(2).repeat_interleave(3).view(6, 1, 1, 1)
    expected = torch.cat([module(view).flatten(1) for view in images.chunk(2)])
    torch.testing.assert_close(encoder(images, 2), expected)


def test_a_module_that_cannot_take_the_images_is_refused() -> None:
    with pytest.raises(UserError, match=r"the encoder must take images \[B, 1, 8, 8\]"):
        CustomEncoder(nn.Conv2d(3, 5, 3), 1, 8)
