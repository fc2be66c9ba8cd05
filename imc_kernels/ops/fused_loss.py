"""The one autograd function of all losses whose kernels compute the gradient together with the value."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Kernel = Callable[..., tuple[Tensor, tuple[Tensor | None, ...]]]


class _FusedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kernel: Kernel, options: tuple, *inputs: Tensor) -> Tensor:
        loss, gradients = kernel(inputs, options, ctx.needs_input_grad[2:])
        ctx.save_for_backward(*gradients)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        # The usual case, loss.backward(), needs no pass over the gradients. Asked on the CPU only: elsewhere the
        # comparison would wait for the device.
        unscaled = grad_output.device.type == "cpu" and bool((grad_output == 1).all())
        return None, None, *(_scaled(gradient, None if unscaled else grad_output) for gradient in ctx.saved_tensors)


def _scaled(gradient: Tensor | None, factor: Tensor | None) -> Tensor | None:
    if gradient is None or factor is None:
        return gradient
    return gradient * factor.reshape(factor.shape + (1,) * (gradient.dim() - factor.dim()))


def fused_loss(kernel: Kernel, options: tuple, *inputs: Tensor) -> Tensor:
    """The value of ``kernel`` with its gradients attached.

    Args:
        kernel: (inputs, options, needs) -> (loss, gradients); ``needs`` says for each input whether its gradient is
            wanted, ``gradients`` holds None where it is not.
        options: what else the kernel takes.
        inputs: the tensors, gradients flow to those that require them.
    """
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs):
        return _FusedLoss.apply(kernel, options, *inputs)
    return kernel(inputs, options, (False,) * len(inputs))[0]
