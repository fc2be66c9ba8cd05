"""Weighted pointwise mutual information between students and teachers (TEMI, arXiv 2303.17896, section 3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from imc_kernels.eager.distributed import samples_over, sum_over
from imc_kernels.eager.log_dot_product_loss import safe_log
from imc_kernels.eager.mutual_information_loss import entropy

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def log_softmax(x: Tensor) -> Tensor:
    """Over the last dimension. A row with -inf is NaN, not one with an excluded entry."""
    return torch.log_softmax(x + 0 * x.amin(dim=-1, keepdim=True), dim=-1)


def self_distillation_loss(
    students: Tensor,
    teachers: Tensor,
    prior: Tensor | None,
    weights: Tensor | None,
    student_temperature: float,
    teacher_temperature: float,
    beta: float,
    entropy_weight: float,
    agreement: bool,
    group: ProcessGroup | None = None,
) -> Tensor:
    """Logits [H, 2, B, C] of students and teachers -> [H]: minus the mean weighted PMI - entropy_weight H(mean)."""
    batch = samples_over(students, group, dim=2)
    log_s, log_t = log_softmax(students / student_temperature), log_softmax(teachers / teacher_temperature)
    if prior is None:
        prior = sum_over(log_t.exp().sum(dim=(1, 2)), group) / (2 * batch)
    log_prior = safe_log(prior) + 0 * prior.sqrt()  # [H, C]; a negative or infinite one gives NaN
    if agreement:  # of the teachers on a pair, averaged over the heads: the probability of one cluster for both
        weights = log_t.sum(dim=1).exp().sum(dim=-1).mean(dim=0)  # [B]
    # Of each view's student with the other's teacher: log sum_c (q_s(c|x) q_t(c|x'))^beta / q(c).
    pmi = torch.logsumexp(beta * (log_s + log_t.flip(1)) - log_prior[:, None, None], dim=-1)  # [H, 2, B]
    loss = -sum_over((pmi if weights is None else weights * pmi).sum(dim=(1, 2)), group) / (2 * batch)
    mean = sum_over(log_s.exp().sum(dim=2), group) / batch  # [H, 2, C]
    return loss - entropy_weight * entropy(mean, dim=(2,)).mean(dim=1)
