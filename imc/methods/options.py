"""The parts of a configuration about the methods: heads and losses."""

from __future__ import annotations

from dataclasses import dataclass

from imc.command_line.options import option
from imc.data.options import BankOptions, BatchOptions, LargeCropOptions
from imc.models.options import AnyEncoderOptions

METHODS = ("imc-swav", "crlc", "temi")


@dataclass(frozen=True)
class HeadOptions:
    """What the heads and losses of all methods have."""

    clusters: int = option(None, "network", "number of clusters; default: the data set's classes", at_least=2)
    temperature: float = option(None, "loss", "divides prototype scores, or cosines of embeddings", above=0)


@dataclass(frozen=True)
class ProjectionOptions(HeadOptions):
    """What the methods with a projection have."""

    projection_hidden: int = option(None, "network", "width between the projection's two layers", at_least=1)
    embedding_dim: int = option(None, "network", "dimension of embeddings and prototypes", at_least=2)
    entropy_weight: float = option(None, "loss", "weight of the entropy of the clusters", at_least=0)
    logit_limit: float = option(None, "loss", "logits beyond +-this are penalised", above=0)


@dataclass(frozen=True)
class SubHeadOptions(HeadOptions):
    """What the methods with several cluster heads have."""

    sub_heads: int = option(None, "network", "number of cluster heads", at_least=1, method=("crlc", "temi"))
    head_hidden: int = option(
        None, "network", "width of a cluster head's hidden layer; 0: none", at_least=0, method=("crlc", "temi")
    )
    head_clusters: int | None = option(
        None,
        "network",
        "features: clusters of a head, which are merged to --clusters for the answer; default: as many",
        at_least=2,
        method=("crlc", "temi"),
    )


@dataclass(frozen=True)
class ImcSwavOptions(BankOptions, BatchOptions, ProjectionOptions):
    """IMC-SwAV."""

    projection_bias: bool = option(None, "network", "biases in the projection", method="imc-swav")
    prototypes: int = option(None, "network", "number of prototypes", at_least=2, method="imc-swav")
    classifier_widths: tuple[int, ...] = option(
        None, "network", "classifier's hidden layers", at_least=1, method="imc-swav"
    )
    sinkhorn_epsilon: float = option(
        None, "loss", "entropy regularisation of Sinkhorn-Knopp", above=0, method="imc-swav"
    )
    sinkhorn_iterations: int = option(None, "loss", "iterations of Sinkhorn-Knopp", at_least=1, method="imc-swav")
    queue: int = option(
        0, "loss", "earlier embeddings per view that join Sinkhorn-Knopp (SwAV)", at_least=0, method="imc-swav"
    )
    queue_start_epoch: int = option(
        15, "loss", "epoch from which the queue is filled, from 0", at_least=0, method="imc-swav"
    )


@dataclass(frozen=True)
class CrlcOptions(ProjectionOptions, SubHeadOptions):
    """CRLC."""

    smoothing: float = option(None, "loss", "weight of the uniform distribution", at_least=0, below=1, method="crlc")
    contrast_weight: float = option(None, "loss", "weight of the contrast of the embeddings", at_least=0, method="crlc")


@dataclass(frozen=True)
class TemiOptions(SubHeadOptions):
    """TEMI."""

    beta: float = option(None, "loss", "exponent of the joint probabilities", above=0, method="temi")
    teacher_momentum: float = option(
        None, "loss", "share of the heads' moving averages that a step leaves", at_least=0, at_most=1, method="temi"
    )


@dataclass(frozen=True)
class ModelOptions(ImcSwavOptions, AnyEncoderOptions, CrlcOptions, LargeCropOptions, TemiOptions):
    """The encoder, and the heads of the method that is chosen."""

    method: str = option(None, "run", "the method; default: imc-swav on images, crlc on features", choices=METHODS)
