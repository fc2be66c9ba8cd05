"""Cluster heads side by side, of which the one with the lowest loss gives the clusters."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from imc.methods.method import Method

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

    Args:
        encoder: see :class:`imc.methods.method.Method`.
        sub_heads: number H of cluster heads.
        clusters: C.
        temperature: divides their logits.
    """

    heads: ClusterHeads
    head_loss_sum: Tensor
    head_loss_steps: Tensor

    def __init__(self, encoder: nn.Module, sub_heads: int, clusters: int, temperature: float = 1.0) -> None:
        super().__init__(encoder, clusters=clusters, temperature=temperature)
        # In the state dict, since a saved model predicts by them.
        self.register_buffer("head_loss_sum", torch.zeros(sub_heads, dtype=torch.float32))
        self.register_buffer("head_loss_steps", torch.zeros((), dtype=torch.int64))

    def note_head_losses(self, losses: Tensor) -> None:
        """Add the losses [H] of a step of training to those of its epoch."""
        if self.training:
            self.head_loss_sum.add_(losses.detach())
            self.head_loss_steps.add_(1)

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
        return self._calibrated(self._of_best_head(by_head)), by_head

    def _others(self, features: Tensor) -> Tensor:
        if self.jury is not None:
            return super()._others(features)
        winners, best = self.heads(features).argmax(dim=2), self.best_head
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
