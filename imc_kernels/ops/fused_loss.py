"""The autograd of all losses whose kernels compute the gradient together with the value."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from imc_kernels.ops.precision import at_least_single, cast, gradient_dtype, half_as_single

Needs = tuple[bool, ...]


class Kernel(NamedTuple):
    """A backend's form of a loss.

    Attributes:
        run: (inputs, options, needs) -> (loss, gradients). ``needs`` says for each input whether its gradient is
            wanted, and ``gradients`` holds None where it is not, otherwise what was a
            :func:`imc_kernels.ops.precision.gradient_buffer` of the input.
        reads_half: whether it reads half precision itself.
    """

    run: Callable[[Sequence[Tensor], Sequence[Any], Needs], tuple[Tensor, tuple[Tensor | None, ...]]]
    reads_half: bool = False


class FusedLoss:
    """A loss of some tensors and options, with its gradients, on every backend that has a kernel for it.

    A call goes straight through an ``autograd.Function``. While ``torch.compile`` traces, it goes through the operator
    ``torch.ops.imc_kernels.<name>`` instead, whose shapes are known without running it and whose calls cost more.

    Args:
        name: of the operation.
        kernels: backend -> kernel, the best first.
        inputs: names of the tensors.
        options: what else the kernel takes: name -> type, as in an operator's schema ("float", "bool", "int").
        loss_shape: the loss's shape, from the inputs; default: a scalar.
    """

    def __init__(
        self,
        name: str,
        kernels: Mapping[str, Kernel],
        *,
        inputs: Sequence[str],
        options: Mapping[str, str],
        loss_shape: Callable[[Sequence[Tensor]], tuple[int, ...]] = lambda inputs: (),
    ) -> None:
        self.kernels = kernels
        self.backends = (*kernels, "eager")
        self.count = len(inputs)
        self.loss_shape = loss_shape
        arguments = [
            *(f"Tensor {n}" for n in inputs),
            *(f"{kind} {n}" for n, kind in options.items()),
            "bool[] needs",
            "str backend",
        ]
        # The operator returns the loss, then a gradient for each input, empty where it is not needed.
        self.operator = torch.library.custom_op(
            f"imc_kernels::{name}", self._run, mutates_args=(), schema=f"({', '.join(arguments)}) -> Tensor[]"
        )
        self.operator.register_fake(self._fake)
        self.operator.register_autograd(self._backward, setup_context=self._setup_context)

    def __call__(self, backend: str, inputs: Sequence[Tensor], options: Sequence[Any]) -> Tensor:
        """The loss, with its gradients attached to the inputs that require one."""
        kernel, recorded = self.kernels[backend], torch.is_grad_enabled()
        needs = tuple([recorded and tensor.requires_grad for tensor in inputs])
        if not kernel.reads_half:
            inputs = [at_least_single(tensor) for tensor in inputs]
        if torch.compiler.is_compiling():
            return self.operator(*inputs, *options, list(needs), backend)[0]
        if True in needs:
            return _FusedLoss.apply(kernel, options, needs, *inputs)
        return kernel.run(inputs, options, needs)[0]

    def _run(self, *arguments: Any) -> list[Tensor]:
        *rest, needs, backend = arguments
        loss, gradients = self.kernels[backend].run(rest[: self.count], rest[self.count :], tuple(needs))
        return [loss, *(loss.new_empty(0) if gradient is None else gradient for gradient in gradients)]

    def _fake(self, *arguments: Any) -> list[Tensor]:
        inputs, needs = arguments[: self.count], arguments[-2]
        loss = inputs[0].new_empty(self.loss_shape(inputs), dtype=half_as_single(inputs[0].dtype))
        gradients = (
            x.new_empty(x.shape, dtype=gradient_dtype(x.dtype)) if needed else loss.new_empty(0)
            for x, needed in zip(inputs, needs, strict=True)
        )
        return [loss, *gradients]

    @staticmethod
    def _setup_context(ctx: Any, inputs: tuple, output: list[Tensor]) -> None:
        ctx.needs = inputs[-2]
        ctx.arguments = len(inputs)
        ctx.dtypes = [x.dtype for x in inputs[: len(ctx.needs)]]
        ctx.save_for_backward(*output[1:])

    @staticmethod
    def _backward(ctx: Any, grad_outputs: list[Tensor]) -> tuple[Tensor | None, ...]:
        scaled = [
            (gradient * _beside(grad_outputs[0], gradient)).to(dtype) if needed else None
            for gradient, needed, dtype in zip(ctx.saved_tensors, ctx.needs, ctx.dtypes, strict=True)
        ]
        return *scaled, *[None] * (ctx.arguments - len(scaled))


class _FusedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kernel: Kernel, options: Sequence[Any], needs: Needs, *inputs: Tensor) -> Tensor:
        loss, gradients = kernel.run(inputs, options, needs)
        ctx.save_for_backward(*gradients)
        ctx.dtypes = [x.dtype for x in inputs]
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        gradients = zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        # The usual case, loss.backward(), needs no pass over the gradients. Asked on the CPU only: elsewhere the
        # comparison would wait for the device.
        if grad_output.is_cpu and grad_output.tolist() in (1.0, [1.0] * grad_output.numel()):
            return None, None, None, *(None if g is None else cast(g, dtype) for g, dtype in gradients)
        return None, None, None, *(None if g is None else scaled(g, grad_output, dtype) for g, dtype in gradients)


def scaled(gradient: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """A gradient times that of its losses, which have the gradient's first dimensions or none, in one launch."""
    factor = _beside(factor, gradient)
    if gradient.dtype == factor.dtype == dtype:
        return gradient * factor
    result = torch.empty(size=gradient.shape, dtype=dtype, device=gradient.device)
    return torch.mul(gradient, factor, out=result)


def _beside(factor: Tensor, gradient: Tensor) -> Tensor:
    """``factor`` with as many dimensions as ``gradient``, so that it counts in the dtype of their product."""
    if factor.dim() == 0 and factor.dtype == gradient.dtype:
        return factor
    return factor.reshape(factor.shape + (1,) * (gradient.dim() - factor.dim()))
