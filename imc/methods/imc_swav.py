"""IMC-SwAV: Information Maximization Clustering via Multi-View Self-Labelling (arXiv 2103.07368).

One step on the views x_v, of which the first A are large crops:

    z_v = encoder(x_v)                       features
    s_v = cosines of projection(z_v) with the prototypes
    Q_a = sinkhorn(s_a), a < A               constants
    y_v = classifier(z_v), z_v constant      logits

    L = swapped_prediction(s, Q) + mutual_information(y, s), s constant in the second term

so the first term trains encoder, projection and prototypes, the second (with its guard on the logits) the classifier.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from imc.models.batch_norm import PerViewBatchNorm
from imc_kernels import mutual_information_loss, prototype_scores, sinkhorn, swapped_prediction_loss


class Step(NamedTuple):
    """What one step gives.

    Attributes:
        loss: scalar, carries the gradient.
        terms: the detached scalars that add up to ``loss``.
        scores: detached, [A, B, K]: the prototype scores of the large crops.
        logits: detached, [A, B, C]: the cluster logits of the large crops.
    """

    loss: Tensor
    terms: dict[str, Tensor]
    scores: Tensor
    logits: Tensor


class Classifier(nn.Module):
    """Linear layers with per-view batch normalisation and ReLU between them: [V*B, F] -> [V*B, C]."""

    def __init__(self, widths: Sequence[int], bn_momentum: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(widths))
        self.norms = nn.ModuleList(PerViewBatchNorm(width, momentum=bn_momentum) for width in widths[1:-1])

    def forward(self, features: Tensor, views: int = 1) -> Tensor:
        *hidden, last = self.layers
        for layer, norm in zip(hidden, self.norms, strict=True):
            features = functional.relu(norm(layer(features), views), inplace=True)
        return last(features)


class ImcSwav(nn.Module):
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
    ) -> None:
        super().__init__()
        feature_dim = int(encoder.feature_dim)  # type: ignore[arg-type]
        self.encoder = encoder
        self.projection = nn.Sequential(
            nn.Linear(feature_dim, projection_hidden, bias=projection_bias),
            nn.Linear(projection_hidden, embedding_dim, bias=projection_bias),
        )
        self.prototypes = nn.Linear(embedding_dim, prototypes, bias=False)
        self.classifier = Classifier([feature_dim, *classifier_widths, clusters], bn_momentum)
        self.sinkhorn_epsilon = sinkhorn_epsilon
        self.sinkhorn_iterations = sinkhorn_iterations
        self.temperature = temperature
        self.entropy_weight = entropy_weight
        self.logit_limit = logit_limit

    def forward(self, crops: Sequence[Tensor]) -> Step:
        """The loss of one step.

        Args:
            crops: for each crop size [V_size, B, C, s, s]; those of the first are the large crops.
        """
        self.normalize_prototypes()
        views, large = sum(len(size) for size in crops), len(crops[0])
        features = torch.cat([self.encoder(size.flatten(0, 1), len(size)) for size in crops])

        embeddings = self.projection(features).unflatten(0, (views, -1))
        scores = prototype_scores(embeddings, self.prototypes.weight, normalize_prototypes=False)
        constant = scores.detach()
        assignments = sinkhorn(constant[:large], epsilon=self.sinkhorn_epsilon, iterations=self.sinkhorn_iterations)
        swapped = swapped_prediction_loss(scores, assignments, temperature=self.temperature)

        logits = self.classifier(features.detach(), views).unflatten(0, (views, -1))
        information = mutual_information_loss(
            logits,
            constant,
            temperature=self.temperature,
            entropy_weight=self.entropy_weight,
            logit_limit=self.logit_limit,
        )
        terms = {"swapped_prediction": swapped.detach(), "mutual_information": information.detach()}
        return Step(swapped + information, terms, constant[:large], logits.detach()[:large])

    def predict(self, images: Tensor) -> Tensor:
        """Cluster logits [B, C] of images [B, channels, s, s]."""
        return self.classifier(self.encoder(images))

    def embed(self, images: Tensor) -> Tensor:
        """The point [B, D] of each image that the representation loss sees, of length 1."""
        return functional.normalize(self.projection(self.encoder(images)), dim=1)

    @torch.no_grad()
    def normalize_prototypes(self) -> None:
        """Scale each prototype to length 1, in place."""
        self.prototypes.weight.copy_(functional.normalize(self.prototypes.weight, dim=1))

    def drop_prototype_gradient(self) -> None:
        """Keep the next optimiser step from changing the prototypes, as the warm-up does."""
        self.prototypes.weight.grad = None
