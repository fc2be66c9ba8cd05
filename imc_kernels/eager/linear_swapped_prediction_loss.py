"""Swapped prediction of assignments by Sinkhorn-Knopp, from embeddings and prototypes (SwAV, arXiv 2006.09882)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from imc_kernels.eager.prototype_scores import prototype_scores
from imc_kernels.eager.sinkhorn import sinkhorn
from imc_kernels.eager.swapped_prediction_loss import swapped_prediction_loss

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def linear_swapped_prediction_loss(
    embeddings: Tensor,
    prototypes: Tensor,
    teacher_embeddings: Tensor | None,
    teacher_prototypes: Tensor | None,
    marginals: Tensor | None,
    center: Tensor | None,
    weights: Tensor | None,
    epsilon: float,
    temperature: float,
    assigned: int,
    iterations: int,
    normalize_prototypes: bool,
    all_pairs: bool,
    group: ProcessGroup | None = None,
) -> Tensor:
    """Embeddings [V, B, D] and prototypes [K, D], those of a teacher [A, B, E] and [K, E] -> the mean cross-entropy."""
    scores = prototype_scores(embeddings, prototypes, normalize_prototypes)
    if teacher_embeddings is None or teacher_prototypes is None:
        constant = scores[:assigned].detach()
    else:
        constant = prototype_scores(teacher_embeddings, teacher_prototypes, normalize_prototypes)
    if center is None:
        assignments = sinkhorn(constant, epsilon, iterations, marginals, group)
    else:
        logits = (constant - center) / epsilon
        assignments = torch.softmax(logits + 0 * logits.amin(dim=-1, keepdim=True), dim=-1)  # -inf gives NaN
    return swapped_prediction_loss(scores, assignments, temperature, weights, all_pairs, group)
