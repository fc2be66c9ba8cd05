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

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from imc.errors import UserError
from imc.methods.heads import ClusterHeads, HeadsMethod, he_uniform
from imc.methods.jury import Jury
from imc.methods.method import Plan, Step
from imc.models.standardise import Standardise, standardise_of
from imc_kernels import info_nce_loss, log_dot_product_loss


class Crlc(HeadsMethod):
    """Encoder, heads and loss of CRLC.

    Args:
        encoder: ``encoder(images [V*B, C, H, W], views)`` -> [V*B, F], with the attribute ``feature_dim``.
        projection_hidden, embedding_dim: widths of the projection's two layers; there is none on features that are
            given, which no contrast would change.
        clusters: number C of clusters.
        sub_heads: number H of cluster heads.
        head_hidden: width of each cluster head's hidden layer.
        head_clusters: see :class:`imc.methods.heads.HeadsMethod`.
        temperature: divides the cosines of the embeddings.
        contrast_weight: of the embeddings' loss against the mean over the heads of theirs.
        smoothing, entropy_weight, logit_limit: see :func:`imc_kernels.log_dot_product_loss`.
    """

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
        head_clusters: int | None = None,
    ) -> None:
        super().__init__(encoder, sub_heads, clusters, head_clusters=head_clusters)
        feature_dim = int(encoder.feature_dim)  # type: ignore[arg-type]
        self.projection: nn.Module | None = None
        # Nor where an encoder is trained further, unless a contrast is asked for.
        is_kept, goes_on = isinstance(encoder, Standardise), standardise_of(encoder) is not None
        if not (is_kept or (goes_on and not contrast_weight)):
            self.projection = nn.Sequential(
                he_uniform(nn.Linear(feature_dim, projection_hidden, dtype=torch.float32)),
                nn.ReLU(inplace=True),
                he_uniform(nn.Linear(projection_hidden, embedding_dim, dtype=torch.float32)),
            )
        self.heads = ClusterHeads(feature_dim, head_hidden, head_clusters or clusters, sub_heads)
        if self.calibrated and sub_heads == 1:
            self.jury = Jury(feature_dim, clusters)
        self.temperature = temperature
        self.contrast_weight = contrast_weight
        self.smoothing = smoothing
        self.entropy_weight = entropy_weight
        self.logit_limit = logit_limit

    def forward(self, crops: Sequence[Tensor], plan: Plan | None = None) -> Step:
        """The loss of one step.

        Args:
            crops: one tensor [2, B, C, s, s].
            plan: not used.

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
        self.note_head_losses(head_losses)
        self.note_pairs(logits)
        terms, loss = {"cluster_contrast": clustering.detach()}, clustering
        if self.projection is not None:
            embeddings = self.projection(features).unflatten(0, (2, -1))
            contrast = self.contrast_weight * info_nce_loss(
                embeddings, temperature=self.temperature, normalise=True, group=self.group
            )
            terms, loss = {"instance_contrast": contrast.detach(), **terms}, contrast + clustering
        answer = self._of_best_head(self._asked_for(logits.detach()))
        return self.with_jury(Step(loss, terms, None, answer), features, 2)

    def embed(self, images: Tensor) -> Tensor:
        features = self.features(images)
        return functional.normalize(features if self.projection is None else self.projection(features), dim=1)
