"""What is recorded during an epoch, kept on the device and read once at its end."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from imc.errors import RunError
from imc.methods.imc_swav import Step

STUCK_LOSS = 0.98  # of ln K
LOW_PROTOTYPE_USE = 0.1


class EpochMonitor:
    """Loss terms, prototype use and cluster use of one epoch.

    Args:
        prototypes: K.
        clusters: C.
        device: that of the training.
    """

    def __init__(self, prototypes: int, clusters: int, device: torch.device) -> None:
        self.names: list[str] = []
        self.terms: list[Tensor] = []
        self.prototype_counts = torch.zeros(prototypes, dtype=torch.int64, device=device)
        self.cluster_counts = torch.zeros(clusters, dtype=torch.int64, device=device)

    def update(self, step: Step) -> None:
        """Add one step. Does not wait for the device."""
        self.names = ["loss", *step.terms]
        self.terms.append(torch.stack([step.loss.detach(), *step.terms.values()]))
        for counts, values in ((self.prototype_counts, step.scores), (self.cluster_counts, step.logits)):
            winners = values.argmax(dim=-1).flatten()
            counts.scatter_add_(0, winners, torch.ones_like(winners))

    def summary(self, first_update: int) -> dict[str, float]:
        """Means of the loss terms and the use of prototypes and clusters (by the large crops) over the epoch.

        ``prototype_use`` and ``cluster_use`` are the fractions that are some sample's arg-max;
        ``prototype_perplexity`` is the exponential of the entropy of the arg-max frequencies (K if all are used alike;
        the Sinkhorn assignments would say K always, by construction).

        Args:
            first_update: number of the epoch's first update, for the message.

        Raises:
            RunError: a term is NaN or infinite.
        """
        terms = torch.stack(self.terms).double().cpu()
        self._require_finite(terms, first_update)
        summary = dict(zip(self.names, terms.mean(dim=0).tolist(), strict=True))
        frequencies = self.prototype_counts.double().cpu() / self.prototype_counts.sum().cpu()
        summary["prototype_use"] = (frequencies > 0).double().mean().item()
        summary["prototype_perplexity"] = torch.special.entr(frequencies).sum().exp().item()
        summary["cluster_use"] = (self.cluster_counts > 0).double().mean().item()
        return summary

    def _require_finite(self, terms: Tensor, first_update: int) -> None:
        bad = ~terms.isfinite()
        if not bad.any():
            return
        row = int(bad.any(dim=1).nonzero()[0])
        # Column 0 is the total, which follows its terms: named only if it alone overflowed.
        column = next((position for position in range(1, len(self.names)) if bad[row, position]), 0)
        raise RunError(
            f"the loss term {self.names[column]} became {terms[row, column].item()} at update {first_update + row}; "
            "a lower --lr or a longer --warmup-updates usually helps"
        )


def collapse_warnings(summary: dict[str, float], prototypes: int) -> list[str]:
    """One sentence for each sign in an epoch's summary that the representation has collapsed."""
    warnings = []
    limit = math.log(prototypes)
    if summary["swapped_prediction"] > STUCK_LOSS * limit:
        warnings.append(
            f"swapped_prediction is {summary['swapped_prediction']:.3f}, stuck at ln K = {limit:.3f}: the encoder has "
            "learned nothing or collapsed; try another --lr or a larger --batch-size"
        )
    if summary["prototype_use"] < LOW_PROTOTYPE_USE:
        warnings.append(
            f"only {summary['prototype_use']:.0%} of the prototypes are in use: the embeddings have collapsed or "
            "--prototypes is too large"
        )
    return warnings
