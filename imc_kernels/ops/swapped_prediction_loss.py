"""Swapped-prediction loss of SwAV."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from imc_kernels import backends, eager, native
from imc_kernels.ops import checks
from imc_kernels.ops.fused_loss import FusedLoss, Kernel, Needs
from imc_kernels.ops.operator import of_triton
from imc_kernels.ops.precision import cast, gradient_buffer, half_as_single, loss_buffer, specification

NAME = "swapped_prediction_loss"


def swapped_prediction_loss(
    scores: Tensor,
    assignments: Tensor,
    *,
    temperature: float = 0.1,
    weights: Tensor | None = None,
    pairs: str = "others",
    backend: str | None = None,
) -> Tensor:
    """Cross-entropy of each view's assignments against every other view's prediction.

    ``mean over (a, v != a) and b of  -sum_k assignments[a, b, k] log softmax(scores[v, b] / temperature)[k]``,
    in nats. Source: SwAV, arXiv 2006.09882, equation 2, over the pairs of its multi-crop (section 3.2). Over tens of
    thousands of prototypes :func:`linear_swapped_prediction_loss` needs neither matrix.

    Memory: on ``cpu``, beside the gradient, B float64 and 3 K numbers a thread. ``cuda`` takes sizes up to 2^30.

    Args:
        scores: [V, B, K] scores of V views, 2 at least unless pairs is "all"; float32, float64, bfloat16 or float16.
            The gradient reaches them.
        assignments: [A, B, K] targets of the first A <= V views, such as :func:`sinkhorn` gives, on the same device.
            Constants: they must not require a gradient.
        temperature: divides the scores, above 0.
        weights: [V, B] of the predictions, constants: each cross-entropy is multiplied with its own. The mean is not
            divided by their sum. iBOT (arXiv 2111.07832): 0 for a patch that is not masked, 1 over the number of masked
            ones otherwise.
        pairs: "others", each assignment is predicted by all views but its own, or "all", by its own too.
        backend: see :mod:`imc_kernels.backends`. ``cuda`` has neither weights nor other pairs.

    Returns:
        A scalar: float64 where an input is, float32 otherwise. Inputs of two dtypes are promoted as in torch's
        arithmetic.

    Raises:
        TypeError: an input is no tensor, not of a floating dtype, or the temperature no number.
        ValueError: shapes or devices that do not fit, an empty input, or a bad temperature.
        NotImplementedError: a kernel is asked for a derivative that only ``backend="eager"`` has.
    """
    scores = checks.floating(NAME, "scores", scores, "[V, B, K]")
    assignments = checks.floating(NAME, "assignments", assignments, "[A, B, K]")
    weights = checks.constant(NAME, "weights", weights, "[V, B]", scores.shape[:2])
    every = checks.all_pairs(NAME, pairs)
    dtype = checks.together(NAME, scores=scores, assignments=assignments, weights=weights)
    scores, assignments = cast(scores, dtype), cast(assignments, dtype)
    temperature = checks.number(NAME, "temperature", temperature, checks.POSITIVE)
    (views, batch, prototypes), (assigned, samples, columns) = scores.shape, assignments.shape
    if views < 2 and not every:
        raise ValueError(
            f'{NAME}: scores [V, B, K] must have at least 2 views unless pairs="all", got {list(scores.shape)}'
        )
    if samples != batch or columns != prototypes or assigned > views:
        raise ValueError(
            f"{NAME}: assignments [A, B, K] must match scores [V, B, K] in B and K with A <= V, got "
            f"{list(assignments.shape)} for {list(scores.shape)}"
        )
    if assignments.requires_grad:
        raise ValueError(f"{NAME}: assignments are constants; pass assignments.detach()")
    form, offered = NAME, LOSS.backends
    if weights is not None or every:
        form, offered = f"{NAME} with weights or all pairs", WEIGHTED
    chosen = backends.choose(form, offered, scores.device, scores.dtype, backend)
    weights = None if weights is None else cast(weights, half_as_single(dtype))
    if chosen == "eager":
        return specification(eager.swapped_prediction_loss, scores, assignments, temperature, weights, every)
    return LOSS(chosen, (scores, assignments, weights), (temperature, every))


def _native(
    module: str, inputs: Sequence[Any], options: Sequence[Any], needs: Needs
) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    temperature, every = options
    scores, assignments, weights = inputs[0].contiguous(), inputs[1].contiguous(), inputs[2]
    if module == "_cuda":
        native.check_cuda_sizes(NAME, *scores.shape)
    loss = loss_buffer(scores)
    gradient = gradient_buffer(scores) if needs[0] else None
    if module == "_cuda":
        native.call(module, NAME, scores, assignments, loss, gradient, temperature)
    else:
        weights = None if weights is None else weights.contiguous()
        native.call(module, NAME, scores, assignments, weights, loss, gradient, temperature, not every)
    return loss, (gradient, None, None)


LOSS = FusedLoss(
    NAME,
    {
        "cuda": Kernel(functools.partial(_native, "_cuda"), reads_half=True),
        "triton": Kernel(of_triton(NAME), reads_half=True),
        "cpu": Kernel(functools.partial(_native, "_cpu"), reads_half=True),
    },
    inputs=("scores", "assignments", "weights?"),
    options={"temperature": checks.POSITIVE, "all_pairs": "bool"},
    constants=("assignments", "weights"),
)
WEIGHTED = tuple(name for name in LOSS.backends if name != "cuda")
