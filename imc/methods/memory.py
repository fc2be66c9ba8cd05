"""Rows that a method keeps from one step to the next. Every process of a group holds the same ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def gather_rows(x: Tensor, counts: tuple[int, ...], group: ProcessGroup | None) -> Tensor:
    """The rows [V, n, F] of all processes along dim 1, in the order of their ranks; ``counts`` says each one's n."""
    if group is None:
        return x
    largest = max(counts)
    padded = functional.pad(x, (0, 0, 0, largest - x.shape[1])).contiguous()
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded, group=group)
    return torch.cat([part[:, :count] for part, count in zip(parts, counts, strict=True)], dim=1)


class Bank:
    """Rows of several tensors, collected until a batch of them is there.

    Args:
        size: rows of a batch.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.rows: list[Tensor] | None = None  # each [V, size, F]
        self.count = 0

    def clear(self) -> None:
        """Drop what is there."""
        self.count = 0

    def add(self, *rows: Tensor) -> tuple[Tensor, ...] | None:
        """Add rows [V, n, F]; the first ``size`` rows once they are there, and then the bank is empty again."""
        if self.rows is None:
            self.rows = [x.new_empty(x.shape[0], self.size, x.shape[2]) for x in rows]
        taken = min(rows[0].shape[1], self.size - self.count)
        for kept, new in zip(self.rows, rows, strict=True):
            kept[:, self.count : self.count + taken] = new[:, :taken]
        self.count += taken
        if self.count < self.size:
            return None
        self.count = 0
        return tuple(kept.clone() for kept in self.rows)

    def state(self) -> dict[str, Any]:
        """What :meth:`load` continues from."""
        rows = None if self.rows is None or self.count == 0 else [x[:, : self.count].clone() for x in self.rows]
        return {"rows": rows}

    def load(self, state: dict[str, Any], device: torch.device) -> None:
        """Continue from a state."""
        self.count = 0
        if state["rows"] is not None:
            self.add(*(x.to(device) for x in state["rows"]))


class Queue:
    """The latest rows [A, N, D], first in, first out.

    Args:
        size: N.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.rows: Tensor | None = None
        self.count = 0

    @property
    def full(self) -> bool:
        return self.rows is not None and self.count >= self.size

    def push(self, rows: Tensor) -> None:
        """Put rows [A, n, D], n at most N, before the others and drop the oldest."""
        if self.rows is None:
            self.rows = rows.new_zeros(rows.shape[0], self.size, rows.shape[2])
        self.rows = torch.cat([rows, self.rows], dim=1)[:, : self.size]
        self.count = min(self.size, self.count + rows.shape[1])

    def part(self, group: ProcessGroup | None) -> Tensor:
        """This process's share of the rows: [A, N / processes, D]."""
        assert self.rows is not None
        return self.rows if group is None else self.rows.chunk(group.size(), dim=1)[group.rank()]

    def state(self) -> dict[str, Any]:
        """What :meth:`load` continues from."""
        return {"rows": None if self.rows is None else self.rows.clone(), "count": self.count}

    def load(self, state: dict[str, Any], device: torch.device) -> None:
        """Continue from a state."""
        self.rows, self.count = state["rows"], state["count"]
        if self.rows is not None:
            self.rows = self.rows.to(device)
