"""Cluster heads side by side, of which the one with the lowest loss gives the clusters."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from imc.methods.merging import merged_clusters
from imc.methods.method import Method
from imc.models.standardise import Standardise, standardise_of

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


class HeadsMethod(Method):
    """A method with several cluster heads. Subclasses have the heads as ``heads``, and note their losses.

    Attributes:
        is_chosen: whether the head that answers is known from before: where an encoder is trained further, the heads
            were trained on what it saw before that, and the losses of small batches of crops tell them apart less well.

    Args:
        encoder: see :class:`imc.methods.method.Method`.
        sub_heads: number H of cluster heads.
        clusters: C.
        temperature: divides their logits.
        head_clusters: number K of clusters of each head, at least C; of more, those are merged for the answer whose
            samples have neighbours alike (:mod:`imc.methods.merging`). None: C.
    """

    heads: ClusterHeads
    head_loss_sum: Tensor
    head_loss_steps: Tensor

    pair_sum: Tensor
    merged: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        sub_heads: int,
        clusters: int,
        temperature: float = 1.0,
        head_clusters: int | None = None,
    ) -> None:
        head_clusters = head_clusters or clusters
        merges = head_clusters > clusters
        super().__init__(encoder, clusters=clusters, temperature=1.0 if merges else temperature)
        self.merges, self.head_temperature = merges, temperature
        self.is_chosen = standardise_of(encoder) is not None and not isinstance(encoder, Standardise)
        if merges:
            self.register_buffer("pair_sum", torch.zeros(sub_heads, head_clusters, head_clusters, dtype=torch.float32))
            first = torch.arange(head_clusters) % clusters
            self.register_buffer("merged", first.expand(sub_heads, head_clusters).clone())
        # In the state dict, since a saved model predicts by them.
        self.register_buffer("head_loss_sum", torch.zeros(sub_heads, dtype=torch.float32))
        self.register_buffer("head_loss_steps", torch.zeros((), dtype=torch.int64))

    def note_head_losses(self, losses: Tensor) -> None:
        """Add the losses [H] of a step of training to those of its epoch."""
        if self.training and not self.is_chosen:
            self.head_loss_sum.add_(losses.detach())
            self.head_loss_steps.add_(1)

    def note_pairs(self, logits: Tensor) -> None:
        """Add up, over an epoch, which clusters of a head meet in the two views of logits [H, 2, B, K]."""
        if self.training and self.merges:
            p = (logits.detach() / self.head_temperature).softmax(dim=-1)
            self.pair_sum.add_(p[:, 0].transpose(1, 2) @ p[:, 1])

    def merge(self) -> None:
        """Merge each head's clusters by the pairs of the epoch so far."""
        if self.merges:
            found = [merged_clusters(pairs, self.clusters) for pairs in self.pair_sum.cpu().numpy()]
            self.merged.copy_(torch.from_numpy(np.stack(found)))

    def _asked_for(self, logits: Tensor) -> Tensor:
        """The logits [H, ..., K] of the heads' clusters as those [H, ..., C] of the clusters that were asked for."""
        if not self.merges:
            return logits
        share = functional.one_hot(self.merged, self.clusters).to(logits.dtype)  # [H, K, C]
        p = (logits / self.head_temperature).softmax(dim=-1)
        whole = p.flatten(1, -2) @ share
        return whole.unflatten(1, logits.shape[1:-1]).clamp_min(torch.finfo(logits.dtype).tiny).log()

    def begin_epoch(self, epoch: int) -> None:
        if self.merges:
            self.pair_sum.zero_()
        if not self.is_chosen:
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
        by_head = self._asked_for(self.heads(features))
        return self._calibrated(self._of_best_head(by_head)), by_head

    def _others(self, features: Tensor) -> Tensor:
        if self.jury is not None:
            return super()._others(features)
        winners, best = self._asked_for(self.heads(features)).argmax(dim=2), self.best_head
        return torch.cat([winners[:best], winners[best + 1 :]])

    def _of_best_head(self, logits: Tensor) -> Tensor:
        # Selected on the device, for which an index on the host would have to wait.
        return logits.index_select(0, self.head_loss_sum.argmin().view(1)).squeeze(0)

    def classifier_parameters(self) -> list[nn.Parameter]:
        return list(self.heads.parameters())


def he_uniform(layer: nn.Linear) -> nn.Linear:
    """Draw a layer's weights by Kaiming's uniform rule with gain sqrt 2, in place; its bias becomes 0."""
    nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
    nn.init.zeros_(layer.bias)
    return layer
