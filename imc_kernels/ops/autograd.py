"""Where the kernels meet autograd and what traces or wraps tensors: which calls reach a kernel, what is refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils import _python_dispatch

# What torch's transforms and modes are recognised by, at most 0.07 us each: functions that are not public, found in
# torch 2.13. In place of one that a version lacks, what stands beside it takes the slower way that is right as well,
# such as the operator.
PRIVATE: dict[str, Callable[..., Any]] = {
    "_C._are_functorch_transforms_active": lambda: False,  # a wrapped tensor has no memory, which the kernels refuse
    "_C._len_torch_dispatch_stack": lambda: 1,
    "_C._get_tracing_state": lambda: True if torch.jit.is_tracing() else None,
    "_C._autograd._get_current_graph_task_keep_graph": lambda: True,
    "_C._functorch.is_functorch_wrapped_tensor": lambda tensor: _transforms_active(),
    "_C._functorch.is_legacy_batchedtensor": lambda tensor: False,
}


def private(path: str, torch_without: str = "") -> Callable[..., Any]:
    """torch's function of this path, or what stands for it."""
    found: Any = torch
    for name in path.split("."):
        found = getattr(found, name, None)
    return PRIVATE[path] if found is None or path == torch_without else found


def levels(module: Any) -> Any:
    """What has the level of forward mode as ``_current_level``: 0 or above makes each tensor be asked."""
    return module if hasattr(module, "_current_level") else SimpleNamespace(_current_level=0)


_transforms_active: Callable[[], bool] = private("_C._are_functorch_transforms_active")
_modes_active = private("_C._len_torch_dispatch_stack")
_tracing_state = private("_C._get_tracing_state")
_keeps_graph = private("_C._autograd._get_current_graph_task_keep_graph")
_wrapped_by_transform = private("_C._functorch.is_functorch_wrapped_tensor")
_batched = private("_C._functorch.is_legacy_batchedtensor")
_mode_stack: Callable[[], list] = getattr(_python_dispatch, "_get_current_dispatch_mode_stack", list)
_levels = levels(forward_ad)


def is_direct(operation: str, backend: str, *tensors: Tensor | None) -> bool:
    """Whether a call on these tensors may hand their memory to a kernel of ``backend``, and record it on its own.

    Otherwise something looks on that must see the call as an operator of torch's, ``torch.ops.imc_kernels.*``:
    ``torch.compile``, ``torch.export``, ``torch.jit.trace``, ``make_fx``, a ``TorchDispatchMode`` (fake tensors are
    one), or a subclass of Tensor, which may hold no memory at all.

    Raises:
        NotImplementedError: inside a transform of ``torch.func``, or for a tensor with a forward-mode tangent, whose
            derivatives kernels do not have: they would be lost without a word.
    """
    if torch.compiler.is_compiling():
        return False
    if _transforms_active() or _levels._current_level >= 0:
        refuse_derivatives(operation, backend, *tensors)
    if _modes_active() or _tracing_state() is not None:
        return False
    for tensor in tensors:
        if type(tensor) is not Tensor and tensor is not None and type(tensor) is not torch.nn.Parameter:
            return False
    return True


def refuse_derivatives(operation: str, backend: str, *tensors: Tensor | None) -> None:
    """Kernels have no derivatives but the first in reverse mode, and know no transform of ``torch.func``.

    Raises:
        NotImplementedError: as :func:`is_direct`.
    """
    if _transforms_active():  # which wraps every new tensor, those that a kernel is to fill as well
        raise NotImplementedError(
            f"{operation}: backend {backend!r} has no rules for the transforms of torch.func (grad, vmap, jvp and the "
            'like); pass backend="eager"'
        )
    if any(t is not None and has_tangent(t) for t in tensors):
        raise NotImplementedError(
            f'{operation}: backend {backend!r} has no forward-mode derivative; pass backend="eager"'
        )


def refuse_recording(operation: str, backend: str, *tensors: Tensor | None) -> None:
    """A call with a group is no operator of torch's, so what would record it is refused.

    Raises:
        NotImplementedError: inside ``torch.jit.trace``, ``make_fx`` or a mode of fake tensors, or as :func:`is_direct`.
    """
    refuse_derivatives(operation, backend, *tensors)
    modes: list = _mode_stack() if _modes_active() else []  # torch's own have a key; others only look on
    if _tracing_state() is not None or any(getattr(mode, "_mode_key", None) is not None for mode in modes):
        raise NotImplementedError(
            f"{operation}: with a group, backend {backend!r} can neither be recorded (torch.jit.trace, make_fx) nor "
            'run on fake tensors; pass backend="eager"'
        )


