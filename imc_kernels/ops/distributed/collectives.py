"""What phases exchange. Sums of floating numbers are the same on every process, bit by bit."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

# torch.compile breaks its graph at an operation with a group, and says this where no break is allowed.
not_compiled = functools.partial(
    torch.compiler.disable,
    reason="imc_kernels: an operation with group= exchanges numbers between processes and does not compile; call it "
    "outside the compiled function, or leave fullgraph=True out",
)


def gather(x: Tensor, group: ProcessGroup) -> Tensor:
    """``x`` of all processes, equal in shape, stacked: [processes, ...]."""
    x = x.contiguous()
    parts = [torch.empty_like(x) for _ in range(group.size())]
    dist.all_gather(parts, x, group=group)
    return torch.stack(parts)


def sum_over(x: Tensor, group: ProcessGroup) -> Tensor:
    """``x`` becomes its sum over the processes."""
    dist.all_reduce(x, group=group)
    return x


def gather_samples(x: Tensor, dim: int, sizes: list[int], group: ProcessGroup) -> Tensor:
    """The samples of all processes along ``dim``, in the order of ranks, given how many each has."""
    samples = x.movedim(dim, 0)
    padded = torch.cat([samples, samples.new_empty(max(sizes) - len(samples), *samples.shape[1:])])
    parts = [part[:size] for part, size in zip(gather(padded, group), sizes, strict=True)]
    return torch.cat(parts).movedim(0, dim).contiguous()
