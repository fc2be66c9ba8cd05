"""CRLC: Clustering by Maximizing Mutual Information Across Views (arXiv 2107.11635).

One step on two views x_v, with H cluster heads:

    h_v = encoder(x_v)                       features
    z_v = projection(h_v) of length 1        embeddings
    l_mv = head_m(h_v), p = softmax(l)       cluster probabilities

    L = 10 info_nce(z) + mean_m [log_dot_product(p_m) - 2 entropy(mean_b p_m)]

and the guard on the logits of each head. No term is detached: the embeddings' and the clusters' both train the encoder.
The heads differ by their initialisation alone. The one with the lowest loss over the last epoch gives the clusters,
which needs no labels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from imc.errors import UserError
from imc.methods.method import LabelledRows, Method, Step
from imc.models.standardise import Standardise
from imc_kernels import info_nce_loss, log_dot_product_loss

SMALL = 0.3  # bound of the first weights times the root of their number, where a head is one layer


class ClusterHeads(nn.Module):
    """H perceptrons of one or two layers on the same features, a matrix product per layer: [N, F] -> [H, N, C].

    All weights are drawn by Kaiming's uniform rule with gain sqrt 2, each head's as if it stood alone; biases are 0.

    Args:
        features: F.
        hidden: width of each head's hidden layer; 0: there is none.
        clusters: C.
        heads: H.
    """

    def __init__(self, features: int, hidden: int, clusters: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.hidden = he_uniform(nn.Linear(features, heads * hidden, dtype=torch.float32)) if hidden else None
        # A layer alone starts near equal probabilities: from larger weights more heads end in poor optima.
        inputs, bound = (hidden, math.sqrt(6 / hidden)) if hidden else (features, SMALL / math.sqrt(features))
        self.weight = nn.Parameter(torch.empty(heads, inputs, clusters, dtype=torch.float32).uniform_(-bound, bound))
        # One dimension: weight decay tells biases by that.
        self.bias = nn.Parameter(torch.zeros(heads * clusters, dtype=torch.float32))

    def forward(self, features: Tensor) -> Tensor:
        if self.hidden is None:
            weight = self.weight.transpose(0, 1).flatten(1)
            return torch.addmm(self.bias, features, weight).unflatten(1, (self.heads, -1)).transpose(0, 1)
        hidden = functional.relu(self.hidden(features), inplace=True)
        hidden = hidden.unflatten(1, (self.heads, -1)).transpose(0, 1)
        return torch.baddbmm(self.bias.view(self.heads, 1, -1), hidden, self.weight)


class Crlc(Method):
    """Encoder, heads and loss of CRLC.

    Args:
        encoder: ``encoder(images [V*B, C, H, W], views)`` -> [V*B, F], with the attribute ``feature_dim``.
        projection_hidden, embedding_dim: widths of the projection's two layers; there is none on features that are
            given, which no contrast would change.
        clusters: number C of clusters.
        sub_heads: number H of cluster heads.
        head_hidden: width of each cluster head's hidden layer.
        temperature: divides the cosines of the embeddings.
        contrast_weight: of the embeddings' loss against the mean over the heads of theirs.
        smoothing, entropy_weight, logit_limit: see :func:`imc_kernels.log_dot_product_loss`.
    """

    head_loss_sum: Tensor
    head_loss_steps: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        *,
        projection_hidden: int,
        embedding_dim: int,
        clusters: int,
        sub_heads: int,
        head_hidden: int,
        temperature: float,
        contrast_weight: float,
        smoothing: float,
        entropy_weight: float,
        logit_limit: float,
    ) -> None:
        super().__init__(encoder)
        feature_dim = int(encoder.feature_dim)  # type: ignore[arg-type]
        self.projection: nn.Module | None = None
        if not isinstance(encoder, Standardise):
            self.projection = nn.Sequential(
                he_uniform(nn.Linear(feature_dim, projection_hidden, dtype=torch.float32)),
                nn.ReLU(inplace=True),
                he_uniform(nn.Linear(projection_hidden, embedding_dim, dtype=torch.float32)),
            )
        self.heads = ClusterHeads(feature_dim, head_hidden, clusters, sub_heads)
        self.temperature = temperature
        self.contrast_weight = contrast_weight
        self.smoothing = smoothing
        self.entropy_weight = entropy_weight
        self.logit_limit = logit_limit
        # In the state dict, since a saved model predicts by them.
        self.register_buffer("head_loss_sum", torch.zeros(sub_heads, dtype=torch.float32))
        self.register_buffer("head_loss_steps", torch.zeros((), dtype=torch.int64))

    def forward(self, crops: Sequence[Tensor], labelled: LabelledRows | None = None) -> Step:
        """The loss of one step.

        Args:
            crops: one tensor [2, B, C, s, s].
            labelled: not used.

        Raises:
            UserError: other than two crops of one size.
        """
        if len(crops) != 1 or len(crops[0]) != 2:
            raise UserError("crlc contrasts two views: --large-crops must be 2 and --small-crops 0")
        features = self.encode(crops)
        logits = self.heads(features).unflatten(1, (2, -1))
        head_losses = log_dot_product_loss(
            logits,
            smoothing=self.smoothing,
            entropy_weight=self.entropy_weight,
            logit_limit=self.logit_limit,
            group=self.group,
        )
        clustering = head_losses.mean()
        if self.training:
            self.head_loss_sum.add_(head_losses.detach())
            self.head_loss_steps.add_(1)
        terms, loss = {"cluster_contrast": clustering.detach()}, clustering
        if self.projection is not None:
            embeddings = self.projection(features).unflatten(0, (2, -1))
            contrast = self.contrast_weight * info_nce_loss(
                embeddings, temperature=self.temperature, normalise=True, group=self.group
            )
            terms, loss = {"instance_contrast": contrast.detach(), **terms}, contrast + clustering
        return Step(loss, terms, None, self._of_best_head(logits.detach()))

    def begin_epoch(self, epoch: int) -> None:
        self.head_loss_sum.zero_()
        self.head_loss_steps.zero_()

    @property
    def head_losses(self) -> Tensor:
        """Each head's loss [H], averaged over the epoch so far; 0 before its first step."""
        return self.head_loss_sum / self.head_loss_steps.clamp_min(1)

    @property
    def best_head(self) -> int:
        """The head that :meth:`predict` uses: the one with the lowest of :attr:`head_losses`."""
        return int(self.head_loss_sum.argmin())

    def classify(self, features: Tensor) -> tuple[Tensor, Tensor | None]:
        by_head = self.heads(features)
        return self._of_best_head(by_head), by_head

    def _of_best_head(self, logits: Tensor) -> Tensor:
        # Selected on the device, for which an index on the host would have to wait.
        return logits.index_select(0, self.head_loss_sum.argmin().view(1)).squeeze(0)

    def embed(self, images: Tensor) -> Tensor:
        features = self.features(images)
        return functional.normalize(features if self.projection is None else self.projection(features), dim=1)

    def classifier_parameters(self) -> list[nn.Parameter]:
        return list(self.heads.parameters())


def he_uniform(layer: nn.Linear) -> nn.Linear:
    """Draw a layer's weights by Kaiming's uniform rule with gain sqrt 2, in place; its bias becomes 0."""
    nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
    nn.init.zeros_(layer.bias)
    return layer
