"""Contrastive loss of CRLC between the cluster predictions of two views."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from imc_kernels import backends, eager, native
from imc_kernels.eager.log_dot_product_loss import CRITICS
from imc_kernels.ops import checks
from imc_kernels.ops.fused_loss import FusedLoss, Kernel, Needs
from imc_kernels.ops.operator import of_triton
from imc_kernels.ops.precision import gradient_buffer, loss_buffer, specification

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

NAME = "log_dot_product_loss"


def log_dot_product_loss(
    logits: Tensor,
    *,
    smoothing: float = 0.01,
    entropy_weight: float = 0.0,
    logit_limit: float | None = None,
    critic: str = "log-dot",
    group: ProcessGroup | None = None,
    backend: str | None = None,
) -> Tensor:
    """Contrast of the cluster predictions of two views, minus the weighted entropy of their mean, for each sub-head.

    With ``p = softmax(logits)``, ``q = (1 - smoothing) p + smoothing / C``, the N = 2B rows of q of both views and the
    critic ``F_ij = log(q_i . q_j)``:

        ``mean_i [log sum_{j != i} exp F_ij - F_i,pair(i)]  -  entropy_weight mean_v H(mean_b p_vb)``
        (+ ``0.01 / 2 sum_v mean_b sum_c relu(|logits| - logit_limit)^2 / 2``)

    in nats; the first term is log(N - 1) for uniform predictions. Without smoothing, a row that shares no cluster with
    its pair would make it infinite: a dot product with the pair, or a sum of them over j, below the smallest normal
    number of the dtype counts as that number, with a gradient of 0. So loss and gradient stay finite. Source: CRLC,
    arXiv 2107.11635, and for the guard the authors' code.

    Memory: on ``cpu``, beside result and gradient, 2.4 times the logits of a head (of as many heads as have 2^22 logits
    where that is more) and 3 numbers a sample. ``cuda`` takes sizes up to 2^30.

    Args:
        logits: [H, 2, B, C] of H sub-heads for two views, float32, float64, bfloat16 or float16.
        smoothing: weight of the uniform distribution, in [0, 1).
        entropy_weight: of the entropy of the unsmoothed prediction, averaged over the samples of a view.
        logit_limit: where given, logits beyond +-limit are penalised.
        critic: "log-dot", or of the paper's ablation "dot" (``q_i . q_j``), "negative-l2" (``-|q_i - q_j|^2``) or
            "negative-jsd" (minus the Jensen-Shannon divergence), which only the eager backend serves.
        group: where given, the samples of all its processes are one batch, and every process gets its
            loss; averaged over the processes, the gradients are those of the whole batch.
            A process may have B = 0.
        backend: see :mod:`imc_kernels.backends`.

    Returns:
        [H], one loss for each sub-head: float64 for float64 logits, float32 otherwise.

    Raises:
        TypeError: logits is no tensor, not of a floating dtype, or an option is of another type.
        ValueError: a wrong shape, an empty input, or a bad option.
        NotImplementedError: a kernel is asked for a derivative that only ``backend="eager"`` has.
    """
    logits = checks.floating(NAME, "logits", logits, "[H, 2, B, C]", group)
    if logits.shape[1] != 2:
        raise ValueError(f"{NAME}: logits [H, 2, B, C] must hold 2 views, got {list(logits.shape)}")
    smoothing = checks.number(NAME, "smoothing", smoothing, checks.FRACTION)
    entropy_weight = checks.number(NAME, "entropy_weight", entropy_weight, checks.FINITE)
    if logit_limit is not None:
        logit_limit = checks.number(NAME, "logit_limit", logit_limit, checks.POSITIVE)
    checks.group(NAME, group)
    if not isinstance(critic, str) or (critic != "log-dot" and critic not in CRITICS):
        raise ValueError(f"{NAME}: critic must be log-dot, {', '.join(CRITICS)}, got {critic!r}")
    if group is not None:
        from imc_kernels.ops import distributed  # which imports the compiler

        numbers = (smoothing, entropy_weight, logit_limit)
        return distributed.log_dot_product_loss(logits, *numbers, critic, group, backend)
    offered, form = LOSS.backends, NAME
    if critic != "log-dot":
        offered, form = ("eager",), f"{NAME} with critic={critic!r}"
    chosen = backends.choose(form, offered, logits.device, logits.dtype, backend)
    if chosen == "eager":
        everything = (logits, smoothing, entropy_weight, logit_limit, critic)
        return specification(eager.log_dot_product_loss, *everything)
    limit = math.inf if logit_limit is None else logit_limit
    return LOSS(chosen, (logits,), (smoothing, entropy_weight, limit))


def _native(
    module: str, inputs: Sequence[Tensor], options: Sequence[float], needs: Needs
) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    if module == "_cuda":
        native.check_cuda_sizes(NAME, *inputs[0].shape)
    logits = inputs[0].contiguous()
    loss = loss_buffer(logits, logits.shape[0])
    gradient = gradient_buffer(logits) if needs[0] else None
    native.call(module, NAME, logits, loss, gradient, *options)
    return loss, (gradient,)


LOSS = FusedLoss(
    NAME,
    {
        "cuda": Kernel(functools.partial(_native, "_cuda"), reads_half=True),
        "triton": Kernel(of_triton(NAME), reads_half=True),
        "cpu": Kernel(functools.partial(_native, "_cpu"), reads_half=True),
    },
    inputs=("logits",),
    options={"smoothing": checks.FRACTION, "entropy_weight": checks.FINITE, "logit_limit": checks.POSITIVE},
    loss_shape=lambda inputs: inputs[0].shape[:1],
)
