"""The autograd of all losses whose kernels compute the gradient together with the value."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from imc_kernels import native
from imc_kernels.ops.autograd import anchor, check_recorded, given_away, is_direct, is_traced, only_first_derivative
from imc_kernels.ops.operator import Needs, Operator, Options
from imc_kernels.ops.precision import HALF, at_least_single, cast, gradient_dtype, half_as_single


class Kernel(NamedTuple):
    """A backend's form of a loss.

    Attributes:
        run: (inputs, options, needs) -> (loss, gradients). ``needs`` says for each input whether its gradient is
            wanted, and ``gradients`` holds None where it is not, otherwise what was a
            :func:`imc_kernels.ops.precision.gradient_buffer` of the input.
        reads_half: whether it reads half precision itself.
    """

    run: Callable[[Sequence[Any], Sequence[Any], Needs], tuple[Tensor, tuple[Tensor | None, ...]]]
    reads_half: bool = False


class FusedLoss:
    """A loss of some tensors and options, with its gradients, on every backend that has a kernel for it.

    A call goes straight through an ``autograd.Function``. Where torch must see an operator
    (:func:`imc_kernels.ops.autograd.is_direct`), it goes through ``torch.ops.imc_kernels.<name>`` instead, whose shapes
    are known without running it and whose calls cost more.

    Args:
        name: of the operation.
        kernels: backend -> kernel, the best first.
        inputs: names of the tensors, with a question mark after one that may be None.
        options: name -> the numbers accepted, or of anything but a number its type in the schema.
        constants: the inputs that have no gradient.
        loss_shape: the loss's shape, from the inputs; default: a scalar.
    """

    def __init__(
        self,
        name: str,
        kernels: Mapping[str, Kernel],
        *,
        inputs: Sequence[str],
        options: Options,
        constants: Sequence[str] = (),
        loss_shape: Callable[[Sequence[Tensor]], tuple[int, ...]] = lambda inputs: (),
    ) -> None:
        self.name = name
        self.kernels = kernels
        self.backends = (*kernels, "eager")
        self.count = len(inputs)
        names = [n.removesuffix("?") for n in inputs]
        self.differentiable = tuple(n not in constants for n in names)
        self.loss_shape = loss_shape
        # The operator returns the loss, then a gradient for each input, empty where it is not needed.
        of: dict[str, Any] = {"tensors": inputs, "options": options, "needs": names, "results": 1 + len(inputs)}
        self.operator = Operator(name, self._run, self._empty, **of)
        self.operator.registered.register_autograd(
            only_first_derivative(self._backward), setup_context=self._setup_context
        )

    def __call__(self, backend: str, inputs: Sequence[Any], options: Sequence[Any]) -> Tensor:
        """The loss, with its gradients attached to the inputs that require one."""
        kernel, recorded = self.kernels[backend], torch.is_grad_enabled()
        direct = is_direct(self.name, backend, *inputs)
        needs = tuple([recorded and x is not None and x.requires_grad for x in inputs])
        if not kernel.reads_half:
            inputs = [None if x is None else at_least_single(x) for x in inputs]
        if not direct:
            needs = self.differentiable if is_traced() else needs
            return self.operator(backend, inputs, options, needs)[0]
        if True in needs:
            return _FusedLoss.apply(self.name, kernel, options, needs, *inputs)[0]
        return kernel.run(inputs, options, needs)[0]

    def _run(self, backend: str, inputs: Sequence[Tensor], options: Sequence[Any], needs: Needs) -> tuple:
        loss, gradients = self.kernels[backend].run(inputs, options, needs)
        return loss, *gradients

    def _empty(self, backend: str, inputs: Sequence[Tensor], options: Sequence[Any], needs: Needs) -> tuple:
        loss = inputs[0].new_empty(self.loss_shape(inputs), dtype=half_as_single(inputs[0].dtype))
        gradients = (
            x.new_empty(x.shape, dtype=gradient_dtype(x.dtype)) if needed else None
            for x, needed in zip(inputs, needs, strict=True)
        )
        return loss, *gradients

    def _setup_context(self, ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
        given = self.operator.arguments(inputs)
        check_recorded(self.name, ctx.needs_input_grad[: self.count], given.needs)
        ctx.operation, ctx.needs, ctx.arguments = self.name, given.needs, len(inputs)
        ctx.dtypes = [None if x is None else x.dtype for x in given.tensors]
        ctx.save_for_backward(*output[1:])
        ctx.set_materialize_grads(False)

    @staticmethod
    def _backward(
        ctx: Any, saved: Sequence[Tensor], grad_output: Tensor | None, *_: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        if grad_output is None:
            return (None,) * ctx.arguments
        gradients = [
            (gradient * _beside(grad_output, gradient)).to(dtype) if needed else None
            for gradient, needed, dtype in zip(saved, ctx.needs, ctx.dtypes, strict=True)
        ]
        return *gradients, *[None] * (ctx.arguments - len(gradients))


class _FusedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, operation: str, kernel: Kernel, options: Sequence[Any], needs: Needs, *inputs: Any
    ) -> tuple[Tensor, Tensor]:
        loss, gradients = kernel.run(inputs, options, needs)
        end = anchor(loss)
        ctx.save_for_backward(end, *gradients)
        ctx.set_materialize_grads(False)
        ctx.operation, ctx.dtypes = operation, [None if x is None else x.dtype for x in inputs]
        return loss, end

    @staticmethod
    @only_first_derivative
    def backward(
        ctx: Any, saved: Sequence[Tensor | None], grad_output: Tensor | None, _: None
    ) -> tuple[Tensor | None, ...]:
        gradients = list(zip(saved[1:], ctx.dtypes, strict=True))
        if grad_output is None:
            return None, None, None, None, *(None for _ in gradients)
        # The usual case, loss.backward(), needs no pass over the gradients. Asked on the CPU only: elsewhere the
        # comparison would wait for the device.
        if grad_output.is_cpu and grad_output.tolist() in (1.0, [1.0] * grad_output.numel()):
            whole = (
                None if g is None else given_away(g) if g.dtype == dtype else g.to(dtype) for g, dtype in gradients
            )
            return None, None, None, None, *whole
        return None, None, None, None, *(None if g is None else scaled(g, grad_output, dtype) for g, dtype in gradients)


def scaled(gradient: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """A gradient times that of its losses, which have the gradient's first dimensions or none, in one launch."""
    if dtype in HALF and gradient.is_cpu and native.missing("_cpu") is None:  # torch would cast element by element
        result = torch.empty(size=gradient.shape, dtype=dtype)
        factors = cast(factor, torch.float32).reshape(-1).contiguous()
        native.call("_cpu", "scale_gradient", *(x.view(len(factors), -1) for x in (result, gradient)), factors)
        return result
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
