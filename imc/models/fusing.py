"""A trained convolutional network in fewer passes over memory: its function is kept, its parameters are not."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

# What oneDNN's primitives apply to a convolution's result while it is in registers: its name there, and its numbers.
NOTHING: tuple[str, list[float]] = ("none", [])
RELU: tuple[str, list[float]] = ("relu", [])
RELU6: tuple[str, list[float]] = ("hardtanh", [0.0, 6.0])
ACTIVATIONS: dict[Any, tuple[str, list[float]]] = {
    **dict.fromkeys((nn.ReLU, functional.relu, torch.relu, torch.relu_), RELU),
    **dict.fromkeys((nn.ReLU6, functional.relu6), RELU6),
}


def fused(network: nn.Module) -> nn.Module:
    """A copy in which batch normalisation is part of the convolution before it, as is the ReLU or ReLU6 behind it.

    Args:
        network: in evaluation mode. One that torch.fx cannot trace, or without convolutions, is copied as it is.
    """
    copied = copy.deepcopy(network)
    try:
        traced = fx.symbolic_trace(copied)
    except Exception:  # the network's own code meets values that stand for any number, and raises anything
        return copied
    for node in list(traced.graph.nodes):
        if _called(traced, node, nn.Conv2d) is not None:
            _fuse(traced, node)
    traced.graph.eliminate_dead_code()
    traced.recompile()
    traced.delete_all_unused_submodules()
    return traced


class FusedConvolution(nn.Module):
    """A convolution, then one of :data:`ACTIVATIONS`, for inference.

    Args:
        convolution: with zeros as padding.
        activation: what follows.
    """

    def __init__(self, convolution: nn.Conv2d, activation: tuple[str, list[float]]) -> None:
        super().__init__()
        self.convolution = convolution
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        own = self.convolution
        name, numbers = self.activation
        if x.device.type == "cpu" and _has_primitives():
            # What torch.compile calls; nothing public applies an activation within the primitive.
            return torch.ops.mkldnn._convolution_pointwise(  # type: ignore[no-any-return]
                x, own.weight, own.bias, own.padding, own.stride, own.dilation, own.groups, name, numbers, ""
            )
        x = own(x)
        return x if name == "none" else x.clamp_(0, numbers[1] if numbers else None)


def _has_primitives() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_convolution_pointwise")


def _fuse(traced: fx.GraphModule, node: fx.Node) -> None:
    """Replace a convolution and what follows it, where nothing else reads what is between."""
    convolution = traced.get_submodule(str(node.target))
    assert isinstance(convolution, nn.Conv2d)
    if (
        len(node.args) != 1
        or node.kwargs
        or convolution.padding_mode != "zeros"
        or isinstance(convolution.padding, str)
    ):
        return
    last, activation = node, NOTHING
    following = _only_user(last)
    norm = _called(traced, following, nn.BatchNorm2d)
    if following is not None and norm is not None and norm.running_mean is not None:
        convolution, last = fuse_conv_bn_eval(convolution, norm), following
    following = _only_user(last)
    found = None if following is None else _activation(traced, following)
    if following is not None and found is not None:
        activation, last = found, following
    # A new place: the convolution may be called elsewhere too.
    name = f"fused_{node.name}"
    traced.add_submodule(name, FusedConvolution(convolution, activation))
    with traced.graph.inserting_after(last):
        last.replace_all_uses_with(replacement := traced.graph.call_module(name))
        replacement.args = node.args


def _called(traced: fx.GraphModule, node: fx.Node | None, kind: type[nn.Module]) -> Any:
    """The module of this very kind that a node calls, or None."""
    if node is None or node.op != "call_module":
        return None
    module = traced.get_submodule(str(node.target))
    return module if type(module) is kind else None


def _activation(traced: fx.GraphModule, node: fx.Node) -> tuple[str, list[float]] | None:
    if node.op == "call_module":
        return ACTIVATIONS.get(type(traced.get_submodule(str(node.target))))
    if node.op == "call_method":
        return RELU if node.target in ("relu", "relu_") else None
    return ACTIVATIONS.get(node.target) if node.op == "call_function" else None


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None
