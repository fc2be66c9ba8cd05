"""ResNet-18, -34 and -50 (arXiv 1512.03385) without the last layer, with stems for small images.

The names of parameters and buffers are those of torchvision's ResNets, so that their checkpoints fit. ResNet-50 has its
stride in the 3x3 convolution, as there.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from imc.models.batch_norm import PerViewBatchNorm
from imc.models.convolution import Convolution, PointwiseConvolution

Norm = Callable[[int], PerViewBatchNorm]
BLOCKS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3), "resnet50": (3, 4, 6, 3)}


def _convolution(before: int, after: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    if kernel == 1:
        return PointwiseConvolution(before, after, 1, stride=stride, bias=False, dtype=torch.float32)
    return Convolution(before, after, kernel, stride=stride, padding=kernel // 2, bias=False, dtype=torch.float32)


class Downsample(nn.Sequential):
    """The 1x1 convolution of a shortcut and its norm."""

    def forward(self, x: Tensor, views: int = 1) -> Tensor:
        convolution, norm = self
        return norm(convolution(x), views)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    expansion = 1

    def __init__(self, before: int, width: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.conv1, self.bn1 = _convolution(before, width, 3, stride), norm(width)
        self.conv2, self.bn2 = _convolution(width, width, 3), norm(width)
        self.downsample = _shortcut(before, width, stride, norm)

    def forward(self, x: Tensor, views: int = 1) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x, views)
        x = self.bn1(self.conv1(x), views, relu=True)
        return self.bn2(self.conv2(x), views, relu=True, residual=shortcut)


class Bottleneck(nn.Module):
    """Convolutions of 1x1, 3x3 and 1x1, the last four times as wide, and a shortcut."""

    expansion = 4

    def __init__(self, before: int, width: int, stride: int, norm: Norm) -> None:
        super().__init__()
        after = self.expansion * width
        self.conv1, self.bn1 = _convolution(before, width, 1), norm(width)
        self.conv2, self.bn2 = _convolution(width, width, 3, stride), norm(width)
        self.conv3, self.bn3 = _convolution(width, after, 1), norm(after)
        self.downsample = _shortcut(before, after, stride, norm)

    def forward(self, x: Tensor, views: int = 1) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x, views)
        x = self.bn1(self.conv1(x), views, relu=True)
        x = self.bn2(self.conv2(x), views, relu=True)
        return self.bn3(self.conv3(x), views, relu=True, residual=shortcut)


def _shortcut(before: int, after: int, stride: int, norm: Norm) -> Downsample | None:
    if stride == 1 and before == after:
        return None
    return Downsample(_convolution(before, after, 1, stride), norm(after))


class ResNet(nn.Module):
    """Images to the average of the last map.

    Attributes:
        feature_dim: number of features F: 512, or 2048 for ResNet-50.

    Args:
        name: resnet18, resnet34 or resnet50.
        in_channels: channels of the images.
        stem: "cifar", a 3x3 convolution; "cifar-pool", the same and a 2x2 max-pool; "imagenet", a 7x7 convolution and a
            3x3 max-pool, both of stride 2.
        bn_momentum: momentum of the running statistics.
        width: channels of the first stage; the others have 2, 4 and 8 times as many.
    """

    def __init__(self, name: str, in_channels: int, *, stem: str, bn_momentum: float, width: int = 64) -> None:
        super().__init__()

        def norm(channels: int) -> PerViewBatchNorm:
            return PerViewBatchNorm(channels, momentum=bn_momentum, dtype=torch.float32)

        block = Bottleneck if name == "resnet50" else BasicBlock
        self.feature_dim = block.expansion * 8 * width
        kernel, stride = (7, 2) if stem == "imagenet" else (3, 1)
        self.conv1, self.bn1 = _convolution(in_channels, width, kernel, stride), norm(width)
        pools = {"cifar": nn.Identity(), "cifar-pool": nn.MaxPool2d(2), "imagenet": nn.MaxPool2d(3, 2, padding=1)}
        self.maxpool = pools[stem]
        before = width
        for stage, count in enumerate(BLOCKS[name]):
            layer = nn.ModuleList()
            for index in range(count):
                layer.append(block(before, width * 2**stage, 2 if stage > 0 and index == 0 else 1, norm))
                before = block.expansion * width * 2**stage
            setattr(self, f"layer{stage + 1}", layer)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor, views: int = 1) -> Tensor:
        """Features [V*B, F] of images [V*B, C, H, W], the ``views`` one after the other."""
        x = self.maxpool(self.bn1(self.conv1(images), views, relu=True))
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            for block in layer:  # type: ignore[union-attr]
                x = block(x, views)
        return torch.flatten(functional.adaptive_avg_pool2d(x, 1), 1)
