"""TEMI: clustering by self-distillation on pairs of neighbours (arXiv 2303.17896).

One step on two views x_v of which the second is a neighbour of the first, with H cluster heads:

    h_v = encoder(x_v)                       features, constants
    l_mv = head_m(h_v)                       students
    t_mv = teacher_m(h_v)                    a moving average of head_m, constants
    q_m  = moving average of mean_vb softmax(t_mv / 0.1)

    L = mean_m self_distillation(l_m, t_m, prior q_m)

The head with the lowest loss over the last epoch gives the clusters.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from imc.errors import UserError
from imc.methods.heads import ClusterHeads, HeadsMethod
from imc.methods.jury import Jury
from imc.methods.method import Plan, Step
from imc_kernels import self_distillation_loss

PRIOR_RATE = 0.1  # of the prior's moving average; the authors' code


class Temi(HeadsMethod):
    """Encoder, heads, their teachers and loss of TEMI.

    Args:
        encoder: ``encoder(rows [V*B, D], views)`` -> [V*B, F], with the attribute ``feature_dim``.
        clusters: number C of clusters.
        sub_heads: number H of cluster heads.
        head_hidden: width of each cluster head's hidden layer; 0: there is none.
        head_clusters: see :class:`imc.methods.heads.HeadsMethod`.
        beta, temperature: see :func:`imc_kernels.self_distillation_loss`; one temperature for both sides.
        teacher_momentum: share of the teachers that is left after a step.
    """

    prior: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        *,
        clusters: int,
        sub_heads: int,
        head_hidden: int,
        beta: float,
        temperature: float,
        teacher_momentum: float,
        head_clusters: int | None = None,
    ) -> None:
        head_clusters = head_clusters or clusters
        super().__init__(encoder, sub_heads, clusters, temperature, head_clusters)
        self.heads = ClusterHeads(int(encoder.feature_dim), head_hidden, head_clusters, sub_heads)  # type: ignore[arg-type]
        self.teachers = copy.deepcopy(self.heads).requires_grad_(False)
        self.beta = beta
        self.temperature = temperature
        self.teacher_momentum = teacher_momentum
        self.register_buffer("prior", torch.full((sub_heads, head_clusters), 1 / head_clusters, dtype=torch.float32))
        if self.calibrated:  # the weights of the pairs tie the heads, which agree where they are wrong too
            self.jury = Jury(int(encoder.feature_dim), clusters)  # type: ignore[arg-type]

    def forward(self, crops: Sequence[Tensor], plan: Plan | None = None) -> Step:
        """The loss of one step.

        Args:
            crops: one tensor [2, B, D].
            plan: not used.

        Raises:
            UserError: other than two views, or the batch is spread over processes.
        """
        if len(crops) != 1 or len(crops[0]) != 2:
            raise UserError("temi compares two views: --large-crops must be 2 and --small-crops 0")
        if self.group is not None:
            raise UserError("--method temi runs in one process: its loss has no form over several")
        features = self.encode(crops)
        students = self.heads(features).unflatten(1, (2, -1))
        with torch.no_grad():
            if self.training:
                self._follow()
            teachers = self.teachers(features).unflatten(1, (2, -1))
            if self.training:
                self.prior.lerp_((teachers / self.temperature).softmax(dim=-1).mean(dim=(1, 2)), PRIOR_RATE)
        head_losses = self_distillation_loss(
            students,
            teachers,
            beta=self.beta,
            prior=self.prior.clone(),
            student_temperature=self.temperature,
            teacher_temperature=self.temperature,
        )
        self.note_head_losses(head_losses)
        self.note_pairs(students)
        loss = head_losses.mean()
        logits = self._asked_for(students.detach()) / self.temperature
        step = Step(loss, {"self_distillation": loss.detach()}, None, self._of_best_head(logits))
        return self.with_jury(step, features, 2)

    def _follow(self) -> None:
        """Move the teachers towards the heads, as the last step left them."""
        for teacher, student in zip(self.teachers.parameters(), self.heads.parameters(), strict=True):
            teacher.lerp_(student, 1 - self.teacher_momentum)

    def embed(self, images: Tensor) -> Tensor:
        return functional.normalize(self.features(images), dim=1)
