"""Sinkhorn-Knopp: from scores to soft assignments of given prototype mass."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from imc_kernels import backends, eager, native
from imc_kernels.ops import checks, scheduled
from imc_kernels.ops.autograd import check_recorded, has_values, is_direct, is_traced, memory, only_first_derivative
from imc_kernels.ops.precision import at_least_single, cast, half_as_single, specification

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

NAME = "sinkhorn"


def sinkhorn(
    scores: Tensor,
    *,
    epsilon: float = 0.05,
    iterations: int = 3,
    marginals: Tensor | None = None,
    queue: Tensor | None = None,
    dtype: torch.dtype | None = None,
    group: ProcessGroup | None = None,
    backend: str | None = None,
) -> Tensor:
    """Soft assignments of samples to prototypes of (nearly) given mass, by Sinkhorn-Knopp scaling.

    ``exp(scores / epsilon)`` is scaled so that each prototype's column sums to its share of the mass (1/K), then each
    sample's row to 1/B, in turn, ``iterations`` times; at the end every row sums to 1. All leading dimensions are
    independent problems. The range of the scores does not matter: beyond what exponentials can hold, the iteration runs
    on logarithms. Differentiable through the iterations. Source: SwAV, arXiv 2006.09882, section 3.1.

    Memory: on ``cpu``, beside the result, min(B / 32 + 1, 64) K numbers of 12 bytes and B + K of 8 for each problem at
    work; for a gradient ``iterations`` (B + K) float64 a problem are kept. ``cuda`` takes sizes up to 2^30,
    the number of problems and of iterations among them.

    Args:
        scores: [..., B, K], float32, float64, bfloat16 or float16. Half precision is computed in float32.
        epsilon: entropy regularisation; divides the scores, above 0.
        iterations: at least 1. There is no convergence test.
        marginals: [K] positive shares of the prototypes, for imbalanced data; they are divided by their sum. Constants,
            floating, on the scores' device. Default: all the same.
        queue: [..., Q, K] scores of further samples, which take part in the iterations and are not returned; floating,
            of the same leading dimensions and device. They make the marginals meaningful for a batch smaller than K.
        dtype: of the result. Scores of a lesser dtype are cast first, as in ``torch.softmax``. Default: the scores'
            dtype, or that to which torch's arithmetic promotes scores, marginals and queue. Over tens of thousands of
            prototypes most assignments are below float16's numbers; float32 holds them.
        group: where given, the scores of all its processes are one batch: each passes its own samples and receives
            their assignments. One exchange of K numbers an iteration.
        backend: see :mod:`imc_kernels.backends`.

    Returns:
        [..., B, K] of ``dtype``.

    Raises:
        TypeError: no tensor, not of a floating dtype, or an option of another type.
        ValueError: wrong rank, an empty dimension, or a bad option.
        NotImplementedError: a kernel is asked for a derivative that only ``backend="eager"`` has.
    """
    scores = checks.floating(NAME, "scores", scores, "[..., B, K]")
    epsilon = checks.number(NAME, "epsilon", epsilon, checks.POSITIVE)
    iterations = checks.integer(NAME, "iterations", iterations, least=1)
    checks.dtype(NAME, dtype)
    checks.group(NAME, group)
    if marginals is not None:
        marginals = _checked_marginals(scores, marginals)
    if queue is not None:
        queue = _checked_queue(scores, queue)
    promoted = checks.together(NAME, scores=scores, marginals=marginals, queue=queue)
    result = promoted if dtype is None else dtype
    computed = promoted if dtype is None else torch.promote_types(promoted, dtype)
    scores = cast(scores, computed)
    if marginals is not None:
        marginals = cast(marginals, half_as_single(computed))
        marginals = marginals / marginals.sum()
    options = (epsilon, iterations, marginals, group, backend)
    if queue is None:
        return cast(_assignments(scores, *options), result)
    batch = scores.shape[-2]
    if backends.choose(NAME, OFFERED, scores.device, computed, backend) == "cuda":
        native.check_cuda_sizes(NAME, batch + queue.shape[-2])
    everybody = torch.cat([scores, cast(queue, computed)], dim=-2)
    return cast(_assignments(everybody, *options)[..., :batch, :], result)


def _assignments(
    scores: Tensor,
    epsilon: float,
    iterations: int,
    marginals: Tensor | None,
    group: ProcessGroup | None,
    backend: str | None,
) -> Tensor:
    """Of the scores' dtype, by checked arguments; the marginals sum to 1 and are float32 or float64."""
    if group is not None:
        from imc_kernels.ops import distributed  # which imports the compiler

        return distributed.sinkhorn(scores, epsilon, iterations, marginals, group, backend)
    needed = torch.is_grad_enabled() and scores.requires_grad
    chosen = backends.choose(NAME, OFFERED, scores.device, scores.dtype, backend)
    if chosen == "eager":
        return specification(eager.sinkhorn, scores, epsilon, iterations, marginals).to(scores.dtype)
    kernels = KERNELS[chosen]
    direct = is_direct(NAME, chosen, scores, marginals)
    x = scores if kernels.reads_half else at_least_single(scores)
    if not direct:
        arguments = (x, *scheduled.packed((epsilon,)), iterations, marginals, needed or is_traced(), chosen)
        return cast(_operator(*arguments)[0], scores.dtype)
    if needed:
        return cast(_Sinkhorn.apply(chosen, x, epsilon, iterations, marginals), scores.dtype)
    return cast(kernels.forward(x, epsilon, iterations, marginals, False)[0], scores.dtype)


