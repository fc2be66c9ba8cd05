"""The parts of a configuration about the encoder."""

from __future__ import annotations

from dataclasses import dataclass

from imc.command_line.options import option
from imc.data.options import ColumnsOptions, ImageOptions
from imc.models.encoder_names import ACCEPTED, DEFAULT, LITES
from imc.models.standardise import SCALINGS

ENCODERS = ("digits", "resnet18", "resnet34", "resnet50", "custom")


@dataclass(frozen=True)
class EncoderNameOptions:
    """Which encoder."""

    encoder: str = option(
        None,
        "network",
        f"one that is trained: {', '.join(ENCODERS)} (a module given from Python); or one that is kept, whose features "
        f"are clustered: {ACCEPTED}",
        suggested=(*ENCODERS[:-1], *LITES),
    )
    train_encoder: bool = option(
        False, "network", f"train an --encoder that would be kept, from its weights, on the pixels (default: {DEFAULT})"
    )

    @property
    def is_pretrained(self) -> bool:
        """Whether the encoder comes with weights."""
        return self.encoder is not None and self.encoder not in ENCODERS

    @property
    def encodes(self) -> bool:
        """Whether an encoder that is kept makes the samples of images."""
        return self.is_pretrained and not self.train_encoder


@dataclass(frozen=True)
class KeptEncoderOptions(EncoderNameOptions):
    """An encoder that is kept: its features are clustered."""

    weights: str | None = option(
        None,
        "network",
        "of a pretrained encoder: a .pt, .pth, .safetensors or .npz instead of those of its name",
        path=True,
    )
    weights_sha256: str | None = option(None, "network", "of an encoder that is kept; found in it")


@dataclass(frozen=True)
class EncoderOptions(ImageOptions, EncoderNameOptions):
    """An encoder that is trained."""

    stem: str = option(
        None,
        "network",
        "ResNets: cifar (3x3), cifar-pool (the same and a max-pool) or imagenet (7x7, stride 2)",
        choices=("cifar", "cifar-pool", "imagenet"),
    )
    bn_momentum: float = option(
        None, "network", "weight of each view in the running statistics of batch normalisation", above=0, at_most=1
    )


@dataclass(frozen=True)
class DigitsEncoderOptions(EncoderOptions):
    """The small encoder; of another one, only the number of features is known."""

    widths: tuple[int, ...] = option(None, "network", "encoder digits: channels of the 3x3 convolutions", at_least=1)
    pool_after: int = option(
        None, "network", "encoder digits: convolution that the 2x2 max-pool follows, counted from 1", at_least=1
    )
    pooled_size: int = option(
        None, "network", "encoder digits: side of the map that average pooling leaves", at_least=1
    )
    feature_dim: int = option(None, "network", "encoder digits: features; else found in the encoder", at_least=1)


@dataclass(frozen=True)
class StandardiseOptions(ColumnsOptions):
    """What stands in an encoder's place where the samples are rows of features."""

    scaling: str = option(
        None,
        "views",
        "features: of each row the length, of each column the deviation, or neither becomes 1; default: length, of "
        "measurements, pixels and counts another, by their numbers",
        choices=SCALINGS,
    )


@dataclass(frozen=True)
class AnyEncoderOptions(StandardiseOptions, DigitsEncoderOptions):
    """The encoder that is chosen."""


@dataclass(frozen=True)
class PretrainedOptions:
    """What the encoder's weights begin with."""

    init: str | None = option(
        None,
        "training",
        "initialise the encoder: a run's folder, or another program's .pt, .pth, .safetensors, .npz",
        path=True,
    )
    init_prefix: str | None = option(
        None, "training", "which encoder of several in --init's file: what stands before its names, such as teacher"
    )
    freeze_encoder: bool = option(False, "training", "train the heads only, on --init's encoder")
