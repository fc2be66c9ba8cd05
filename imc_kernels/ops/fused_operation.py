"""The autograd of all operations whose gradients a second kernel computes, in the backward pass, or that have none."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from imc_kernels.ops.autograd import check_recorded, is_direct, is_traced, only_first_derivative
from imc_kernels.ops.operator import Arguments, Needs, Operator, Options, as_tuple
from imc_kernels.ops.precision import at_least_single

Inputs = Sequence[Any]  # tensors, or None for one that was left out
Gradients = tuple[Tensor | None, ...]


class Kernels(NamedTuple):
    """A backend's form of an operation.

    Attributes:
        forward: (inputs, options, needs) -> the results, and then what else the backward takes, which may be None where
            ``needs`` says that no input's gradient is needed.
        backward: (inputs, saved, grad_output, options, needs) -> the inputs' gradients, None for one that is not
            needed. ``saved`` is what the forward gave.
        reads_half: whether they read half precision themselves.
    """

    forward: Callable[[Inputs, Sequence[Any], Needs], tuple[Tensor | None, ...]]
    backward: Callable[[Inputs, Sequence[Any], Tensor, Sequence[Any], Needs], Gradients] | None = None
    reads_half: bool = False


class FusedOperation:
    """An operation on some tensors, with options, on every backend that has kernels for it.

    A call goes straight to the kernels, with an ``autograd.Function`` where a gradient is needed. Where torch must see
    operators (:func:`imc_kernels.ops.autograd.is_direct`), it goes through ``torch.ops.imc_kernels.<name>`` and
    ``<name>_backward`` instead.

    Args:
        name: of the operation.
        kernels: backend -> kernels, the best first.
        inputs: names of the tensors, with a question mark after one that may be None.
        options: name -> the numbers accepted, or of anything but a number its type in the schema.
        empty: (backend, inputs, options, needs) -> what the forward gives, without values.
        constants: the inputs that have no gradient.
        results: how many results there are. The gradient comes from the first.
        kept: how many tensors more the forward gives, where a gradient is needed.
        saves_result: whether the first result is among what the backward takes.
        gradient_like: memory for the gradient of an input.
    """

    def __init__(
        self,
        name: str,
        kernels: Mapping[str, Kernels],
        *,
        inputs: Sequence[str],
        options: Options,
        empty: Callable[[str, Any, Sequence[Any], Needs], Sequence[Tensor | None]],
        constants: Sequence[str] = (),
        results: int = 1,
        kept: int = 0,
        saves_result: bool = False,
        gradient_like: Callable[[Tensor], Tensor] = lambda x: x.new_empty(x.shape),
    ) -> None:
        self.name, self.kernels, self.backends = name, kernels, (*kernels, "eager")
        self.results, self.gradient_like = results, gradient_like
        self.saved = slice(0 if saves_result else 1, None)
        self.nothing = (False,) * len(inputs)
        names = [n.removesuffix("?") for n in inputs]
        self.differentiable = tuple(n not in constants for n in names)
        count = results + kept
        # What a call keeps depends on whether it is told that a gradient is needed; otherwise no flag is recorded.
        flags = names if kept else ()
        of: dict[str, Any] = {"tensors": inputs, "options": options, "needs": flags, "results": count}
        self.forward = Operator(name, lambda backend, *given: kernels[backend].forward(*given), empty, **of)
        if True in self.differentiable:
            saved = [f"saved_{i}" for i in range(count)[self.saved]]
            of = {"tensors": (*inputs, *saved, "grad_output"), "options": options, "needs": names}
            self.backward = Operator(f"{name}_backward", self._backward, self._empty, **of, results=len(names))
            self.forward.registered.register_autograd(
                only_first_derivative(self._recorded_backward), setup_context=self._setup_context
            )

    def __call__(self, backend: str, inputs: Inputs, options: Sequence[Any]) -> Sequence[Any]:
        """The results, those of half precision in float32 where the backend does not read it."""
        kernels = self.kernels[backend]
        direct = is_direct(self.name, backend, *inputs)
        needs = tuple([x is not None and x.requires_grad for x in inputs]) if torch.is_grad_enabled() else self.nothing
        if not kernels.reads_half:
            inputs = [None if x is None else at_least_single(x) for x in inputs]
        if not direct:
            needs = self.differentiable if is_traced() else needs
            return self.forward(backend, inputs, options, needs if self.forward.counts[-1] else ())
        if True in needs:
            return as_tuple(_FusedOperation.apply(self, kernels, options, needs, *inputs))
        return kernels.forward(inputs, options, needs)

    def _backward(self, backend: str, tensors: Inputs, options: Sequence[Any], needs: Needs) -> Gradients:
        *rest, grad_output = tensors
        count, backward = len(needs), self.kernels[backend].backward
        assert backward is not None
        return backward(rest[:count], rest[count:], grad_output, options, needs)

    def _empty(self, backend: str, tensors: Inputs, options: Sequence[Any], needs: Needs) -> Gradients:
        return tuple(self.gradient_like(x) if need else None for x, need in zip(tensors, needs, strict=False))

    def _setup_context(self, ctx: Any, inputs: tuple, output: Tensor | tuple[Tensor, ...]) -> None:
        given = self.forward.arguments(inputs)
        if given.needs:
            check_recorded(self.name, ctx.needs_input_grad[: len(given.needs)], given.needs)
        ctx.operation, ctx.options, ctx.backend, ctx.arguments = self.name, given.options, given.backend, len(inputs)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*given.tensors, *as_tuple(output)[self.saved], given.changing)

    def _recorded_backward(self, ctx: Any, saved: Sequence[Any], grad_output: Tensor | None, *_: Any) -> Gradients:
        if grad_output is None:
            return (None,) * ctx.arguments
        *tensors, changing = saved
        needs = ctx.needs_input_grad[: len(self.differentiable)]
        given = Arguments((*tensors, grad_output), ctx.options, changing, needs, ctx.backend)
        gradients = self.backward.call(given)
        needed = (gradient if need else None for gradient, need in zip(gradients, needs, strict=True))
        return *needed, *[None] * (ctx.arguments - len(needs))


class _FusedOperation(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, operation: FusedOperation, kernels: Kernels, options: Sequence[Any], needs: Needs, *inputs: Any
    ) -> Any:
        outputs = kernels.forward(inputs, options, needs)
        ctx.save_for_backward(*inputs, *outputs[operation.saved])
        ctx.operation, ctx.kernel, ctx.options, ctx.needs = operation.name, kernels.backward, options, needs
        if operation.results == 1:
            return outputs[0]
        results = outputs[: operation.results]
        ctx.mark_non_differentiable(*results[1:])
        ctx.set_materialize_grads(False)
        return results

    @staticmethod
    @only_first_derivative
    def backward(ctx: Any, saved: Sequence[Any], grad_output: Tensor | None, *_: Tensor | None) -> Gradients:
        count = len(ctx.needs)
        if grad_output is None:
            return (None,) * (4 + count)
        return None, None, None, None, *ctx.kernel(saved[:count], saved[count:], grad_output, ctx.options, ctx.needs)
