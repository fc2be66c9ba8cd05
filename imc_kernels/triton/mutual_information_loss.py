"""Mutual information over all V x V view pairs, by the closed form of docs/mathematics.md. With P [B, V C] and U
[B, V K] the softmaxes of all views side by side, every joint distribution is a block of J = P^T U / B, and with m the
mean of U

    H(Y|U) = -sum J log(J / m),   loss = mean_ji H(Y_j|U_i) - b mean_j H(Y_j)  (+ guard).

Launches: the log-sums of the rows of scores, and P; J and its entropies, tile by tile; the entropies of the mean of P;
their sum. Backward through the softmaxes: dL/dP = U G^T + b log(mean P) / V B as a product for each view of U, added up
in a fixed order; dL/dU = P G, G = -log(J / m) / V^2 B. U is never stored: a product takes it from the scores and their
log-sums. Products are exact in float32. Moved: the scores once for the log-sums and once for each product (for dL/dU
twice), P for every tile of J, and G, written once and read once for each product.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from imc_kernels.ops.precision import gradient_buffers, loss_buffer
from imc_kernels.triton.launch import block_of, launch, warps_for, workspace
from imc_kernels.triton.mutual_information_kernels import (
    entropies_kernel,
    joint_kernel,
    logits_gradient_kernel,
    marginals_kernel,
    predictions_gradient_kernel,
    rows_kernel,
    scores_gradient_kernel,
    symmetric_kernel,
)
from imc_kernels.triton.primitives import total_kernel

GUARD_WEIGHT = 0.01
CLUSTERS = 64  # of a tile of J, over all views
PROTOTYPES = 64  # of a tile of J, of one view
SAMPLES = 32  # of a step of a product
MOST_COLUMNS = 4096
# Exact products use no tensor cores: with loads in flight ahead of them they take all registers, and some spill.
PRODUCT = {"num_warps": 8, "num_stages": 1}


def mutual_information_loss(
    inputs: Sequence[Tensor], options: Sequence[Any], needs: tuple[bool, ...]
) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    temperature, entropy_weight, limit, symmetric = options
    sweep = Sweep(inputs[0], inputs[1], temperature, limit, symmetric)
    sweep.rows(GUARD_WEIGHT / sweep.count)
    sweep.launch_joint(sweep.joint, None if symmetric else sweep.entropies, summed=False)
    loss = sweep.finish(entropy_weight)
    return loss, sweep.gradients(needs)


class Sweep:
    """Launches over logits [V, B, C] and scores [V, B, K], and what they leave for each other. Of a batch over
    processes, ``cluster_sums`` [V C] and ``samples`` [] are those of all of them, None where there is one."""

    def __init__(self, logits: Tensor, scores: Tensor, temperature: float, limit: float, symmetric: bool) -> None:
        self.logits, self.given_scores = logits.contiguous(), scores
        # Products that read half precision do not compile for sm_100 (Triton 3.7.1: "parent layout must have at least
        # rank >= 2"), or spill: one pass more.
        self.scores = scores.contiguous().float()
        self.inverse_temperature, self.limit, self.symmetric = 1 / temperature, limit, symmetric
        (self.views, self.batch, clusters), k = logits.shape, scores.shape[-1]
        self.count, self.all_clusters = self.views * self.batch, self.views * clusters
        self.sizes = {"views": self.views, "clusters": clusters}
        cluster_block, prototype_block = block_of(self.all_clusters, CLUSTERS, 16), block_of(k, PROTOTYPES, 16)
        self.tile = {"k": k, "cluster_block": cluster_block, "prototype_block": prototype_block}
        self.cluster_blocks = -(-self.all_clusters // cluster_block)
        self.tiles = self.cluster_blocks * self.views * -(-k // prototype_block)
        block = block_of(k, MOST_COLUMNS)
        row_block = min(16, MOST_COLUMNS // block)
        self.row_programs = -(-self.count // row_block)
        self.row_constants = {"row_block": row_block, "block": block, "num_warps": warps_for(row_block * block, 16)}
        terms = (self.views**2 if symmetric else self.tiles, 0 if symmetric else self.cluster_blocks, self.row_programs)
        self.cells = self.all_clusters * self.views * k
        self.partial_sums, self.predictions, self.log_sums, self.log_means, self.joint, symmetrical = workspace(
            logits,
            sum(terms),
            self.count * clusters,
            2 * self.count,
            self.all_clusters,
            self.cells,
            self.cells if symmetric else 0,
        )
        self.partial_sums = self.partial_sums[: sum(terms)]
        self.entropies, self.marginals, self.guards = self.partial_sums.split(terms)
        self.symmetrical = symmetrical
        self.cluster_sums: Tensor | None = None
        self.samples: Tensor | None = None

    @property
    def logarithms(self) -> Tensor:
        """log(J / m), or what stands for it in the symmetric form."""
        return self.symmetrical if self.symmetric else self.joint

    def rows(self, guard_weight: float) -> None:
        launch(
            rows_kernel,
            (self.row_programs,),
            *(self.logits, self.scores, self.predictions, self.log_sums, self.guards, self.count),
            *(self.inverse_temperature, self.limit, guard_weight),
            clusters=self.sizes["clusters"],
            k=self.tile["k"],
            cluster_block=block_of(self.sizes["clusters"], 256),
            **self.row_constants,
        )

    def launch_joint(self, joint: Tensor, entropies: Tensor | None, *, summed: bool) -> None:
        launch(
            joint_kernel,
            (self.tiles,),
            *(self.predictions, self.scores, self.log_sums, joint, entropies, self.batch, self.inverse_temperature),
            **self.sizes,
            **self.tile,
            summed=summed,
            sample_block=SAMPLES,
            **PRODUCT,
        )

    def finish(self, entropy_weight: float) -> Tensor:
        """The loss, from the joint distributions and, in the form that is not symmetric, their entropies."""
        if self.symmetric:
            launch(
                symmetric_kernel,
                (self.views**2,),
                *(self.joint, self.logarithms, self.entropies, entropy_weight),
                **self.sizes,
                cluster_block=block_of(self.sizes["clusters"], self.sizes["clusters"] * 2, 16),
                step=16,
            )
        else:
            launch(
                marginals_kernel,
                (self.cluster_blocks,),
                *(self.predictions, self.cluster_sums, self.log_means, self.marginals, self.samples),
                *(self.batch, entropy_weight),
                **self.sizes,
                cluster_block=self.tile["cluster_block"],
                sample_block=64,
            )
        loss = loss_buffer(self.logits)
        launch(total_kernel, (1,), self.partial_sums, loss, len(self.partial_sums), block=1024)
        return loss

    def gradients(self, needs: Sequence[bool]) -> tuple[Tensor | None, ...]:
        of_logits, of_scores = gradients = gradient_buffers((self.logits, self.given_scores), needs)
        blocks = -(-self.batch // SAMPLES) * self.views
        if of_logits is not None:
            (partials,) = workspace(self.logits, self.count * self.all_clusters)
            launch(
                predictions_gradient_kernel,
                (blocks * self.cluster_blocks,),
                *(self.scores, self.log_sums, self.logarithms, partials, self.batch, self.inverse_temperature),
                **self.sizes,
                **self.tile,
                sample_block=SAMPLES,
                **PRODUCT,
            )
            clusters = self.sizes["clusters"]
            samples = block_of(1024 // block_of(clusters, 1024), 64)
            launch(
                logits_gradient_kernel,
                (self.views * -(-self.batch // samples),),
                *(self.logits, self.predictions, partials, None if self.symmetric else self.log_means, of_logits),
                *(self.samples, self.batch, self.limit),
                *(-1 / (self.views * self.count), 1 / self.count, GUARD_WEIGHT / self.count),
                **self.sizes,
                cluster_block=block_of(clusters, 2 * clusters),
                sample_block=samples,
            )
        if of_scores is not None:
            launch(
                scores_gradient_kernel,
                (blocks,),
                *(self.predictions, self.scores, self.log_sums, self.logarithms, of_scores, self.samples, self.batch),
                *(self.inverse_temperature, -self.inverse_temperature / (self.views * self.count)),
                **self.sizes,
                **self.tile,
                sample_block=SAMPLES,
                **PRODUCT,
            )
        return gradients


def group_sums(
    logits: Tensor, scores: Tensor, temperature: float, limit: float, symmetric: bool
) -> tuple[Tensor, tuple[Sweep, Tensor]]:
    """These two: the phases of imc_kernels/ops/distributed/mutual_information_loss.py."""
    sweep = Sweep(logits, scores, temperature, limit, symmetric)
    added = sweep.joint.new_empty(sweep.cells + sweep.all_clusters + 2)
    sweep.joint, sweep.cluster_sums = added[: sweep.cells], added[sweep.cells : -2]
    sweep.rows(1.0)
    sweep.launch_joint(sweep.joint, None, summed=True)
    predictions = sweep.predictions[: logits.numel()].view(logits.shape)
    torch.sum(predictions, dim=1, out=sweep.cluster_sums.view(sweep.views, -1))
    torch.sum(sweep.guards, dim=0, out=added[-2])
    added[-1:].fill_(sweep.batch)
    return added, (sweep, added)


def group_finish(
    logits: Tensor,
    scores: Tensor,
    kept: tuple[Sweep, Tensor],
    temperature: float,
    entropy_weight: float,
    limit: float,
    symmetric: bool,
    needs: Sequence[bool],
) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    sweep, added = kept
    excess, sweep.samples = added[-2:].unbind()
    sweep.guards.zero_()
    torch.div(excess, sweep.samples * (sweep.views / GUARD_WEIGHT), out=sweep.guards[0])
    if symmetric:
        sweep.joint /= sweep.samples
    else:
        # The clusters of any view add up to the prototypes' own sums.
        means = sweep.joint.view(sweep.views, logits.shape[-1], -1)[0].sum(dim=0)
        given = (sweep.joint, means, sweep.entropies, sweep.samples)
        launch(entropies_kernel, (sweep.tiles,), *given, **sweep.sizes, **sweep.tile)
    return sweep.finish(entropy_weight), sweep.gradients(needs)
