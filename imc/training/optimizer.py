"""The optimiser of a run and its learning rates."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from imc.methods.method import Method
from imc.training.options import OptimizerOptions


def build_optimizer(
    model: Method, options: OptimizerOptions, device: torch.device, graphed: bool = False
) -> torch.optim.Optimizer:
    """Adam or SGD over the model's trainable parameters; each group keeps its peak rate as ``peak``.

    Args:
        model: what it trains, on its device.
        options: resolved.
        device: that of the model.
        graphed: whether a CUDA graph holds its steps: the learning rates are then tensors on the device.
    """
    groups = []
    for parameters, peak in (
        (model.main_parameters(), options.lr),
        (model.classifier_parameters(), options.classifier_lr),
    ):
        for decay, chosen in _by_decay(parameters, options):
            if chosen:
                rate = torch.tensor(peak, dtype=torch.float32, device=device) if graphed else peak
                groups.append({"params": chosen, "peak": peak, "lr": rate, "weight_decay": decay})
    if options.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=options.lr, momentum=options.momentum, fused=True)
    betas = (options.beta1, options.beta2)
    return torch.optim.Adam(groups, lr=options.lr, betas=betas, fused=True, capturable=graphed)


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Go on from another optimiser's state dict: its moments and counts.

    The options of the groups stay those that this one was built with. They follow from the configuration, and where it
    is another in what only makes a run fast, those of the state would undo it: a captured graph, for one, must find its
    learning rates in tensors on the device. Moments take the memory format of their parameters, as the fused update,
    which runs through both in the order of the memory, expects.

    Raises:
        KeyError, TypeError, ValueError: it is no state of these parameters.
    """
    options = [{name: x for name, x in group.items() if name != "params"} for group in optimizer.param_groups]
    saved = state["param_groups"]
    if len(saved) != len(options):
        raise ValueError(f"its optimiser has {len(saved)} groups of parameters, this run's {len(options)}")
    groups = [{**theirs, **ours} for theirs, ours in zip(saved, options, strict=True)]
    optimizer.load_state_dict({**state, "param_groups": groups})
    for parameter, moments in optimizer.state.items():
        for name, value in moments.items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                moments[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _by_decay(parameters: list[nn.Parameter], options: OptimizerOptions) -> list[tuple[float, list[nn.Parameter]]]:
    if not options.decay_matrices_only:
        return [(options.weight_decay, parameters)]
    return [
        (options.weight_decay, [p for p in parameters if p.dim() > 1]),
        (0.0, [p for p in parameters if p.dim() <= 1]),
    ]


def learning_rate(update: int, options: OptimizerOptions, peak: float, steps: int) -> float:
    """The rate of the update with this number, from 0.

    Linear to ``peak`` over the warm-up; then constant, a half cosine to 0 at the last epoch's end, or multiplied by
    ``lr_factor`` after each of ``lr_epochs``.

    Args:
        update: number of the update.
        options: resolved.
        peak: rate after the warm-up.
        steps: updates of an epoch.
    """
    warmup = options.warmup_updates
    if update < warmup:
        return peak * (update + 1) / warmup
    if options.schedule == "cosine":
        return peak * 0.5 * (1 + math.cos(math.pi * (update - warmup) / (options.epochs * steps - warmup)))
    if options.schedule == "steps":
        return peak * options.lr_factor ** sum(update // steps >= epoch for epoch in options.lr_epochs)
    return peak


def set_learning_rates(optimizer: torch.optim.Optimizer, update: int, options: OptimizerOptions, steps: int) -> None:
    """Give every group its rate for this update."""
    for group in optimizer.param_groups:
        rate = learning_rate(update, options, group["peak"], steps)
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
