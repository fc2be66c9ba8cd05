"""Mutual-information loss of IMC-SwAV."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from imc_kernels import backends, eager, native
from imc_kernels.ops import checks, mutual_information_cuda
from imc_kernels.ops.fused_loss import FusedLoss, Kernel, Needs
from imc_kernels.ops.operator import of_triton
from imc_kernels.ops.precision import cast, gradient_buffers, loss_buffer, specification

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

NAME = "mutual_information_loss"


def mutual_information_loss(
    logits: Tensor,
    scores: Tensor,
    *,
    temperature: float = 0.1,
    entropy_weight: float = 4.0,
    logit_limit: float | None = None,
    symmetric: bool = False,
    group: ProcessGroup | None = None,
    backend: str | None = None,
) -> Tensor:
    """Negative mutual information, with a weighted entropy term, between clusters Y and prototypes U.

    With ``y = softmax(logits)``, ``u = softmax(scores / temperature)`` and, for each ordered pair of views (j, i),
    j = i included, the joint distribution ``y[j].T @ u[i] / B``:

        ``mean over (j, i) of  H(Y|U) - entropy_weight H(Y)``  (+ 0.01 mean_vb sum_c relu(|logits| - logit_limit))

    in nats. It lies between ``-entropy_weight log C`` and ``log C`` without the guard. Source: IMC-SwAV, arXiv
    2103.07368; the weight and the guard as in the authors' code.

    Memory: on ``cpu``, beside the gradients, V C x V K + V B (2 C + K) numbers; V B C more for the logits' gradient,
    V C x V K + V B K more for the scores' (V C rounded up to 16, V K to 48; with AMX to 32 and 64, copies of the joint
    are half as large again and the logits' gradient takes one too). ``cuda`` takes sizes up to 2^30, V C and V K + 1
    among them, and up to 2^15 views.

    Args:
        logits: [V, B, C] of the classifier for V views, float32, float64, bfloat16 or float16.
        scores: [V, B, K] prototype scores on the same device. The gradient reaches whichever of the two requires it;
            IMC-SwAV passes ``scores.detach()``.
        temperature: divides the scores, above 0.
        entropy_weight: the paper's b.
        logit_limit: where given, logits beyond +-limit are penalised.
        symmetric: average each joint distribution with its transpose, for two classifiers of the same clusters (K = C).
            With ``scores=logits, temperature=1, entropy_weight=1`` this is the negative mutual information of IIC
            (arXiv 1807.06653, equation 3), over all pairs of views.
        group: where given, the samples of all its processes are one batch, and every process gets its
            loss; averaged over the processes, the gradients are those of the whole batch.
            A process may have B = 0.
        backend: see :mod:`imc_kernels.backends`.

    Returns:
        A scalar: float64 where an input is, float32 otherwise. Inputs of two dtypes are promoted as in torch's
        arithmetic.

    Raises:
        TypeError: an input is no tensor, not of a floating dtype, or an option is of another type.
        ValueError: shapes or devices that do not fit, an empty input, or a bad option.
        NotImplementedError: a kernel is asked for a derivative that only ``backend="eager"`` has.
    """
    logits = checks.floating(NAME, "logits", logits, "[V, B, C]", group)
    scores = checks.floating(NAME, "scores", scores, "[V, B, K]", group)
    dtype = checks.together(NAME, logits=logits, scores=scores)
    logits, scores = cast(logits, dtype), cast(scores, dtype)
    temperature = checks.number(NAME, "temperature", temperature, checks.POSITIVE)
    entropy_weight = checks.number(NAME, "entropy_weight", entropy_weight, checks.FINITE)
    if logit_limit is not None:
        logit_limit = checks.number(NAME, "logit_limit", logit_limit, checks.POSITIVE)
    symmetric = checks.flag(NAME, "symmetric", symmetric)
    (views, batch, clusters), (other_views, samples, prototypes) = logits.shape, scores.shape
    if views != other_views or batch != samples:
        raise ValueError(
            f"{NAME}: logits [V, B, C] and scores [V, B, K] must agree in V and B, got {list(logits.shape)} and "
            f"{list(scores.shape)}"
        )
    if symmetric and prototypes != clusters:
        raise ValueError(
            f"{NAME}: symmetric=True takes scores with as many columns as logits, got {list(scores.shape)} and "
            f"{list(logits.shape)}"
        )
    checks.group(NAME, group)
    if group is not None:
        from imc_kernels.ops import distributed  # which imports the compiler

        numbers = (temperature, entropy_weight, logit_limit, symmetric)
        return distributed.mutual_information_loss(logits, scores, *numbers, group, backend)
    chosen = backends.choose(NAME, LOSS.backends, logits.device, logits.dtype, backend)
    if chosen == "eager":
        everything = (logits, scores, temperature, entropy_weight, logit_limit, symmetric)
        return specification(eager.mutual_information_loss, *everything)
    limit = math.inf if logit_limit is None else logit_limit
    return LOSS(chosen, (logits, scores), (temperature, entropy_weight, limit, symmetric))


def _cpu(inputs: Sequence[Tensor], options: Sequence[Any], needs: Needs) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    logits, scores = inputs[0].contiguous(), inputs[1].contiguous()
    loss = loss_buffer(logits)
    gradients = gradient_buffers(inputs, needs)
    native.call("_cpu", NAME, logits, scores, loss, *gradients, *options)
    return loss, gradients


LOSS = FusedLoss(
    NAME,
    {
        "cuda": Kernel(mutual_information_cuda.mutual_information, reads_half=True),
        "triton": Kernel(of_triton(NAME), reads_half=True),
        "cpu": Kernel(_cpu, reads_half=True),
    },
    inputs=("logits", "scores"),
    options={
        "temperature": checks.POSITIVE,
        "entropy_weight": checks.FINITE,
        "logit_limit": checks.POSITIVE,
        "symmetric": "bool",
    },
)