def _checked_marginals(scores: Tensor, marginals: Tensor) -> Tensor:
    marginals = checks.floating(NAME, "marginals", marginals, "[K]")
    if marginals.shape[0] != scores.shape[-1]:
        raise ValueError(
            f"{NAME}: marginals [K] and scores [..., B, K] must agree in K, got {list(marginals.shape)} and "
            f"{list(scores.shape)}"
        )
    if marginals.requires_grad:
        raise ValueError(f"{NAME}: marginals are constants; pass marginals.detach()")
    # Asked on the CPU only: elsewhere the answer would wait for the device.
    if marginals.is_cpu and has_values(marginals) and not bool((marginals > 0).all()):
        raise ValueError(f"{NAME}: marginals must all be above 0, got a smallest value of {marginals.min().item():g}")
    return marginals


def _checked_queue(scores: Tensor, queue: Tensor) -> Tensor:
    queue = checks.floating(NAME, "queue", queue, "[..., Q, K]")
    if queue.shape[:-2] != scores.shape[:-2] or queue.shape[-1] != scores.shape[-1]:
        raise ValueError(
            f"{NAME}: queue [..., Q, K] must match scores [..., B, K] in all but the second last dimension, got "
            f"{list(queue.shape)} for {list(scores.shape)}"
        )
    return queue


Forward = Callable[[Tensor, float, int, "Tensor | None", bool], "tuple[Tensor, Tensor | None, Tensor | None]"]
Backward = Callable[[Tensor, "Tensor | None", Tensor, Tensor, Tensor, Tensor, float], Tensor]


class Kernels(NamedTuple):
    """A backend's form of the operation.

    Attributes:
        forward: (scores, epsilon, iterations, marginals, potentials) -> the assignments and, where ``potentials`` asks
            for them, what the backward needs of the row and column scalings: their logarithms after each iteration,
            [problems, iterations, B] and [problems, iterations (+ further), K].
        backward: (scores, marginals, assignments, rows, columns, grad_output, epsilon) -> the gradient of the scores.
        reads_half: whether it reads half precision itself.
        potentials: the dtype of the scalings.
        further: further rows of the column scalings.
    """

    forward: Forward
    backward: Backward
    reads_half: bool = False
    potentials: torch.dtype = torch.float32
    further: int = 0


