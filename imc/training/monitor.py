"""What is recorded during an epoch: kept on the device, read now and then."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from imc.errors import RunError
from imc.methods.method import Step
from imc.text import counted
from imc.training.ranks import Ranks

STUCK_LOSS = 0.98  # of ln K
LOW_PROTOTYPE_USE = 0.1
LOW_CLUSTER_USE = 0.5
# Subsets of the digits, two seeds each: with 40 or 120 updates the clusters were worse than k-means on the pixels, with
# 280 and more better; with 300 updates 10 images a cluster were enough, and 5 were not.
FEW_UPDATES = 250
FEW_IMAGES = 10  # a cluster


class EpochMonitor:
    """Loss terms, prototype use and cluster use of one epoch, over all ranks.

    Args:
        prototypes: K, 0 for a method without.
        clusters: C.
        device: that of the training.
        ranks: the processes of the run.
    """

    def __init__(self, prototypes: int, clusters: int, device: torch.device, ranks: Ranks | None = None) -> None:
        self.ranks = Ranks() if ranks is None else ranks
        self.values: dict[str, list[float]] = {}
        self._unread: dict[str, list[tuple[int, Tensor]]] = {}
        self._counts = {
            name: torch.zeros(size, dtype=torch.int64, device=device)
            for name, size in (("prototypes", prototypes), ("clusters", clusters))
        }
        self.counts = {name: torch.zeros(len(x), dtype=torch.int64) for name, x in self._counts.items()}

    def update(self, step: Step, number: int) -> None:
        """Add the step of the update with this number. Does not wait for the device."""
        for name, value in {**step.terms, "loss": step.loss.detach()}.items():
            self._unread.setdefault(name, []).append((number, value.clone()))
        for name, values in (("prototypes", step.scores), ("clusters", step.logits)):
            if values is not None:
                winners = values.argmax(dim=-1).flatten()
                self._counts[name].scatter_add_(0, winners, torch.ones_like(winners))

    def read(self) -> dict[str, float]:
        """Fetch what was added since the last time; the newest value of each term. Every rank must call this.

        Raises:
            RunError: a term is NaN or infinite.
        """
        first: tuple[int, str, float] | None = None
        for name, entries in self._unread.items():
            values = torch.stack([value for _, value in entries]).double().cpu()
            read = self.ranks.average(values).tolist()
            self.values.setdefault(name, []).extend(read)
            for (number, _), value in zip(entries, read, strict=True):
                # Of one update the total comes last, so it is named only if it alone overflowed.
                if not math.isfinite(value) and (first is None or number < first[0]):
                    first = number, name, value
        if first is not None:
            raise RunError(
                f"the loss term {first[1]} became {first[2]} at update {first[0]}; "
                "a lower --lr or a longer --warmup-updates usually helps"
            )
        self._unread.clear()
        for name, counts in self._counts.items():
            self.counts[name] += self.ranks.total(counts.cpu())
            counts.zero_()
        return {name: values[-1] for name, values in self.values.items()}

    def summary(self) -> dict[str, float]:
        """Means of the loss terms and the use of prototypes and clusters (by the large crops) over the epoch.

        ``prototype_use`` and ``cluster_use`` are the fractions that are some sample's arg-max;
        ``prototype_perplexity`` is the exponential of the entropy of the arg-max frequencies (K if all are used alike;
        the Sinkhorn assignments would say K always, by construction).

        Raises:
            RunError: a term is NaN or infinite.
        """
        self.read()
        # Exact sums: the reading's times must not show in a resumed run.
        summary = {name: math.fsum(self.values[name]) / len(self.values[name]) for name in reversed(self.values)}
        prototypes = self.counts["prototypes"]
        if len(prototypes):
            frequencies = prototypes.double() / prototypes.sum()
            summary["prototype_use"] = (frequencies > 0).double().mean().item()
            summary["prototype_perplexity"] = torch.special.entr(frequencies).sum().exp().item()
        summary["cluster_use"] = (self.counts["clusters"] > 0).double().mean().item()
        return summary

    def state(self) -> dict[str, Any]:
        """The epoch so far, the same on every rank; every rank must call this."""
        self.read()
        return {
            "values": {name: torch.tensor(values, dtype=torch.float64) for name, values in self.values.items()},
            "counts": {name: counts.clone() for name, counts in self.counts.items()},
        }

    def load(self, state: dict[str, Any]) -> None:
        """Continue from a state."""
        self.values = {name: values.tolist() for name, values in state["values"].items()}
        self.counts = {name: counts.clone() for name, counts in state["counts"].items()}


def collapse_warnings(summary: dict[str, float], prototypes: int) -> list[str]:
    """One sentence for each sign in an epoch's summary that the representation has collapsed."""
    warnings = []
    if prototypes:
        limit = math.log(prototypes)
        if summary["swapped_prediction"] > STUCK_LOSS * limit:
            warnings.append(
                f"swapped_prediction is {summary['swapped_prediction']:.3f}, stuck at ln K = {limit:.3f}: the encoder "
                "has learned nothing or collapsed; try another --lr or a larger --batch-size"
            )
        if summary["prototype_use"] < LOW_PROTOTYPE_USE:
            warnings.append(
                f"only {summary['prototype_use']:.0%} of the prototypes are in use: the embeddings have collapsed or "
                "--prototypes is too large"
            )
    if summary["cluster_use"] < LOW_CLUSTER_USE:
        warnings.append(f"only {summary['cluster_use']:.0%} of the clusters are in use; try a higher --entropy-weight")
    return warnings


def scarcity_warnings(images: int, clusters: int, epochs: int, steps: int) -> list[str]:
    """One sentence for each thing that a run has too little of for its clusters to mean much.

    Args:
        images: that are trained on.
        clusters: to find in them.
        epochs, steps: passes over the images, and the updates of one.
    """
    warnings = []
    if images < FEW_IMAGES * clusters:
        warnings.append(
            f"{counted(images, 'image{s} {is|are} few')} for {clusters:,} clusters: with fewer than {FEW_IMAGES} for "
            "each the clusters may mean nothing; add images, or try fewer --clusters"
        )
    if epochs * steps < FEW_UPDATES:
        warnings.append(
            f"{counted(epochs * steps, 'update{s} {is|are} few')}: with fewer than {FEW_UPDATES} the network has "
            f"hardly learned; --epochs {math.ceil(FEW_UPDATES / steps)} makes as many"
        )
    return warnings
