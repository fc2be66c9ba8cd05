"""A batch spread over the processes of a group: differentiable collectives.

Every process computes the loss of the whole batch. Its gradient is that of the sum over processes of their (equal)
losses, so averaging gradients over processes, as DistributedDataParallel does, gives the gradient of the whole batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def sum_over(x: Tensor, group: ProcessGroup | None) -> Tensor:
    """The sum of ``x`` over the processes; ``x`` itself without a group."""
    if group is None:
        return x
    from torch.distributed.nn.functional import all_reduce

    return all_reduce(x, group=group)


def samples_over(x: Tensor, group: ProcessGroup | None, dim: int) -> int:
    """How many samples ``x`` has along ``dim``, over all processes."""
    return x.shape[dim] if group is None else sum(_sizes(x.shape[dim], group))


def logsumexp_over(x: Tensor, group: ProcessGroup | None) -> Tensor:
    """The logarithm of the sum of ``exp(x)`` over the processes; ``x`` itself without a group."""
    return x if group is None else torch.logsumexp(torch.stack(_gather(x, group)), dim=0)


def rows_of(x: Tensor, group: ProcessGroup | None, dim: int) -> Tensor:
    """The rows of all processes along ``dim``, in the order of their ranks; ``x`` itself without a group."""
    if group is None:
        return x
    sizes = _sizes(x.shape[dim], group)
    rows = x.movedim(dim, 0)
    padded = torch.cat([rows, rows.new_zeros(max(sizes) - len(rows), *rows.shape[1:])])
    parts = [part[:size] for part, size in zip(_gather(padded, group), sizes, strict=True)]
    return torch.cat(parts).movedim(0, dim)


def _sizes(size: int, group: ProcessGroup) -> list[int]:
    from imc_kernels.ops.distributed.collectives import gather_sizes

    return gather_sizes(size, group)


def _gather(x: Tensor, group: ProcessGroup) -> tuple[Tensor, ...]:
    from torch.distributed.nn.functional import all_gather

    return all_gather(x.contiguous(), group=group)
