"""IMC-SwAV: Information Maximization Clustering via Multi-View Self-Labelling (arXiv 2103.07368).

One step on the views x_v, of which the first A are large crops:

    z_v = encoder(x_v)                       features
    s_v = cosines of projection(z_v) with the prototypes
    Q_a = sinkhorn(s_a), a < A               constants
    y_v = classifier(z_v), z_v constant      logits

    L = swapped_prediction(s, Q) + mutual_information(y, s), s constant in the second term

so the first term trains encoder, projection and prototypes, the second (with its guard on the logits) the classifier.

On a data set with unlabelled images for the encoder alone (STL-10), the second term runs on a bank of z and s of the
other images, whenever a batch of them has been collected.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from imc.methods.jury import Jury
from imc.methods.memory import Bank, Queue, gather_rows
from imc.methods.method import Method, Plan, Step
from imc.models.batch_norm import PerViewBatchNorm
from imc_kernels import mutual_information_loss, prototype_scores, sinkhorn, swapped_prediction_loss

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

# What the form of a step may have.
FILLS, QUEUED, BANKED = "fills the queue", "takes the queue", "completes the bank"


class Classifier(nn.Module):
    """Linear layers with per-view batch normalisation and ReLU between them: [V*B, F] -> [V*B, C]."""

    def __init__(self, widths: Sequence[int], bn_momentum: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(*pair, dtype=torch.float32) for pair in pairwise(widths))
        self.norms = nn.ModuleList(
            PerViewBatchNorm(width, momentum=bn_momentum, dtype=torch.float32) for width in widths[1:-1]
        )

    def forward(self, features: Tensor, views: int = 1) -> Tensor:
        *hidden, last = self.layers
        for layer, norm in zip(hidden, self.norms, strict=True):
            features = norm(layer(features), views, relu=True)
        return last(features)


class ImcSwav(Method):
    """Encoder, heads and loss of IMC-SwAV.

    Args:
        encoder: ``encoder(images [V*B, C, H, W], views)`` -> [V*B, F], with the attribute ``feature_dim``.
        projection_hidden, embedding_dim: widths of the projection's two linear layers.
        projection_bias: whether they have biases.
        prototypes: number K of prototypes.
        clusters: number C of clusters.
        classifier_widths: widths of the classifier's hidden layers.
        bn_momentum: momentum of the classifier's running statistics.
        sinkhorn_epsilon, sinkhorn_iterations: see :func:`imc_kernels.sinkhorn`.
        temperature: divides the scores in both terms.
        entropy_weight, logit_limit: see :func:`imc_kernels.mutual_information_loss`.
        bank: rows of the clustered split that the clustering term waits for; 0: it takes every batch.
        queue: number N of earlier embeddings of each large crop, over all processes, that join Sinkhorn-Knopp once
            there are so many; a multiple of the number of processes. 0: none.
        queue_start_epoch: epoch from which the queue is filled, counted from 0.
    """

    def __init__(
        self,
        encoder: nn.Module,
        *,
        projection_hidden: int,
        embedding_dim: int,
        projection_bias: bool,
        prototypes: int,
        clusters: int,
        classifier_widths: Sequence[int],
        bn_momentum: float,
        sinkhorn_epsilon: float,
        sinkhorn_iterations: int,
        temperature: float,
        entropy_weight: float,
        logit_limit: float,
        bank: int = 0,
        queue: int = 0,
        queue_start_epoch: int = 15,
    ) -> None:
        super().__init__(
            encoder,
            clusters=clusters,
            num_prototypes=prototypes,
        )
        feature_dim = int(encoder.feature_dim)  # type: ignore[arg-type]
        self.projection = nn.Sequential(
            nn.Linear(feature_dim, projection_hidden, bias=projection_bias, dtype=torch.float32),
            nn.Linear(projection_hidden, embedding_dim, bias=projection_bias, dtype=torch.float32),
        )
        self.prototypes = nn.Linear(embedding_dim, prototypes, bias=False, dtype=torch.float32)
        self.classifier = Classifier([feature_dim, *classifier_widths, clusters], bn_momentum)
        self.sinkhorn_epsilon = sinkhorn_epsilon
        self.sinkhorn_iterations = sinkhorn_iterations
        self.temperature = temperature
        self.entropy_weight = entropy_weight
        self.logit_limit = logit_limit
        self.bank = Bank(bank) if bank else None
        self.queue = Queue(queue) if queue else None
        self.queue_start_epoch = queue_start_epoch
        self.queue_open = False
        if self.calibrated:
            self.jury = Jury(feature_dim, clusters)

    def prepare(self, labelled: Tensor) -> Plan:
        form, slots = set(), None
        if self.queue is not None and self.queue_open:
            form |= {FILLS, QUEUED} if self.queue.full else {FILLS}
            self.queue.expect(len(labelled))
        if self.bank is not None:
            slots, complete = self.bank.plan(labelled)
            form |= {BANKED} if complete else set()
        return Plan(frozenset(form), slots)

    def forward(self, crops: Sequence[Tensor], plan: Plan | None = None) -> Step:
        plan = plan or Plan()
        self.normalize_prototypes()
        views, large = sum(len(size) for size in crops), len(crops[0])
        features = self.encode(crops)

        embeddings = self.projection(features).unflatten(0, (views, -1))
        scores = prototype_scores(embeddings, self.prototypes.weight, normalize_prototypes=False)
        constant = scores.detach()
        assignments = self._assign(embeddings.detach()[:large], constant[:large], plan.form)
        swapped = swapped_prediction_loss(scores, assignments, temperature=self.temperature)
        terms = {"swapped_prediction": swapped.detach()}

        features = features.detach()
        if self.bank is None or plan.slots is None:
            logits = self.classifier(features, views).unflatten(0, (views, -1))
            information = self._information(logits, constant, self.group)
        else:
            features = features.unflatten(0, (views, -1))
            self.bank.put(plan.slots, *(gather_rows(x, self.group) for x in (features, constant)))
            if BANKED not in plan.form:
                return Step(swapped, terms, constant[:large], self._logits_for_the_record(features[:large]))
            batch = self.bank.batch()
            # Every process holds the whole batch of the bank, so its loss and gradient are those of one process.
            logits = self.classifier(batch[0].flatten(0, 1), views).unflatten(0, (views, -1))
            information = self._information(logits, batch[1], None)
        terms["mutual_information"] = information.detach()
        step = Step(swapped + information, terms, constant[:large], logits.detach()[:large])
        return self.with_jury(step, features, views)

    def _assign(self, embeddings: Tensor, scores: Tensor, form: frozenset[str]) -> Tensor:
        """Soft assignments [A, B, K] of the large crops: embeddings [A, B, D], scores [A, B, K], both constants."""
        queued = None
        if self.queue is not None and FILLS in form:
            if QUEUED in form:
                queued = self.queue.part(self.group) @ self.prototypes.weight.detach().T
            self.queue.push(gather_rows(functional.normalize(embeddings, dim=-1), self.group))
        return sinkhorn(
            scores,
            epsilon=self.sinkhorn_epsilon,
            iterations=self.sinkhorn_iterations,
            queue=queued,
            group=self.group,
        )

    def _information(self, logits: Tensor, scores: Tensor, group: ProcessGroup | None) -> Tensor:
        return mutual_information_loss(
            logits,
            scores,
            temperature=self.temperature,
            entropy_weight=self.entropy_weight,
            logit_limit=self.logit_limit,
            group=group,
        )

    @torch.no_grad()
    def _logits_for_the_record(self, features: Tensor) -> Tensor:
        """Logits [A, B, C] of features [A, B, F] that leave the running statistics as they are."""
        mode = self.classifier.training
        self.classifier.eval()
        logits = self.classifier(features.flatten(0, 1)).unflatten(0, features.shape[:2])
        self.classifier.train(mode)
        return logits

    def classify(self, features: Tensor) -> tuple[Tensor, Tensor | None]:
        return self._calibrated(self.classifier(features)), None

    def embed(self, images: Tensor) -> Tensor:
        return functional.normalize(self.projection(self.features(images)), dim=1)

    def classifier_parameters(self) -> list[nn.Parameter]:
        return list(self.classifier.parameters())

    def begin_epoch(self, epoch: int) -> None:
        self.queue_open = epoch >= self.queue_start_epoch
        if self.bank is not None:
            self.bank.clear()

    def training_state(self) -> dict[str, Any]:
        kept = {"bank": self.bank, "queue": self.queue}
        return {"queue_open": self.queue_open, **{name: x.state() for name, x in kept.items() if x is not None}}

    def load_training_state(self, state: dict[str, Any]) -> None:
        device = self.prototypes.weight.device
        self.queue_open = state["queue_open"]
        for name, kept in (("bank", self.bank), ("queue", self.queue)):
            if kept is not None and name in state:
                kept.load(state[name], device)

    @torch.no_grad()
    def normalize_prototypes(self) -> None:
        """Scale each prototype to length 1, in place."""
        self.prototypes.weight.copy_(functional.normalize(self.prototypes.weight, dim=1))

    def freeze_prototypes(self) -> None:
        self.prototypes.weight.grad = None