def _native(
    module: str, scores: Tensor, epsilon: float, iterations: int, marginals: Tensor | None, potentials: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    *leading, batch, prototypes = scores.shape
    if module == "_cuda":
        native.check_cuda_sizes(NAME, math.prod(leading), batch, prototypes, iterations)
    scores = scores.contiguous()
    assignments = torch.empty_like(scores)
    rows = columns = None
    if potentials:
        problems = math.prod(leading)
        rows = scores.new_empty(size=(problems, iterations, batch), dtype=torch.float64)
        columns = scores.new_empty(size=(problems, iterations, prototypes), dtype=torch.float64)
    native.call(module, NAME, scores, marginals, assignments, rows, columns, epsilon, iterations)
    return assignments, rows, columns


def _native_backward(
    module: str,
    scores: Tensor,
    marginals: Tensor | None,
    assignments: Tensor,
    rows: Tensor,
    columns: Tensor,
    grad_output: Tensor,
    epsilon: float,
) -> Tensor:
    scores = scores.contiguous()
    gradient = torch.empty_like(scores)
    saved = (rows, columns) if module == "_cuda" else (assignments, rows, columns)
    native.call(module, "sinkhorn_backward", scores, marginals, *saved, memory(grad_output), gradient, epsilon)
    return gradient


def _triton(*arguments: Any) -> tuple[Tensor, Tensor | None, Tensor | None]:
    from imc_kernels.triton.sinkhorn import sinkhorn as kernel

    return kernel(*arguments)


def _triton_backward(*arguments: Any) -> Tensor:
    from imc_kernels.triton.sinkhorn_backward import sinkhorn_backward as kernel

    return kernel(*arguments)


def _of_module(module: str, reads_half: bool) -> Kernels:
    forward, backward = functools.partial(_native, module), functools.partial(_native_backward, module)
    return Kernels(forward, backward, reads_half, potentials=torch.float64)


KERNELS = {
    "cuda": _of_module("_cuda", reads_half=True),
    "triton": Kernels(_triton, _triton_backward, reads_half=True, further=1),
    "cpu": _of_module("_cpu", reads_half=False),
}
OFFERED = (*KERNELS, "eager")


class _Sinkhorn(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, backend: str, scores: Tensor, epsilon: float, iterations: int, marginals: Tensor | None
    ) -> Tensor:
        assignments, rows, columns = KERNELS[backend].forward(scores, epsilon, iterations, marginals, True)
        ctx.save_for_backward(scores, marginals, assignments, rows, columns)
        ctx.operation, ctx.epsilon, ctx.backend = NAME, epsilon, backend
        return assignments

    @staticmethod
    @only_first_derivative
    def backward(ctx: Any, saved: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        backward: Callable[..., Tensor] = KERNELS[ctx.backend].backward
        return None, backward(*saved, grad_output, ctx.epsilon), None, None, None


# What torch sees in place of the calls above, where it must see an operator (ops/autograd.py).


OPTIONS = {"epsilon": checks.POSITIVE}


@torch.library.custom_op(
    "imc_kernels::sinkhorn",
    mutates_args=(),
    schema="(Tensor scores, float? epsilon, Tensor? changing, int iterations, Tensor? marginals, bool potentials, "
    "str backend) -> (Tensor, Tensor, Tensor)",
)
def _operator(
    scores: Tensor,
    epsilon: float | None,
    changing: Tensor | None,
    iterations: int,
    marginals: Tensor | None,
    potentials: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    (known,) = scheduled.unpacked(NAME, OPTIONS, (epsilon,), changing)
    results = KERNELS[backend].forward(scores, known, iterations, marginals, potentials)
    assignments, rows, columns = (scores.new_empty(0) if x is None else x for x in results)
    return assignments, rows, columns


@_operator.register_fake
def _(
    scores: Tensor,
    epsilon: float | None,
    changing: Tensor | None,
    iterations: int,
    marginals: Tensor | None,
    potentials: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    assignments = scores.new_empty(scores.shape)
    if not potentials:
        return assignments, scores.new_empty(0), scores.new_empty(0)
    problems, (batch, prototypes) = math.prod(scores.shape[:-2]), scores.shape[-2:]
    kernels = KERNELS[backend]
    rows = scores.new_empty((problems, iterations, batch), dtype=kernels.potentials)
    columns = scores.new_empty((problems, iterations + kernels.further, prototypes), dtype=kernels.potentials)
    return assignments, rows, columns


@torch.library.custom_op(
    "imc_kernels::sinkhorn_backward",
    mutates_args=(),
    schema="(Tensor scores, Tensor? marginals, Tensor assignments, Tensor rows, Tensor columns, Tensor grad_output, "
    "float? epsilon, Tensor? changing, str backend) -> Tensor",
)
def _backward_operator(*arguments: Any) -> Tensor:
    *tensors, epsilon, changing, backend = arguments
    return KERNELS[backend].backward(*tensors, *scheduled.unpacked(NAME, OPTIONS, (epsilon,), changing))


@_backward_operator.register_fake
def _(scores: Tensor, *rest: Any) -> Tensor:
    return scores.new_empty(scores.shape)


def _setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    scores, ctx.epsilon, changing, _, marginals, potentials, ctx.backend = inputs
    check_recorded(NAME, ctx.needs_input_grad[:1], [potentials])
    ctx.operation = NAME
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(scores, marginals, *output, changing)


@only_first_derivative
def _operator_backward(
    ctx: Any, saved: tuple[Tensor, ...], grad_output: Tensor | None, *_: Tensor | None
) -> tuple[Tensor | None, ...]:
    if grad_output is None:
        return (None,) * 7
    *tensors, changing = saved
    gradient = _backward_operator(*tensors, grad_output, ctx.epsilon, changing, ctx.backend)
    return gradient, *[None] * 6


_operator.register_autograd(_operator_backward, setup_context=_setup_context)
