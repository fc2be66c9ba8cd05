"""Cluster heads that are trained beside a method on features, only to tell how sure its answer may be."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from imc.methods.heads import ClusterHeads
from imc_kernels import log_dot_product_loss

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

HEADS = 10
# Those of the presets of crlc on features, whose heads were found to disagree where they are wrong.
SMOOTHING, ENTROPY_WEIGHT, LOGIT_LIMIT = 0.01, 2.0, 25.0


class Jury(nn.Module):
    """Linear heads on constant features, each trained by CRLC's cluster loss as if it stood alone.

    Args:
        features: F.
        clusters: C.
    """

    def __init__(self, features: int, clusters: int) -> None:
        super().__init__()
        self.heads = ClusterHeads(features, 0, clusters, HEADS)

    def forward(self, features: Tensor, views: int, group: ProcessGroup | None) -> Tensor:
        """Their mean loss on two views of features [V*B, F]."""
        pair = features.detach().unflatten(0, (views, -1))[:2]
        logits = self.heads(pair.flatten(0, 1)).unflatten(1, (2, -1))
        return log_dot_product_loss(
            logits, smoothing=SMOOTHING, entropy_weight=ENTROPY_WEIGHT, logit_limit=LOGIT_LIMIT, group=group
        ).mean()

    def winners(self, features: Tensor) -> Tensor:
        """The cluster int64 [H, N] of each row of features [N, F] by each head."""
        return self.heads(features).argmax(dim=2)
