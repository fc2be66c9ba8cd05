"""A pretrained network as the encoder of a run that trains it further."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional

from imc.models.batch_norm import view_by_view
from imc.models.frozen import CHANNELS, Pretrained, vectors
from imc.models.named import load_network
from imc.models.standardise import Standardise


class FurtherEncoder(nn.Module):
    """A pretrained network from images [B, 3, S, S] to features [B, F], whose weights are trained.

    Images of another size are resized, and grey ones repeated. The network stays in evaluation mode: the statistics of
    its batch normalisation are those of all that it has seen, which a batch of some dozen images cannot replace.

    Attributes:
        feature_dim: number of features F.
        standardise: scales the features as those of an encoder that is kept; None: nothing does.

    Args:
        pretrained: whose network is taken, not copied.
        side: S, pixels.
        scaling: see :class:`imc.models.standardise.Standardise`; None: the features are not scaled.

    Raises:
        UserError: the network does not take such images, or gives no vectors.
    """

    def __init__(self, pretrained: Pretrained, side: int, scaling: str | None = None) -> None:
        super().__init__()
        self.module, self.side = pretrained.network.eval(), side
        example = next(iter(self.module.parameters()), torch.empty(0, device="cpu"))
        images = torch.zeros(2, CHANNELS, side, side, dtype=torch.float32, device=example.device)
        with torch.no_grad():
            self.feature_dim = vectors(self.module, images, pretrained.name).shape[1]
        self.standardise = None if scaling is None else Standardise([self.feature_dim], scaling)

    def forward(self, images: Tensor, views: int = 1) -> Tensor:
        """Features float32 [V*B, F] of images [V*B, C, H, W], the ``views`` one after the other."""
        if images.shape[2:] != (self.side, self.side):
            smaller = min(images.shape[2:]) > self.side
            size = (self.side, self.side)
            images = functional.interpolate(images, size, mode="bilinear", align_corners=False, antialias=smaller)
        features = view_by_view(self.module, images.expand(-1, CHANNELS, -1, -1), views)
        return features if self.standardise is None else self.standardise(features)

    def train(self, mode: bool = True) -> FurtherEncoder:
        super().train(mode)
        self.module.eval()
        return self


@lru_cache(maxsize=1)
def _untrained(name: str) -> Pretrained:
    with torch.random.fork_rng(devices=()):  # what follows draws the same, whether it was known or not
        return load_network(name, untrained=True)


def architecture(name: str) -> Pretrained:
    """The network of an encoder's name, a new one at each call, without its weights; and what it wants."""
    known = _untrained(name)
    return replace(known, network=copy.deepcopy(known.network))


def load_weights(encoder: FurtherEncoder, name: str, weights: str | None) -> None:
    """Give an encoder the weights of its name, or those of a file.

    Raises:
        UserError: see :func:`imc.models.named.load_encoder`.
    """
    encoder.module.load_state_dict(load_network(name, weights).network.state_dict())


def statistics_for(pretrained: Pretrained, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation that the network's images are normalised by, of grey ones the means over the channels."""
    if channels == CHANNELS:
        return pretrained.mean, pretrained.std
    return (sum(pretrained.mean) / CHANNELS,), (sum(pretrained.std) / CHANNELS,)
