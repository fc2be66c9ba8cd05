"""Batch normalisation of several views in one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from imc_kernels import backends, eager, native
from imc_kernels.ops import checks
from imc_kernels.ops.autograd import anchor, is_direct, memory, only_first_derivative
from imc_kernels.ops.precision import cast, half_as_single

NAME = "per_view_batch_norm"


def per_view_batch_norm(
    input: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    views: int = 1,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    momentum: float | Sequence[float] = 0.1,
    eps: float = 1e-5,
    relu: bool = False,
    backend: str | None = None,
) -> Tensor:
    """Normalise each channel of each view by the view's own mean and variance, as training does.

    What ``torch.nn.functional.batch_norm`` gives for each view in turn, running statistics included, so that views can
    share the layers around it as one batch. On ``cpu`` one kernel takes all views, its bits the same for any number of
    threads, which torch's are not; everywhere else it is torch's own function, view by view.
    Source: batch normalisation, arXiv 1502.03167; statistics per view, the separate passes of IMC-SwAV, arXiv
    2103.07368.

    Memory: on ``cpu``, beside result and gradients, for each element of the input at most half a byte, in the backward
    three quarters, and 64 bytes for each channel of a view; and a copy of an input or gradient whose channels do not
    lie together (``torch.channels_last``). The result's do.

    Args:
        input: [V*B, C, ...], the V views one after the other; float32, float64, bfloat16 or float16.
        weight: [C], floating, or None for 1.
        bias: [C], floating, or None for 0.
        views: V.
        running_mean: [C], floating, or None; replaced by ``(1 - momentum) running_mean + momentum mean``, view by view.
        running_var: the same for the unbiased variance; given if ``running_mean`` is.
        momentum: between 0 and 1; or one for each view, as a cumulative average takes them.
        eps: added to the variance.
        relu: return ``max(result, 0)``.
        backend: see :mod:`imc_kernels.backends`.

    Returns:
        [V*B, C, ...], as the input and of its dtype. Half precision is computed in float32; with a weight or bias of
        another dtype, in that to which torch's arithmetic promotes them.

    Raises:
        TypeError: an input is no tensor, or not of a floating dtype.
        ValueError: shapes or devices that do not fit, an empty input, or views of a single value a channel.
    """
    input = checks.floating(NAME, "input", input, "[V*B, C, ...]")
    views = checks.integer(NAME, "views", views, least=1)
    if len(input) % views:
        raise ValueError(f"{NAME}: {len(input)} rows are not {views} views of equal size")
    channels = input.shape[1]
    rows = input.numel() // (views * channels)
    if rows < 2:
        raise ValueError(f"{NAME}: a variance takes 2 values a channel and view, got input {list(input.shape)}")
    weight, bias = (
        None if vector is None else _vector(name, vector, input)
        for name, vector in (("weight", weight), ("bias", bias))
    )
    if (running_mean is None) != (running_var is None):
        raise ValueError(f"{NAME}: running_mean and running_var must be given together")
    if running_mean is not None and running_var is not None:
        _vector("running_mean", running_mean, input)
        _vector("running_var", running_var, input)
    momenta = _momenta(momentum, views)
    eps = checks.number(NAME, "eps", eps, checks.POSITIVE)
    relu = checks.flag(NAME, "relu", relu)
    promoted = checks.together(NAME, input=input, weight=weight, bias=bias)
    chosen = backends.choose(NAME, OFFERED, input.device, promoted, backend)
    single = half_as_single(promoted)
    # Contiguous for torch's function too, whose gradient reads a strided weight as if it were (2.13, CPU).
    w, b = (None if vector is None else cast(vector, single).contiguous() for vector in (weight, bias))
    if chosen not in KERNELS:
        # Whose sums over half precision are not of float32 on the CPU in every memory order (2.13).
        x = cast(input, single) if input.is_cpu or single != torch.float32 else input
        mean, variance = (None if vector is None else cast(vector, single) for vector in (running_mean, running_var))
        result = eager.per_view_batch_norm(x, w, b, mean, variance, views, momenta, eps, relu)
        for given, moved in ((running_mean, mean), (running_var, variance)):
            if given is not None and moved is not None and moved is not given:
                given.copy_(moved)
        return cast(result, input.dtype)
    x = cast(input, single)
    direct = is_direct(NAME, chosen, x, w, b)
    operation: Callable[..., Sequence[Tensor]] = _PerViewBatchNorm.apply if direct else _operator
    output, mean, variance, *_ = operation(x, w, b, views, eps, relu, chosen)
    if running_mean is not None and running_var is not None:
        update_running_statistics(running_mean, running_var, mean, variance, rows, momenta)
    return cast(output, input.dtype)


@torch.no_grad()
def update_running_statistics(
    running_mean: Tensor,
    running_var: Tensor,
    mean: Tensor,
    variance: Tensor,
    count: int | Tensor,
    momenta: Sequence[float],
) -> None:
    """Move running statistics [C] towards mean and biased variance [V, C] of ``count`` values each, view by view."""
    for running, values in ((running_mean, mean), (running_var, variance * (count / (count - 1)))):
        for value, momentum in zip(values, momenta, strict=True):
            running.lerp_(cast(value, running.dtype), momentum)


def _vector(name: str, vector: Tensor, input: Tensor) -> Tensor:
    vector = checks.floating(NAME, name, vector, "[C]")
    if len(vector) != input.shape[1] or vector.device != input.device:
        raise ValueError(
            f"{NAME}: {name} must have one element for each of the input's {input.shape[1]} channels, on "
            f"{input.device}, got {list(vector.shape)} on {vector.device}"
        )
    return vector


def _momenta(momentum: float | Sequence[float], views: int) -> Sequence[float]:
    """One for each view."""
    if isinstance(momentum, (list, tuple)):
        return checks.several(NAME, "momentum", momentum, checks.PROBABILITY, views)
    return [checks.number(NAME, "momentum", momentum, checks.PROBABILITY)] * views


Outputs = tuple[Tensor, Tensor, Tensor]
Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


class Kernels(NamedTuple):
    """A backend's form of the operation, on an input of float32 or float64 in which the channels lie together.

    Attributes:
        forward: (input [V, N, C], weight, bias, output [V, N, C], eps, relu) -> mean and variance [V, C]. It writes the
            output.
        backward: (input, weight, bias, mean, variance, grad_output, eps, relu, needs) -> the gradients of input, weight
            and bias, None for one that is not needed.
    """

    forward: Callable[..., tuple[Tensor, Tensor]]
    backward: Callable[..., Gradients]


def _cpu(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, output: Tensor, eps: float, relu: bool
) -> tuple[Tensor, Tensor]:
    mean, variance = (x.new_empty(x.shape[0], x.shape[2]) for _ in range(2))
    native.call("_cpu", NAME, x, weight, bias, output, mean, variance, eps, relu)
    return mean, variance


def _cpu_backward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    grad_output: Tensor,
    eps: float,
    relu: bool,
    needs: Sequence[bool],
) -> Gradients:
    of_input = torch.empty_like(x) if needs[0] else None
    of_weight, of_bias = (x.new_empty(x.shape[2]) if need else None for need in needs[1:])
    given = (x, weight, bias, mean, variance, grad_output)
    native.call("_cpu", "per_view_batch_norm_backward", *given, of_input, of_weight, of_bias, eps, relu)
    return of_input, of_weight, of_bias


KERNELS = {"cpu": Kernels(_cpu, _cpu_backward)}
OFFERED = tuple(backends.BACKENDS)  # on GPUs all are torch's own function


def _rows(x: Tensor, views: int) -> Tensor:
    """[V*B, C, ...] -> [V, N, C], contiguous; no copy of one whose channels lie together."""
    return memory(x.movedim(1, -1).reshape(views, -1, x.shape[1]))


def _shaped(rows: Tensor, like: Tensor) -> Tensor:
    """The way back, to the shape of ``like``."""
    return rows.view(like.movedim(1, -1).shape).movedim(-1, 1)


def _forward(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, views: int, eps: float, relu: bool, backend: str
) -> tuple[Tensor, Outputs]:
    """The input's rows [V, N, C], and output, mean and variance. The output is no view, which could not be edited in
    place, as ``relu(inplace=True)`` and ``+=`` do."""
    rows = _rows(x, views)
    output = _with_channels_together(x)
    mean, variance = KERNELS[backend].forward(rows, weight, bias, _rows(output, views), eps, relu)
    return rows, (output, mean, variance)


def _with_channels_together(like: Tensor) -> Tensor:
    """Memory for a result, in the order of :func:`_rows`."""
    return torch.empty_permuted(like.shape, (0, *range(2, like.dim()), 1), dtype=like.dtype, device=like.device)


class _PerViewBatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        views: int,
        eps: float,
        relu: bool,
        backend: str,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        rows, (output, mean, variance) = _forward(x, weight, bias, views, eps, relu, backend)
        end = anchor(x)
        ctx.save_for_backward(end, rows, weight, bias, mean, variance)
        ctx.mark_non_differentiable(mean, variance)
        ctx.set_materialize_grads(False)
        ctx.operation, ctx.eps, ctx.relu, ctx.backend = NAME, eps, relu, backend
        return output, mean, variance, end

    @staticmethod
    @only_first_derivative
    def backward(
        ctx: Any, saved: Sequence[Tensor], grad_output: Tensor | None, *_: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        if grad_output is None:
            return (None,) * 7
        rows, *rest = saved[1:]
        backward = KERNELS[ctx.backend].backward
        given = _rows(grad_output, len(rows))
        of_rows, *others = backward(rows, *rest, given, ctx.eps, ctx.relu, ctx.needs_input_grad[:3])
        of_input = None if of_rows is None else _shaped(of_rows, grad_output)
        return of_input, *others, None, None, None, None


# What torch sees in place of the calls above, where it must see an operator (ops/autograd.py).


@torch.library.custom_op(
    "imc_kernels::per_view_batch_norm",
    mutates_args=(),
    schema="(Tensor input, Tensor? weight, Tensor? bias, int views, float eps, bool relu, str backend) -> "
    "(Tensor, Tensor, Tensor)",
)
def _operator(*arguments: Any) -> Outputs:
    return _forward(*arguments)[1]


@_operator.register_fake
def _(x: Tensor, weight: Tensor | None, bias: Tensor | None, views: int, *_: Any) -> Outputs:
    statistics = x.new_empty(views, x.shape[1])
    return _with_channels_together(x), statistics, torch.empty_like(statistics)


@torch.library.custom_op(
    "imc_kernels::per_view_batch_norm_backward",
    mutates_args=(),
    schema="(Tensor input, Tensor? weight, Tensor? bias, Tensor mean, Tensor variance, Tensor grad_output, float eps, "
    "bool relu, bool[] needs, str backend) -> Tensor[]",
)
def _backward_operator(x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, *rest: Any) -> list[Tensor]:
    variance, grad_output, *options, backend = rest
    views = len(mean)
    rows, given = _rows(x, views), _rows(grad_output, views)
    gradients = KERNELS[backend].backward(rows, weight, bias, mean, variance, given, *options)
    of_rows, *others = (x.new_empty(0) if gradient is None else gradient for gradient in gradients)
    return [_shaped(of_rows, x) if options[-1][0] else of_rows, *others]


@_backward_operator.register_fake
def _(x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, *rest: Any) -> list[Tensor]:
    needs = rest[-2]
    of_input = _shaped(torch.empty_like(_rows(x, len(mean))), x) if needs[0] else x.new_empty(0)
    return [of_input, *(x.new_empty(x.shape[1] if need else 0) for need in needs[1:])]


def _setup_context(ctx: Any, inputs: tuple, output: Outputs) -> None:
    x, weight, bias, _, ctx.eps, ctx.relu, ctx.backend = inputs
    ctx.operation = NAME
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, weight, bias, *output[1:])


@only_first_derivative
def _operator_backward(
    ctx: Any, saved: Sequence[Tensor], grad_output: Tensor | None, *_: Tensor | None
) -> tuple[Tensor | None, ...]:
    if grad_output is None:
        return (None,) * 7
    needs = list(ctx.needs_input_grad[:3])
    gradients = _backward_operator(*saved, grad_output, ctx.eps, ctx.relu, needs, ctx.backend)
    return *(gradient if need else None for gradient, need in zip(gradients, needs, strict=True)), *[None] * 4


_operator.register_autograd(_operator_backward, setup_context=_setup_context)
