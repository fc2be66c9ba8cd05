"""Methods: the heads on an encoder and the loss of one step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from imc.config import Config
from imc.errors import UserError
from imc.machine.memory import machine_memory
from imc.methods.method import Method
from imc.models.encoders import build_encoder


def build_model(config: Config, encoder: nn.Module | None = None) -> Method:
    """The untrained model of a resolved configuration.

    Args:
        config: of :func:`imc.config.presets.resolve`.
        encoder: any module from images to features, in place of the configuration's.
    """
    return _build(config, build_encoder(config, encoder))


def require_memory(config: Config, encoder: nn.Module | None) -> None:
    """Refuse a model whose parameters and queue alone exceed this machine's memory, before it is built.

    Raises:
        UserError: they do.
    """
    sizes = {f"{name} {list(x.shape)}": x.numel() for name, x in _planned_state(config, encoder).items()}
    if config.queue:
        queue = (config.large_crops, config.queue, config.embedding_dim)
        sizes[f"the queue {list(queue)}"] = math.prod(queue)
    needed, memory = 4 * sum(sizes.values()), machine_memory()
    if needed > memory:
        raise UserError(
            f"the model takes {needed / 1e9:,.1f} GB, more than the memory here ({memory / 1e9:,.1f} GB); the most of "
            f"it is {max(sizes, key=lambda name: sizes[name])}"
        )


def misfit(config: Config, encoder: nn.Module | None, state: Mapping[str, Any]) -> str | None:
    """Why a state dict is not one of the model that :func:`build_model` would build, or None. It is not built."""
    try:
        planned = _planned_state(config, encoder)
    except UserError as reason:
        return str(reason)
    for name in [*planned, *state]:
        if name not in state:
            return f"{name} is not there"
        if name not in planned:
            return f"{name!r} is no tensor of the model"
        if not isinstance(state[name], Tensor) or state[name].shape != planned[name].shape:
            found = list(state[name].shape) if isinstance(state[name], Tensor) else type(state[name]).__name__
            return f"{name} is {found}, the model's {list(planned[name].shape)}"
    return None


def load_model(config: Config, encoder: nn.Module | None, state: Mapping[str, Tensor]) -> Method:
    """The model of a resolved configuration with the tensors of a state dict that fits it (:func:`misfit`).

    Nothing is drawn, so that loading leaves torch's global generator alone.
    """
    model = _planned(config, encoder)
    dtypes = {name: x.dtype for name, x in model.state_dict().items()}
    model.load_state_dict({name: x.to(dtypes[name]) for name, x in state.items()}, assign=True)
    return model


def _planned_state(config: Config, encoder: nn.Module | None) -> dict[str, Tensor]:
    """The state dict of :func:`_planned`."""
    return _planned(config, encoder).state_dict()


def _planned(config: Config, encoder: nn.Module | None) -> Method:
    """The model without its memory, but for that of an encoder of one's own."""
    try:
        own = None if encoder is None else build_encoder(config, encoder)
        with torch.device("meta"):
            return _build(config, build_encoder(config) if own is None else own)
    except (OverflowError, RuntimeError, TypeError) as error:  # 64 bits do not hold a size
        raise UserError(f"a model of these sizes cannot be built: {str(error).splitlines()[0]}") from None


def _build(config: Config, encoder: nn.Module) -> Method:
    return {"imc-swav": _imc_swav, "crlc": _crlc, "temi": _temi}[config.method](config, encoder)


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


def _temi(config: Config, encoder: nn.Module) -> Method:
    from imc.methods.temi import Temi

    return Temi(
        encoder,
        clusters=config.clusters,
        sub_heads=config.sub_heads,
        head_hidden=config.head_hidden,
        beta=config.beta,
        temperature=config.temperature,
        teacher_momentum=config.teacher_momentum,
    )
