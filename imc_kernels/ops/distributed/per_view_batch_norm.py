"""Batch normalisation whose statistics are those of the samples of all processes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from imc_kernels.ops.autograd import memory, only_first_derivative, refuse_recording
from imc_kernels.ops.distributed.collectives import gather, not_compiled, sum_over
from imc_kernels.ops.operator import of_triton

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class Phases(NamedTuple):
    """A backend's form for this process's rows, which may be none. ``inputs`` are the input [V*B, C, ...], the weight,
    the bias and the residual.

    Attributes:
        forward: (inputs, views, eps, relu, running statistics and momentum or None, gather) -> the output; mean,
            variance [V, C] and, float64 [], the number of rows of a view in all processes.
        backward: (inputs, those three, grad_output, views, eps, relu, needs, add_up) -> the gradients of the inputs, of
            weight and bias this process's part. Each process exchanges once, whatever it needs.
    """

    forward: Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]]
    backward: Callable[..., tuple[Tensor | None, ...]]


@not_compiled
def per_view_batch_norm(
    backend: str, inputs: Sequence[Tensor | None], options: Sequence[Any], running: Any, group: ProcessGroup
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What the forward of the phases gives, with its gradients; by checked arguments."""
    refuse_recording("per_view_batch_norm", backend, *inputs)
    return _BatchNorm.apply(PHASES[backend], options, running, group, *inputs)


class _BatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, phases: Phases, options: Sequence[Any], running: Any, group: ProcessGroup, *inputs: Tensor | None
    ) -> tuple[Tensor, ...]:
        output, *statistics = phases.forward(inputs, *options, running, functools.partial(gather, group=group))
        ctx.save_for_backward(*inputs, *statistics)
        ctx.mark_non_differentiable(*statistics)
        ctx.set_materialize_grads(False)
        ctx.operation, ctx.phases, ctx.options, ctx.group = "per_view_batch_norm", phases, options, group
        ctx.dtypes = [None if x is None else x.dtype for x in inputs]
        return output, *statistics

    @staticmethod
    @only_first_derivative
    def backward(
        ctx: Any, saved: Sequence[Any], grad_output: Tensor | None, *_: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        inputs, statistics = saved[:4], saved[4:]
        if grad_output is None:  # the others count on this process
            grad_output = torch.zeros_like(inputs[0])
        needs, add_up = ctx.needs_input_grad[4:], functools.partial(sum_over, group=ctx.group)
        gradients = ctx.phases.backward(inputs, statistics, memory(grad_output), *ctx.options, needs, add_up)
        return None, None, None, None, *gradients


PHASES = {
    "triton": Phases(
        of_triton("per_view_batch_norm_group", "group_forward"),
        of_triton("per_view_batch_norm_group", "group_backward"),
    ),
}
