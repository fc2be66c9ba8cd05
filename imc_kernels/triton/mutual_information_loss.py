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

from torch import Tensor

from imc_kernels.ops.precision import gradient_buffer, loss_buffer
from imc_kernels.triton.launch import block_of, launch, warps_for, workspace
from imc_kernels.triton.mutual_information_kernels import (
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
    logits, scores = (tensor.contiguous() for tensor in inputs)
    temperature, entropy_weight, limit, symmetric = options
    (views, batch, clusters), k = logits.shape, scores.shape[-1]
    rows, all_clusters, inverse_temperature = views * batch, views * clusters, 1 / temperature
    loss = loss_buffer(logits)
    gradients = tuple(gradient_buffer(x) if needed else None for x, needed in zip((logits, scores), needs, strict=True))

    # Products that read half precision do not compile for sm_100 (Triton 3.7.1: "parent layout must have at least rank
    # >= 2"), or spill: one pass more.
    scores = scores.float()
    cluster_block = block_of(all_clusters, CLUSTERS, 16)
    prototype_block = block_of(k, PROTOTYPES, 16)
    cluster_blocks = -(-all_clusters // cluster_block)
    tiles = cluster_blocks * views * -(-k // prototype_block)
    cells = all_clusters * views * k
    block = block_of(k, MOST_COLUMNS)
    row_block = min(16, MOST_COLUMNS // block)
    row_programs = -(-rows // row_block)
    terms = (views * views if symmetric else tiles, 0 if symmetric else cluster_blocks, row_programs)
    partial_sums, predictions, log_sums, log_means, joint, logarithms, partials = workspace(
        logits,
        sum(terms),
        rows * clusters,
        2 * rows,
        all_clusters,
        cells,
        cells if symmetric else 0,
        rows * all_clusters if needs[0] else 0,
    )
    entropies, marginals, guards = partial_sums[: sum(terms)].split(terms)
    sizes = {"views": views, "clusters": clusters}
    tile = {"cluster_block": cluster_block, "prototype_block": prototype_block}

    launch(
        rows_kernel,
        (row_programs,),
        *(logits, scores, predictions, log_sums, guards, rows, inverse_temperature, limit, GUARD_WEIGHT / rows),
        clusters=clusters,
        k=k,
        row_block=row_block,
        cluster_block=block_of(clusters, 256),
        block=block,
        num_warps=warps_for(row_block * block, 16),
    )
    launch(
        joint_kernel,
        (tiles,),
        *(predictions, scores, log_sums, joint, entropies, batch, inverse_temperature),
        **sizes,
        k=k,
        symmetric=symmetric,
        **tile,
        sample_block=SAMPLES,
        **PRODUCT,
    )
    if symmetric:
        launch(
            symmetric_kernel,
            (views * views,),
            *(joint, logarithms, entropies, entropy_weight),
            **sizes,
            cluster_block=block_of(clusters, clusters * 2, 16),
            step=16,
        )
    else:
        logarithms = joint
        arguments = (predictions, log_means, marginals, batch, entropy_weight)
        launch(marginals_kernel, (cluster_blocks,), *arguments, **sizes, cluster_block=cluster_block, sample_block=64)
    launch(total_kernel, (1,), partial_sums, loss, sum(terms), block=1024)
    if gradients[0] is not None:
        samples = block_of(1024 // block_of(clusters, 1024), 64)
        launch(
            predictions_gradient_kernel,
            (-(-batch // SAMPLES) * views * cluster_blocks,),
            *(scores, log_sums, logarithms, partials, batch, inverse_temperature),
            **sizes,
            k=k,
            **tile,
            sample_block=SAMPLES,
            **PRODUCT,
        )
        launch(
            logits_gradient_kernel,
            (views * -(-batch // samples),),
            *(logits, predictions, partials, None if symmetric else log_means, gradients[0], batch, limit),
            *(-1 / (views * rows), 1 / rows, GUARD_WEIGHT / rows),
            **sizes,
            cluster_block=block_of(clusters, 2 * clusters),
            sample_block=samples,
        )
    if gradients[1] is not None:
        launch(
            scores_gradient_kernel,
            (-(-batch // SAMPLES) * views,),
            *(predictions, scores, log_sums, logarithms, gradients[1], batch, inverse_temperature),
            -inverse_temperature / (views * rows),
            **sizes,
            k=k,
            **tile,
            sample_block=SAMPLES,
            **PRODUCT,
        )
    return loss, gradients
