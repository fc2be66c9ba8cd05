"""Methods: the heads on an encoder and the loss of one step."""

from __future__ import annotations

from torch import nn

from imc.config import Config
from imc.methods.method import Method
from imc.models.encoders import build_encoder


def build_model(config: Config, encoder: nn.Module | None = None) -> Method:
    """The untrained model of a resolved configuration.

    Args:
        config: of :func:`imc.presets.resolve`.
        encoder: any module from images to features, in place of the configuration's.
    """
    build = {"imc-swav": _imc_swav, "crlc": _crlc}[config.method]
    return build(config, build_encoder(config, encoder))


def _imc_swav(config: Config, encoder: nn.Module) -> Method:
    from imc.methods.imc_swav import ImcSwav

    return ImcSwav(
        encoder,
        projection_hidden=config.projection_hidden,
        embedding_dim=config.embedding_dim,
        projection_bias=config.projection_bias,
        prototypes=config.prototypes,
        clusters=config.clusters,
        classifier_widths=config.classifier_widths,
        bn_momentum=config.bn_momentum,
        sinkhorn_epsilon=config.sinkhorn_epsilon,
        sinkhorn_iterations=config.sinkhorn_iterations,
        temperature=config.temperature,
        entropy_weight=config.entropy_weight,
        logit_limit=config.logit_limit,
        bank=config.batch_size if config.bank else 0,
        queue=config.queue,
        queue_start_epoch=config.queue_start_epoch,
    )


def _crlc(config: Config, encoder: nn.Module) -> Method:
    from imc.methods.crlc import Crlc

    return Crlc(
        encoder,
        projection_hidden=config.projection_hidden,
        embedding_dim=config.embedding_dim,
        clusters=config.clusters,
        sub_heads=config.sub_heads,
        head_hidden=config.head_hidden,
        temperature=config.temperature,
        contrast_weight=config.contrast_weight,
        smoothing=config.smoothing,
        entropy_weight=config.entropy_weight,
        logit_limit=config.logit_limit,
    )