def is_traced() -> bool:
    """Whether ``torch.jit.trace`` records, with or without gradients: it compares the two, and runs either."""
    return _tracing_state() is not None


def has_values(tensor: Tensor) -> bool:
    """Whether Python may ask for the tensor's values: it is in no graph that is being recorded, and in memory."""
    if torch.compiler.is_compiling() or is_transformed(tensor) or _tracing_state() is not None or _modes_active():
        return False
    return type(tensor) is Tensor or type(tensor) is torch.nn.Parameter


def has_tangent(tensor: Tensor) -> bool:
    """Whether forward-mode differentiation (``torch.autograd.forward_ad``) follows this tensor."""
    return _levels._current_level >= 0 and forward_ad.unpack_dual(tensor).tangent is not None


def is_transformed(tensor: Tensor) -> bool:
    """Whether a transform of ``torch.func`` wraps this tensor."""
    return _wrapped_by_transform(tensor)


def memory(tensor: Tensor) -> Tensor:
    """``tensor``, contiguous, its memory holding what it says: kernels do not see that a view is lazily negated."""
    tensor = tensor.contiguous()
    return tensor.resolve_neg() if tensor.is_neg() else tensor


def given_away(saved: Tensor) -> Tensor:
    """A tensor that was saved for the backward, to be returned by it: a copy where the graph is kept for another."""
    return saved.clone() if _keeps_graph() else saved


Backward = Callable[..., "tuple[Tensor | None, ...]"]


def only_first_derivative(backward: Backward) -> Backward:
    """Decorates ``backward(ctx, saved, *grad_outputs)`` of a kernel, whose gradients have no derivative of their own.

    ``ctx.operation`` names the operation. ``saved`` are ``ctx.saved_tensors``, among them a tensor through which the
    graph leads to the inputs: an input that requires a gradient, or an output (:func:`anchor`). With
    ``create_graph=True`` the gradients are connected to it, and to the gradients of the outputs, by a function whose
    own backward raises. So a second derivative is refused when it is asked for, and a graph that was created for
    something else is of no consequence. ``torch.autograd.function.once_differentiable`` refuses only where the
    gradients of the outputs require one, which those of a loss hardly ever do: then a penalty on the gradient would add
    nothing, without a word.
    """

    def differentiate(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        if any(map(_is_wrapped, grad_outputs)):
            raise NotImplementedError(
                f"{ctx.operation}: the backward of its kernels takes one gradient at a time, without a forward-mode "
                'tangent (so no is_grads_batched, vectorize or torch.func); pass backend="eager"'
            )
        saved = ctx.saved_tensors  # once: a checkpoint computes them, and refuses to do it again
        if not torch.is_grad_enabled():
            return backward(ctx, saved, *grad_outputs)
        with torch.no_grad():
            gradients = backward(ctx, saved, *grad_outputs)
        reached = (t for t in (*saved, *grad_outputs) if t is not None and t.requires_grad)
        return _NoSecondDerivative.apply(ctx.operation, len(gradients), *gradients, *reached)

    return differentiate


def _is_wrapped(gradient: Tensor | None) -> bool:
    if gradient is None or torch.compiler.is_compiling():
        return False
    # By is_grads_batched, by torch.func, by forward mode.
    return _batched(gradient) or is_transformed(gradient) or has_tangent(gradient)


def anchor(like: Tensor) -> Tensor:
    """A second output for a function to save, where it saves no input: it holds no memory, and nobody can change it."""
    return like.new_empty(size=(0,))


class _NoSecondDerivative(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, operation: str, count: int, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
        ctx.operation = operation
        # .data: the same memory, but no view, so that a gradient can be changed in place as any other.
        return tuple(None if tensor is None else tensor.data for tensor in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> None:
        raise NotImplementedError(
            f'{ctx.operation}: its kernels have first derivatives only; for second ones pass backend="eager"'
        )


def check_recorded(operation: str, needed: Sequence[bool], recorded: Sequence[bool]) -> None:
    """A call that was recorded as an operator computed those gradients of which it was told then.

    Raises:
        RuntimeError: another one is needed.
    """
    if any(need and not known for need, known in zip(needed, recorded, strict=True)):
        raise RuntimeError(
            f"{operation}: this call was recorded with an input that required no gradient and now does; record it "
            "(torch.jit.trace, make_fx) with inputs that require one"
        )
