"""The autograd of a loss whose gradient is computed in the forward pass, on a batch over processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from imc_kernels.ops.autograd import anchor, only_first_derivative
from imc_kernels.ops.distributed.collectives import sum_over
from imc_kernels.ops.fused_loss import Needs, scaled

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

# (inputs, needs) -> the loss of the whole batch, and the gradients of this process's inputs, None where not needed
Run = Callable[[Sequence[Tensor], Needs], tuple[Tensor, tuple[Tensor | None, ...]]]


def distributed_loss(operation: str, run: Run, group: ProcessGroup, *inputs: Tensor) -> Tensor:
    """The loss, with its gradients attached to the inputs that require one."""
    needs = tuple(torch.is_grad_enabled() and x.requires_grad for x in inputs)
    if any(needs):
        return _DistributedLoss.apply(operation, run, group, needs, *inputs)[0]
    return run(inputs, needs)[0]


class _DistributedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, operation: str, run: Run, group: ProcessGroup, needs: Needs, *inputs: Tensor
    ) -> tuple[Tensor, Tensor]:
        loss, gradients = run(inputs, needs)
        end = anchor(loss)
        ctx.save_for_backward(end, *gradients)
        ctx.operation, ctx.group, ctx.dtypes = operation, group, [x.dtype for x in inputs]
        return loss, end

    @staticmethod
    @only_first_derivative
    def backward(ctx: Any, saved: Sequence[Tensor | None], grad_output: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        # All processes have the same loss, and each what it multiplies its own with.
        factor = sum_over(grad_output.clone(memory_format=torch.contiguous_format), ctx.group)
        gradients = zip(saved[1:], ctx.dtypes, strict=True)
        return None, None, None, None, *(None if g is None else scaled(g, factor, dtype) for g, dtype in gradients)
