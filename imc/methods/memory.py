"""Rows that a method keeps from one step to the next. Every process of a group holds the same ones.

What is counted is counted on the host, before a step; the step itself only moves rows, to places that a tensor says, so
that a captured one can be replayed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def gather_rows(x: Tensor, group: ProcessGroup | None) -> Tensor:
    """The rows [V, n, F] of all processes along dim 1, in the order of their ranks; each has as many."""
    if group is None:
        return x
    x = x.contiguous()
    parts = [torch.empty_like(x) for _ in range(group.size())]
    dist.all_gather(parts, x, group=group)
    return torch.cat(parts, dim=1)


class Bank:
    """Rows of several tensors, collected until a batch of them is there.

    Args:
        size: rows of a batch.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.rows: list[Tensor] | None = None  # each [V, size + 1, F]: the last place takes what is not kept
        self.count = 0

    def clear(self) -> None:
        """Drop what is there."""
        self.count = 0

    def plan(self, wanted: Tensor) -> tuple[Tensor, bool]:
        """Count the rows of the next step, bool [n] on the host: which are to be kept.

        Returns:
            Where each goes, int64 [n], as many as there is room for; and whether the batch is there with them: the bank
            is then empty again for the rows after these.
        """
        places = wanted.cumsum(0) - 1 + self.count
        slots = torch.where(wanted & (places < self.size), places, self.size)
        self.count = min(self.size, self.count + int(wanted.sum()))
        complete = self.count == self.size
        if complete:
            self.count = 0
        return slots, complete

    def put(self, slots: Tensor, *rows: Tensor) -> None:
        """Put rows [V, n, F] into the places that :meth:`plan` gave, int64 [n] on their device."""
        if self.rows is None:
            self.rows = [x.new_zeros(x.shape[0], self.size + 1, x.shape[2]) for x in rows]
        for kept, new in zip(self.rows, rows, strict=True):
            kept.index_copy_(1, slots, new)

    def batch(self) -> tuple[Tensor, ...]:
        """The rows [V, size, F], where they are all there."""
        assert self.rows is not None
        return tuple(kept[:, : self.size].clone() for kept in self.rows)

    def state(self) -> dict[str, Any]:
        """What :meth:`load` continues from."""
        rows = None if self.rows is None or self.count == 0 else [x[:, : self.count].clone() for x in self.rows]
        return {"rows": rows}

    def load(self, state: dict[str, Any], device: torch.device) -> None:
        """Continue from a state."""
        self.count = 0
        if state["rows"] is not None:
            rows = [x.to(device) for x in state["rows"]]
            slots, _ = self.plan(torch.ones(rows[0].shape[1], dtype=torch.bool))
            self.put(slots.to(device), *rows)


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
        """Whether the rows that the next step finds are all there."""
        return self.count >= self.size

    def expect(self, rows: int) -> None:
        """Count the rows that the next step pushes."""
        self.count = min(self.size, self.count + rows)

    def push(self, rows: Tensor) -> None:
        """Put rows [A, n, D], n at most N, before the others and drop the oldest."""
        if self.rows is None:
            self.rows = rows.new_zeros(rows.shape[0], self.size, rows.shape[2])
        self.rows.copy_(torch.cat([rows, self.rows], dim=1)[:, : self.size])

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
            self.rows = self.rows.to(device, copy=True)  # which the next step overwrites
