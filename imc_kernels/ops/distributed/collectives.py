"""What phases exchange. Sums of floating numbers are the same on every process, bit by bit."""

from __future__ import annotations

import functools
import weakref
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

_hosts: weakref.WeakKeyDictionary[ProcessGroup, ProcessGroup] = weakref.WeakKeyDictionary()


def gather(x: Tensor, group: ProcessGroup) -> Tensor:
    """``x`` of all processes, equal in shape, stacked: [processes, ...]."""
    x = x.contiguous()
    everybody = x.new_empty(group.size(), *x.shape)
    dist.all_gather(list(everybody.unbind()), x, group=group)
    return everybody


def sum_over(x: Tensor, group: ProcessGroup) -> Tensor:
    """``x`` becomes its sum over the processes."""
    dist.all_reduce(x, group=group)
    return x


def gather_sizes(size: int, group: ProcessGroup) -> list[int]:
    """A number of each process, in the order of ranks.

    It goes from host to host, so that none waits for its device: the kernels are started ahead of it as without a
    group, and the call can be captured in a CUDA graph, where shapes stay what they are.
    """
    return gather(torch.tensor(size, device="cpu"), host_group(group)).tolist()


def host_group(group: ProcessGroup) -> ProcessGroup:
    """The group itself where it exchanges CPU tensors, otherwise one of the same processes that does. All of them make
    it at the first call, with the time limit of the group."""
    if "cpu:" in dist.get_backend_config(group):
        return group
    if group not in _hosts:
        kinds = [entry.partition(":")[0] for entry in dist.get_backend_config(group).split(",")]
        backend = group._get_backend(torch.device(kinds[0]))
        limit = getattr(getattr(backend, "options", None), "_timeout", None)  # not public; torch's default without it
        ranks = dist.get_process_group_ranks(group)
        _hosts[group] = dist.new_group(ranks, backend="gloo", timeout=limit, use_local_synchronization=True)
    return _hosts[group]


def gather_samples(x: Tensor, dim: int, sizes: list[int], group: ProcessGroup) -> Tensor:
    """The samples of all processes along ``dim``, in the order of ranks, given how many each has."""
    samples, most = x.movedim(dim, 0), max(sizes)
    if len(samples) < most:
        samples = torch.cat([samples, samples.new_empty(most - len(samples), *samples.shape[1:])])
    everybody = gather(samples, group)
    if min(sizes) < most:
        everybody = torch.cat([part[:size] for part, size in zip(everybody, sizes, strict=True)])
    else:
        everybody = everybody.flatten(0, 1)
    return everybody.movedim(0, dim).contiguous()
