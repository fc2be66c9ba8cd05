"""The launches of the CUDA kernels of mutual_information_loss, on one process and between those of a group."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from imc_kernels import native
from imc_kernels.ops.operator import Needs
from imc_kernels.ops.precision import gradient_buffers, loss_buffer

NAME = "mutual_information_loss"
MOST_VIEWS = 2**15  # csrc/cuda_module.cpp


def mutual_information(
    inputs: Sequence[Tensor], options: Sequence[Any], needs: Needs
) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    """The loss and its gradients, of one process."""
    check_sizes(*inputs)
    logits, scores = inputs[0].contiguous(), inputs[1].contiguous()
    temperature, entropy_weight, limit, symmetric = options
    _, kept = sums(logits, scores, temperature, limit, symmetric)
    return finish(logits, scores, kept, temperature, entropy_weight, limit, symmetric, needs)


def check_sizes(logits: Tensor, scores: Tensor) -> None:
    """Those of the joint distributions too, which the kernels treat as one matrix."""
    (views, batch, clusters), prototypes = logits.shape, scores.shape[-1]
    native.check_cuda_sizes(NAME, batch, views * clusters, _width(views, prototypes))
    if views > MOST_VIEWS:
        raise ValueError(f"{NAME}: backend 'cuda' takes up to {MOST_VIEWS} views, got {views}")


def _width(views: int, prototypes: int) -> int:
    """Of u: a column more than it has prototypes, of ones; rows aligned to 16 bytes."""
    return -(-(views * prototypes + 1) // 4) * 4


def sums(
    logits: Tensor, scores: Tensor, temperature: float, limit: float, symmetric: bool, grouped: bool = False
) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    """The sums that processes add up, in one tensor: the joint distributions times the batch, and where ``grouped`` the
    guard and the number of samples. And what :func:`finish` takes, of which they are a part."""
    (views, batch, clusters), prototypes = logits.shape, scores.shape[-1]
    width = _width(views, prototypes)
    y = logits.new_empty(size=(batch, views * clusters), dtype=torch.float32)
    u = y.new_empty(size=(batch, width))
    if grouped:
        added = y.new_empty(size=(views * clusters * width + 2,))
        joint, guard_and_samples = added[:-2].view(-1, width), added[-2:]
    else:
        added = joint = y.new_empty(size=(views * clusters, width))
        guard_and_samples = None
    length = native.module("_cuda").mutual_information_loss_workspace(views, batch, clusters, prototypes)
    workspace = y.new_empty(size=(length,))
    given = (logits, scores, y, u, guard_and_samples, workspace)
    native.call("_cuda", "mutual_information_loss_softmaxes", *given, temperature, limit, symmetric)
    torch.mm(y.t(), u, out=joint)  # which autocast does not reach
    return added, (y, u, joint, guard_and_samples, workspace)


def finish(
    logits: Tensor,
    scores: Tensor,
    kept: Sequence[Any],
    temperature: float,
    entropy_weight: float,
    limit: float,
    symmetric: bool,
    needs: Needs,
) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    """The loss, and the gradients of these samples."""
    y, u, joint, guard_and_samples, workspace = kept
    (views, batch, clusters), prototypes = logits.shape, scores.shape[-1]
    loss, sizes = loss_buffer(y), (views, batch, clusters, prototypes)
    given = (joint, guard_and_samples, loss, workspace)
    native.call("_cuda", "mutual_information_loss_entropies", *given, *sizes, entropy_weight, symmetric)
    if True not in needs:
        return loss, (None, None)
    dy = torch.mm(u, joint.t(), out=torch.empty_like(y)) if needs[0] else None
    du = torch.mm(y, joint, out=torch.empty_like(u)) if needs[1] else None
    gradients = gradient_buffers((logits, scores), needs)
    given, options = (logits, y, u, dy, du, guard_and_samples, *gradients), (prototypes, temperature, limit)
    native.call("_cuda", "mutual_information_loss_gradients", *given, *options)
    return loss, gradients
