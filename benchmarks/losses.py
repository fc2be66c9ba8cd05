"""The losses of one IMC-SwAV step by this package, as the benchmarks time them."""

from __future__ import annotations

from collections.abc import Callable

from rivals import ENTROPY_WEIGHT, LOGIT_LIMIT
from torch import Tensor

from imc_kernels import backends, mutual_information_loss, sinkhorn, swapped_prediction_loss


def imc_swav_losses(scores: Tensor, logits: Tensor) -> Tensor:
    """All losses of a step: scores [V, B, K], of which the first two views assign, and logits [V, B, C]."""
    constant = scores.detach()
    swapped = swapped_prediction_loss(scores, sinkhorn(constant[:2]))
    return swapped + mutual_information_loss(logits, constant, entropy_weight=ENTROPY_WEIGHT, logit_limit=LOGIT_LIMIT)


def by_backend(backend: str | None) -> Callable[[Tensor, Tensor], Tensor]:
    """The same by a named backend; None: the automatic choice."""

    def losses(scores: Tensor, logits: Tensor) -> Tensor:
        with backends.backend(backend):
            return imc_swav_losses(scores, logits)

    return losses
