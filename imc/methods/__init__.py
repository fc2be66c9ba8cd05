"""Methods: the heads on an encoder and the loss of one step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from imc.command_line.options import part
from imc.errors import UserError
from imc.machine.memory import machine_memory
from imc.methods.method import Method
from imc.methods.options import CrlcOptions, ImcSwavOptions, ModelOptions, TemiOptions
from imc.models.encoders import build_encoder


def build_model(options: ModelOptions, encoder: nn.Module | None = None) -> Method:
    """The untrained model of resolved options.

    Args:
        options: resolved.
        encoder: any module from images to features, in place of the one that they name.
    """
    return _build(options, build_encoder(options, encoder, side=options.large_size))


def require_memory(options: ModelOptions, encoder: nn.Module | None) -> None:
    """Refuse a model whose parameters and queue alone exceed this machine's memory, before it is built.

    Raises:
        UserError: they do.
    """
    sizes = {f"{name} {list(x.shape)}": x.numel() for name, x in _planned_state(options, encoder).items()}
    if options.queue:
        queue = (options.large_crops, options.queue, options.embedding_dim)
        sizes[f"the queue {list(queue)}"] = math.prod(queue)
    needed, memory = 4 * sum(sizes.values()), machine_memory()
    if needed > memory:
        raise UserError(
            f"the model takes {needed / 1e9:,.1f} GB, more than the memory here ({memory / 1e9:,.1f} GB); the most of "
            f"it is {max(sizes, key=lambda name: sizes[name])}"
        )


def misfit(options: ModelOptions, encoder: nn.Module | None, state: Mapping[str, Any]) -> str | None:
    """Why a state dict is not one of the model that :func:`build_model` would build, or None. It is not built."""
    try:
        planned = _planned_state(options, encoder)
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


def load_model(options: ModelOptions, encoder: nn.Module | None, state: Mapping[str, Tensor]) -> Method:
    """The model of resolved options with the tensors of a state dict that fits it (:func:`misfit`).

    Nothing is drawn, so that loading leaves torch's global generator alone.
    """
    model = _planned(options, encoder)
    dtypes = {name: x.dtype for name, x in model.state_dict().items()}
    model.load_state_dict({name: x.to(dtypes[name]) for name, x in state.items()}, assign=True)
    return model


def take_over(model: Method, kept: Method) -> None:
    """Give a model that trains its encoder further all but the encoder of one that was trained on what that saw, and
    how this one scales it. The confidence is not taken over, which is found at the end."""
    state = {
        name.replace("encoder.", "encoder.standardise.", 1) if name.startswith("encoder.") else name: x
        for name, x in kept.state_dict().items()
        if name != "answer_temperature"
    }
    model.load_state_dict({**model.state_dict(), **state})


def _planned_state(options: ModelOptions, encoder: nn.Module | None) -> dict[str, Tensor]:
    """The state dict of :func:`_planned`."""
    return _planned(options, encoder).state_dict()


def _planned(options: ModelOptions, encoder: nn.Module | None) -> Method:
    """The model without its memory, but for that of an encoder that this package does not define."""
    try:
        given = encoder is not None or options.train_encoder  # its code may need numbers, which meta tensors lack
        own = build_encoder(options, encoder, side=options.large_size) if given else None
        with torch.device("meta"):
            return _build(options, build_encoder(options, side=options.large_size) if own is None else own)
    except (OverflowError, RuntimeError, TypeError) as error:  # 64 bits do not hold a size
        raise UserError(f"a model of these sizes cannot be built: {str(error).splitlines()[0]}") from None


def _build(options: ModelOptions, encoder: nn.Module) -> Method:
    if options.method == "crlc":
        return _crlc(part(options, CrlcOptions), encoder)
    if options.method == "temi":
        return _temi(part(options, TemiOptions), encoder)
    return _imc_swav(part(options, ImcSwavOptions), encoder, options.bn_momentum)


def _imc_swav(options: ImcSwavOptions, encoder: nn.Module, bn_momentum: float) -> Method:
    from imc.methods.imc_swav import ImcSwav

    return ImcSwav(
        encoder,
        projection_hidden=options.projection_hidden,
        embedding_dim=options.embedding_dim,
        projection_bias=options.projection_bias,
        prototypes=options.prototypes,
        clusters=options.clusters,
        classifier_widths=options.classifier_widths,
        bn_momentum=bn_momentum,
        sinkhorn_epsilon=options.sinkhorn_epsilon,
        sinkhorn_iterations=options.sinkhorn_iterations,
        temperature=options.temperature,
        entropy_weight=options.entropy_weight,
        logit_limit=options.logit_limit,
        bank=options.batch_size if options.bank else 0,
        queue=options.queue,
        queue_start_epoch=options.queue_start_epoch,
    )


def _crlc(options: CrlcOptions, encoder: nn.Module) -> Method:
    from imc.methods.crlc import Crlc

    return Crlc(
        encoder,
        projection_hidden=options.projection_hidden,
        embedding_dim=options.embedding_dim,
        clusters=options.clusters,
        sub_heads=options.sub_heads,
        head_hidden=options.head_hidden,
        head_clusters=options.head_clusters,
        temperature=options.temperature,
        contrast_weight=options.contrast_weight,
        smoothing=options.smoothing,
        entropy_weight=options.entropy_weight,
        logit_limit=options.logit_limit,
    )


def _temi(options: TemiOptions, encoder: nn.Module) -> Method:
    from imc.methods.temi import Temi

    return Temi(
        encoder,
        clusters=options.clusters,
        sub_heads=options.sub_heads,
        head_hidden=options.head_hidden,
        head_clusters=options.head_clusters,
        beta=options.beta,
        temperature=options.temperature,
        teacher_momentum=options.teacher_momentum,
    )
