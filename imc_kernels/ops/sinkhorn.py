"""Sinkhorn-Knopp: from scores to soft assignments of given prototype mass."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from imc_kernels import backends, eager, native
from imc_kernels.ops import checks
from imc_kernels.ops.autograd import has_values, is_traced, memory
from imc_kernels.ops.fused_operation import FusedOperation, Gradients, Inputs, Kernels
from imc_kernels.ops.operator import Needs, of_triton
from imc_kernels.ops.precision import at_least_single, cast, half_as_single, specification

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

NAME = "sinkhorn"
MOST_ITERATIONS = 2**20  # seconds on the smallest matrix


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
    work, for half precision B K of 4 too; for a gradient ``iterations`` (B + K) float64 a problem are kept. ``cuda``
    takes sizes up to 2^30, the number of problems among them.

    Args:
        scores: [..., B, K], float32, float64, bfloat16 or float16. Half precision is computed in float32.
        epsilon: entropy regularisation; divides the scores, above 0.
        iterations: 1 to 2^20. There is no convergence test.
        marginals: [K] positive shares of the prototypes, for imbalanced data; they are divided by their sum. Constants,
            floating, on the scores' device. Default: all the same.
        queue: [..., Q, K] scores of further samples, which take part in the iterations and are not returned; floating,
            of the same leading dimensions and device. They make the marginals meaningful for a batch smaller than K.
        dtype: of the result. Scores of a lesser dtype are cast first, as in ``torch.softmax``. Default: the scores'
            dtype, or that to which torch's arithmetic promotes scores, marginals and queue. Over tens of thousands of
            prototypes most assignments are below float16's numbers; float32 holds them.
        group: where given, the scores of all its processes are one batch: each passes its own samples and receives
            their assignments, of which B may be 0. One exchange of K numbers an iteration.
        backend: see :mod:`imc_kernels.backends`.

    Returns:
        [..., B, K] of ``dtype``.

    Raises:
        TypeError: no tensor, not of a floating dtype, or an option of another type.
        ValueError: wrong rank, an empty dimension, or a bad option.
        NotImplementedError: a kernel is asked for a derivative that only ``backend="eager"`` has.
    """
    scores = checks.floating(NAME, "scores", scores, "[..., B, K]", group)
    epsilon = checks.number(NAME, "epsilon", epsilon, checks.POSITIVE)
    iterations = checks.integer(NAME, "iterations", iterations, 1, MOST_ITERATIONS)
    checks.dtype(NAME, dtype)
    checks.group(NAME, group)
    if marginals is None and queue is None and dtype is None:
        return _assignments(scores, epsilon, iterations, None, group, backend)
    if marginals is not None:
        marginals = _checked_marginals(scores, marginals)
    if queue is not None:
        queue = _checked_queue(scores, queue)
    promoted = checks.together(NAME, scores=scores, marginals=marginals, queue=queue)
    result = promoted if dtype is None else dtype
    computed = torch.promote_types(promoted, result)
    scores = cast(scores, computed)
    if marginals is not None:
        marginals = cast(marginals, half_as_single(computed))
        marginals = marginals / marginals.sum()
    options = (epsilon, iterations, marginals, group, backend)
    if queue is None:
        return cast(_assignments(scores, *options), result)
    batch = scores.shape[-2]
    if backends.choose(NAME, OPERATION.backends, scores.device, computed, backend) == "cuda":
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
    chosen = backends.choose(NAME, OPERATION.backends, scores.device, scores.dtype, backend)
    if chosen == "eager":
        return specification(eager.sinkhorn, scores, epsilon, iterations, marginals).to(scores.dtype)
    # The way back from assignments rounded to half precision would lose more than it has.
    wide = chosen == "cpu" and (is_traced() or (torch.is_grad_enabled() and scores.requires_grad))
    given = at_least_single(scores) if wide else scores
    return cast(OPERATION(chosen, (given, marginals), (epsilon, iterations))[0], scores.dtype)


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


def _native(
    module: str, inputs: Inputs, options: Sequence[Any], needs: Needs
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The assignments and, for a gradient, the logarithms of the row and column scalings after each iteration."""
    scores, marginals = inputs
    (batch, prototypes), iterations = scores.shape[-2:], options[1]
    problems = scores.numel() // (batch * prototypes)
    if module == "_cuda":
        native.check_cuda_sizes(NAME, problems, batch, prototypes)
    scores = scores.contiguous()
    assignments = torch.empty_like(scores)
    rows = columns = None
    if needs[0]:
        rows = scores.new_empty(size=(problems, iterations, batch), dtype=torch.float64)
        columns = scores.new_empty(size=(problems, iterations, prototypes), dtype=torch.float64)
    native.call(module, NAME, scores, marginals, assignments, rows, columns, *options)
    return assignments, rows, columns


def _native_backward(
    module: str, inputs: Inputs, saved: Sequence[Tensor], grad_output: Tensor, options: Sequence[Any], needs: Needs
) -> Gradients:
    scores = inputs[0].contiguous()
    gradient = torch.empty_like(scores)
    saved = saved[1:] if module == "_cuda" else saved  # whose kernel reads no assignments
    native.call(module, "sinkhorn_backward", scores, inputs[1], *saved, memory(grad_output), gradient, options[0])
    return gradient, None


def _empty(
    backend: str, inputs: Inputs, options: Sequence[Any], needs: Needs
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    scores, iterations = inputs[0], options[1]
    assignments = scores.new_empty(scores.shape)
    if not needs[0]:
        return assignments, None, None
    problems, (batch, prototypes) = math.prod(scores.shape[:-2]), scores.shape[-2:]
    # Triton keeps the scalings in single precision, and the columns' largest scores beside them.
    further, dtype = (1, torch.float32) if backend == "triton" else (0, torch.float64)
    rows = scores.new_empty((problems, iterations, batch), dtype=dtype)
    return assignments, rows, scores.new_empty((problems, iterations + further, prototypes), dtype=dtype)


OPERATION = FusedOperation(
    NAME,
    {
        "cuda": Kernels(partial(_native, "_cuda"), partial(_native_backward, "_cuda"), reads_half=True),
        "triton": Kernels(of_triton(NAME), of_triton("sinkhorn_backward"), reads_half=True),
        "cpu": Kernels(partial(_native, "_cpu"), partial(_native_backward, "_cpu"), reads_half=True),
    },
    inputs=("scores", "marginals?"),
    options={"epsilon": checks.POSITIVE, "iterations": "int"},
    constants=("marginals",),
    empty=_empty,
    kept=2,
    saves_result=True,
)
