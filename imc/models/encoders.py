"""Encoders: from images to features."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from imc.command_line.options import part
from imc.errors import UserError
from imc.models.batch_norm import PerViewBatchNorm, view_by_view
from imc.models.convolution import Convolution
from imc.models.further import FurtherEncoder, architecture
from imc.models.options import AnyEncoderOptions, DigitsEncoderOptions, EncoderOptions
from imc.models.resnet import ResNet
from imc.models.standardise import Standardise


class DigitsEncoder(nn.Module):
    """A small convolutional network for images of about 8x8 pixels.

    3x3 convolutions, each with batch normalisation and ReLU, the last of stride 2; one 2x2 max-pool; average pooling to
    a small map; a linear layer, whose output is normalised without scale and shift, so that no feature can grow into a
    direction that all embeddings share.

    Attributes:
        feature_dim: number of features F.

    Args:
        in_channels: channels of the images.
        widths: output channels of each convolution.
        pool_after: the convolution, counted from 1, that the max-pool follows.
        pooled_size: side of the map that average pooling leaves.
        feature_dim: number of features.
        bn_momentum: momentum of the running statistics.
    """

    def __init__(
        self,
        in_channels: int,
        *,
        widths: Sequence[int],
        pool_after: int,
        pooled_size: int,
        feature_dim: int,
        bn_momentum: float,
    ) -> None:
        super().__init__()
        self.feature_dim = feature_dim
        self.pool_after = pool_after
        self.pooled_size = pooled_size
        strides = [*[1] * (len(widths) - 1), 2]
        convolutions = [
            Convolution(before, after, kernel_size=3, stride=stride, padding=1, bias=False, dtype=torch.float32)
            for (before, after), stride in zip(pairwise([in_channels, *widths]), strides, strict=True)
        ]
        for convolution in convolutions:
            nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
        self.convolutions = nn.ModuleList(convolutions)
        self.norms = nn.ModuleList(
            PerViewBatchNorm(width, momentum=bn_momentum, dtype=torch.float32) for width in widths
        )
        self.linear = nn.Linear(widths[-1] * pooled_size**2, feature_dim, dtype=torch.float32)
        self.output_norm = PerViewBatchNorm(feature_dim, momentum=bn_momentum, affine=False, dtype=torch.float32)

    def forward(self, images: Tensor, views: int = 1) -> Tensor:
        """Features [V*B, F] of images [V*B, C, H, W], the ``views`` one after the other."""
        x = images
        for position, (convolution, norm) in enumerate(zip(self.convolutions, self.norms, strict=True), start=1):
            x = norm(convolution(x), views, relu=True)
            if position == self.pool_after:
                x = functional.max_pool2d(x, 2)
        features = self.linear(functional.adaptive_avg_pool2d(x, self.pooled_size).flatten(1))
        return self.output_norm(features, views)


class CustomEncoder(nn.Module):
    """Any module from images [B, C, H, W] to features [B, F] or maps [B, F, 1, 1].

    The views pass it one after the other, so whatever batch normalisation it has sees one view at a time.

    Attributes:
        feature_dim: number of features F, found by one image.
    """

    def __init__(self, module: nn.Module, in_channels: int, side: int) -> None:
        super().__init__()
        self.module = module
        mode = module.training
        module.eval()
        try:
            example = next((p for p in module.parameters()), torch.empty(0, device="cpu"))
            with torch.no_grad():
                features = self(torch.zeros(1, in_channels, side, side, dtype=torch.float32, device=example.device))
        except (RuntimeError, TypeError, ValueError) as error:
            raise UserError(
                f"the encoder must take images [B, {in_channels}, {side}, {side}] of float32: {error}"
            ) from error
        finally:
            module.train(mode)
        self.feature_dim = features.shape[1]

    def forward(self, images: Tensor, views: int = 1) -> Tensor:
        """Features [V*B, F] of images [V*B, C, H, W], the ``views`` one after the other."""
        return view_by_view(self.module, images, views)


def number_of_features(options: AnyEncoderOptions) -> int:
    """Of the encoder that the options name; one of one's own is known once it is built."""
    if options.columns is not None or options.encoder in ("digits", "custom"):
        return options.feature_dim
    if options.train_encoder:
        return FurtherEncoder(pretrained := architecture(options.encoder), pretrained.side).feature_dim
    with torch.device("meta"):
        return int(build_encoder(options, side=options.side).feature_dim)  # type: ignore[arg-type]


def build_encoder(options: AnyEncoderOptions, custom: nn.Module | None = None, *, side: int) -> nn.Module:
    """The untrained encoder that the options name, or ``custom`` as one, tried on an image of this side."""
    if options.columns is not None:
        return Standardise(options.columns, options.scaling)
    if custom is not None:
        return CustomEncoder(custom, options.channels, side)
    if options.train_encoder:
        return FurtherEncoder(architecture(options.encoder), side, options.scaling)
    if options.encoder == "custom":
        raise UserError("--encoder custom is a module given from Python: train(config, encoder=module)")
    if options.encoder == "digits":
        small = part(options, DigitsEncoderOptions)
        return DigitsEncoder(
            small.channels,
            widths=small.widths,
            pool_after=small.pool_after,
            pooled_size=small.pooled_size,
            feature_dim=small.feature_dim,
            bn_momentum=small.bn_momentum,
        )
    resnet = part(options, EncoderOptions)
    return ResNet(resnet.encoder, resnet.channels, stem=resnet.stem, bn_momentum=resnet.bn_momentum)
