"""A batch spread over 2 and 3 processes has the loss, the assignments and the gradients of the batch in one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from operations import OPERATIONS, Sizes
from torch import Tensor

DISTRIBUTED = {
    "info_nce_loss",
    "log_dot_product_loss",
    "sinkhorn",
    "sinkhorn-logarithmic",
    "mutual_information_loss",
    "mutual_information_loss-guarded",
    "mutual_information_loss-symmetric",
}
CASES = [operation for operation in OPERATIONS if str(operation) in DISTRIBUTED]
SIZES = Sizes(3, 12, 9, 4, 5)


def part(inputs: tuple[Tensor, ...], rank: int, world: int) -> tuple[Tensor, ...]:
    """The rank's samples of every input [..., B, n], as leaves."""
    return tuple(x.chunk(world, dim=-2)[rank].clone().requires_grad_() for x in inputs)


def weights(result: Tensor) -> Tensor:
    """What the result is multiplied with before the sum: ones for a loss, otherwise a fixed pattern."""
    return torch.ones_like(result) if result.dim() < 2 else torch.arange(result.numel()).reshape(result.shape) % 7 - 3.0


def process(rank: int, world: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    saved: dict[str, Any] = {}
    for operation in CASES:
        inputs = part(operation.inputs(SIZES), rank, world)
        result = operation.function(*inputs, **operation.options, group=dist.group.WORLD)
        whole = weights(operation.function(*operation.inputs(SIZES), **operation.options, backend="eager"))
        weight = whole if result.dim() < 2 else whole.chunk(world, dim=-2)[rank]
        (result * weight).sum().backward()
        saved[str(operation)] = (result.detach(), [x.grad for x in inputs])
    torch.save(saved, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("world", [2, 3])
def test_equals_one_process(world: int, tmp_path: Path) -> None:
    mp.start_processes(process, args=(world, str(tmp_path)), nprocs=world, start_method="spawn")
    saved = [torch.load(tmp_path / f"{rank}.pt") for rank in range(world)]
    for operation in CASES:
        inputs = tuple(x.requires_grad_() for x in operation.inputs(SIZES))
        result = operation(*inputs, backend="eager")
        (result * weights(result)).sum().backward()
        results = [of_rank[str(operation)][0] for of_rank in saved]
        gradients = [torch.cat(parts, dim=-2) for parts in zip(*(r[str(operation)][1] for r in saved), strict=True)]
        if result.dim() < 2:
            for of_rank in results:
                torch.testing.assert_close(of_rank, result.detach())
            gradients = [gradient / world for gradient in gradients]  # what averaging over processes does
        else:
            torch.testing.assert_close(torch.cat(results, dim=-2), result.detach())
        for gradient, leaf in zip(gradients, inputs, strict=True):
            torch.testing.assert_close(gradient, leaf.grad)


@pytest.mark.parametrize("operation", CASES, ids=str)
def test_what_is_no_group_is_refused(operation: Any) -> None:
    with pytest.raises(TypeError, match=r"group must be a torch\.distributed\.ProcessGroup, got str"):
        operation.function(*operation.inputs(SIZES), group="world")
