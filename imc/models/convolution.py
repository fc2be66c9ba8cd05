"""Convolutions whose bits do not depend on the number of threads, where that is asked for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from imc.machine.threads import one_thread


class Convolution(nn.Conv2d):
    """``nn.Conv2d``.

    Attributes:
        thread_independent: whether the gradient of the weight, which oneDNN adds up in a part for each thread, is
            computed on one. The output and the gradient of the input have the same bits anyway, as measured by
            tests/torture/threads.py.
    """

    thread_independent = False

    def forward(self, input: Tensor) -> Tensor:
        if not self.thread_independent:
            return super().forward(input)
        return _WeightGradientOnOneThread.apply(input, self.weight, self.stride, self.padding)  # type: ignore[no-any-return]


class PointwiseConvolution(Convolution):
    """A convolution of 1x1, without bias. Training on a CPU it is a linear layer on every pixel."""

    def forward(self, input: Tensor) -> Tensor:
        if input.device.type != "cpu" or not self.training:
            return super().forward(input)
        step = self.stride[0]
        pixels = input[:, :, ::step, ::step].permute(0, 2, 3, 1)
        return functional.linear(pixels, self.weight.flatten(1)).permute(0, 3, 1, 2)


def make_thread_independent(model: nn.Module) -> None:
    """Let every :class:`Convolution` of the model have the same bits on any number of threads."""
    for module in model.modules():
        if isinstance(module, Convolution):
            module.thread_independent = True


class _WeightGradientOnOneThread(torch.autograd.Function):
    """A convolution without bias, dilation and groups."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(input, weight)
        ctx.stride, ctx.padding = stride, padding
        return functional.conv2d(input, weight, stride=stride, padding=padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        def gradients(*wanted: bool) -> tuple[Tensor | None, ...]:
            where = (ctx.stride, ctx.padding, (1, 1), False, (0, 0), 1)
            return torch.ops.aten.convolution_backward(grad_output, *ctx.saved_tensors, None, *where, [*wanted, False])

        needs_input, needs_weight, *_ = ctx.needs_input_grad
        input_gradient = gradients(True, False)[0] if needs_input else None
        with one_thread():
            weight_gradient = gradients(False, True)[1] if needs_weight else None
        return input_gradient, weight_gradient, None, None
