"""Swapped-prediction loss of SwAV."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from torch import Tensor

from imc_kernels import backends, eager, native
from imc_kernels.ops import checks
from imc_kernels.ops.fused_loss import FusedLoss, Kernel, Needs
from imc_kernels.ops.operator import of_triton
from imc_kernels.ops.precision import cast, gradient_buffer, loss_buffer, specification

NAME = "swapped_prediction_loss"


def swapped_prediction_loss(
    scores: Tensor, assignments: Tensor, *, temperature: float = 0.1, backend: str | None = None
) -> Tensor:
    """Cross-entropy of each view's assignments against every other view's prediction.

    ``mean over (a, v != a) and b of  -sum_k assignments[a, b, k] log softmax(scores[v, b] / temperature)[k]``,
    in nats. Source: SwAV, arXiv 2006.09882, equation 2, over the pairs of its multi-crop (section 3.2).

    Memory: on ``cpu``, beside the gradient, B float64 and 3 K numbers a thread. ``cuda`` takes sizes up to 2^30.

    Args:
        scores: [V, B, K] scores of V >= 2 views, float32, float64, bfloat16 or float16. The gradient reaches them.
        assignments: [A, B, K] targets of the first A <= V views, such as :func:`sinkhorn` gives, on the same device.
            Constants: they must not require a gradient.
        temperature: divides the scores, above 0.
        backend: see :mod:`imc_kernels.backends`.

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
    dtype = checks.together(NAME, scores=scores, assignments=assignments)
    scores, assignments = cast(scores, dtype), cast(assignments, dtype)
    temperature = checks.number(NAME, "temperature", temperature, checks.POSITIVE)
    (views, batch, prototypes), (assigned, samples, columns) = scores.shape, assignments.shape
    if views < 2:
        raise ValueError(f"{NAME}: scores [V, B, K] must have at least 2 views, got {list(scores.shape)}")
    if samples != batch or columns != prototypes or assigned > views:
        raise ValueError(
            f"{NAME}: assignments [A, B, K] must match scores [V, B, K] in B and K with A <= V, got "
            f"{list(assignments.shape)} for {list(scores.shape)}"
        )
    if assignments.requires_grad:
        raise ValueError(f"{NAME}: assignments are constants; pass assignments.detach()")
    chosen = backends.choose(NAME, LOSS.backends, scores.device, scores.dtype, backend)
    if chosen == "eager":
        return specification(eager.swapped_prediction_loss, scores, assignments, temperature)
    return LOSS(chosen, (scores, assignments), (temperature,))


def _native(
    module: str, inputs: Sequence[Tensor], options: Sequence[float], needs: Needs
) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    if module == "_cuda":
        native.check_cuda_sizes(NAME, *inputs[0].shape)
    scores, assignments = inputs[0].contiguous(), inputs[1].contiguous()
    loss = loss_buffer(scores)
    gradient = gradient_buffer(scores) if needs[0] else None
    native.call(module, NAME, scores, assignments, loss, gradient, *options)
    return loss, (gradient, None)


LOSS = FusedLoss(
    NAME,
    {
        "cuda": Kernel(functools.partial(_native, "_cuda"), reads_half=True),
        "triton": Kernel(of_triton(NAME), reads_half=True),
        "cpu": Kernel(functools.partial(_native, "_cpu"), reads_half=True),
    },
    inputs=("scores", "assignments"),
    options={"temperature": checks.POSITIVE},
    constants=("assignments",),
)
