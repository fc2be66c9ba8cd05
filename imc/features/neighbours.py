"""The nearest neighbours, by cosine, of every row of a matrix of features.

Up to :data:`EXACT` rows each is compared with all others, block by block, in memory that does not grow with the square
of their number. Of more rows the search is approximate: by inverted lists, as in the index IVFFlat of faiss
(arXiv 1702.08734). A k-means on a sample puts each row into one of about sqrt(M) lists; the rows of a list are compared
with those of the :data:`PROBES` lists whose centres are nearest to its own, on the first :data:`COMPONENTS` principal
components. ``python -m benchmarks.neighbours`` measures what that finds of the exact neighbours, and its time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional

from imc.command_line.terminal import progress

EXACT = 20_000  # rows; the time grows with the square, and two cores took 45 s for 60,000 with 1,280 columns
BLOCK = 1024  # rows at a time
SIMILARITIES = 1 << 26  # in memory at a time, 256 MiB
COMPONENTS = 256
PROBES = 32
SAMPLE = 64  # rows for each list that decide its centre
SAMPLE_OF_ROWS = 20_000  # that decide the principal components
ROUNDS = 10  # of k-means
Transform = Callable[[Tensor], Tensor]


def nearest_neighbours(
    rows: Tensor,
    count: int,
    *,
    transform: Transform | None = None,
    seed: int = 0,
    exact: bool | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """The nearest other rows of each row, the nearest first.

    Args:
        rows: [M, D] of any real dtype; may lie over a memory map.
        count: k, at most M - 1.
        transform: what the cosines are of, rows [B, D] -> float [B, E]; None: the rows.
        seed: of the approximate search.
        exact: whether to compare all pairs; None: up to :data:`EXACT` rows.
        device: where they are compared.

    Returns:
        int32 [M, k], on the CPU. No row is its own neighbour; copies of it may be.
    """
    if not 0 < count < len(rows):
        raise ValueError(f"count must be 1 to {len(rows) - 1}, the other rows, got {count}")
    unit = Unit(rows, transform or (lambda block: block), torch.device(device))
    if exact or (exact is None and len(rows) <= EXACT):
        return _exact(unit, count)
    return _by_lists(unit, count, seed)


class Unit:
    """Rows transformed and of length 1, a block at a time."""

    def __init__(self, rows: Tensor, transform: Transform, device: torch.device) -> None:
        self.rows, self.transform, self.device = rows, transform, device

    def __len__(self) -> int:
        return len(self.rows)

    @torch.no_grad()
    def __getitem__(self, chosen: slice | Tensor) -> Tensor:
        return functional.normalize(self.transform(self.rows[chosen]).float(), dim=1).to(self.device)

    def blocks(self) -> Iterator[Tensor]:
        """All of them, float32 [B, E]."""
        return (self[start : start + BLOCK] for start in range(0, len(self), BLOCK))


def mutual_neighbours(neighbours: Tensor) -> Tensor:
    """Only neighbours that have each other: int32 [M, k], each row's own first, then repeated to fill the row.

    A row of which none remains keeps its nearest.
    """
    count, k = neighbours.shape
    result = torch.empty_like(neighbours)
    for start in range(0, count, BLOCK):
        block = neighbours[start : start + BLOCK]
        here = torch.arange(start, start + len(block), dtype=block.dtype).view(-1, 1, 1)
        kept = (neighbours[block.long()] == here).any(dim=2)
        kept[:, 0] |= ~kept.any(dim=1)
        order = kept.int().argsort(dim=1, descending=True, stable=True)
        number = kept.sum(dim=1, keepdim=True)
        result[start : start + BLOCK] = block.gather(1, order.gather(1, torch.arange(k).expand(len(block), k) % number))
    return result


def _exact(rows: Unit, count: int) -> Tensor:
    unit = torch.cat(list(rows.blocks()))
    found = torch.empty(len(rows), count, dtype=torch.int32)
    size = max(1, min(BLOCK, SIMILARITIES // len(rows)))
    with progress(len(rows), "find neighbours", "row") as bar:
        for start in range(0, len(rows), size):
            block = unit[start : start + size]
            similarity = block @ unit.T
            own = torch.arange(len(block), device=unit.device)
            similarity[own, start + own] = -torch.inf
            found[start : start + size] = similarity.topk(count, dim=1).indices.cpu()
            bar.update(len(block))
    return found


def _by_lists(rows: Unit, count: int, seed: int) -> Tensor:
    unit = _components(rows, seed)
    lists = max(1, round(math.sqrt(len(rows))))
    centres, member_of = _lists(unit, lists, seed)
    order = member_of.argsort(stable=True)
    sizes = torch.bincount(member_of, minlength=lists)
    members = list(order.split(sizes.tolist()))
    near = (centres @ centres.T).argsort(dim=1, descending=True).tolist()
    found = torch.empty(len(rows), count, dtype=torch.int32)
    with progress(len(rows), "find neighbours", "row") as bar:
        for own, queries in enumerate(members):
            if not len(queries):
                continue
            candidates = _probed(members, near[own], count + 1)
            others = unit[candidates]
            for block in queries.split(max(1, SIMILARITIES // len(candidates))):
                similarity = unit[block] @ others.T
                similarity.masked_fill_(block[:, None] == candidates, -torch.inf)
                found[block.cpu()] = candidates[similarity.topk(count, dim=1).indices].int().cpu()
            bar.update(len(queries))
    return found


def _probed(members: list[Tensor], near: list[int], least: int) -> Tensor:
    """The rows of the nearest lists, of more than :data:`PROBES` where these hold fewer than ``least``."""
    chosen, total = [], 0
    for number, each in enumerate(near):
        if number >= PROBES and total >= least:
            break
        chosen.append(members[each])
        total += len(members[each])
    return torch.cat(chosen)


def _components(rows: Unit, seed: int) -> Tensor:
    """The rows by their principal components, of length 1: float32 [M, at most 256]."""
    generator = torch.Generator().manual_seed(seed)
    part = rows[torch.randperm(len(rows), generator=generator)[:SAMPLE_OF_ROWS].sort().values]
    mean = part.mean(dim=0)
    part -= mean
    directions = torch.linalg.eigh(part.T @ part).eigenvectors[:, -COMPONENTS:]
    return torch.cat([functional.normalize((block - mean) @ directions, dim=1) for block in rows.blocks()])


def _lists(unit: Tensor, lists: int, seed: int) -> tuple[Tensor, Tensor]:
    """Spherical k-means: the centres [lists, D] of a sample's clusters, and the list int64 [M] of each row."""
    generator = torch.Generator().manual_seed(seed)
    sample = unit[torch.randperm(len(unit), generator=generator)[: lists * SAMPLE].to(unit.device)]
    centres = sample[:lists].clone()
    for _ in range(ROUNDS):
        member_of = torch.cat(list(_nearest(sample, centres)))
        sums = torch.zeros_like(centres).index_add_(0, member_of, sample)
        empty = torch.bincount(member_of, minlength=lists) == 0
        sums[empty] = centres[empty]
        centres = functional.normalize(sums, dim=1)
    return centres, torch.cat(list(_nearest(unit, centres)))


def _nearest(unit: Tensor, centres: Tensor) -> Iterator[Tensor]:
    for block in unit.split(BLOCK):
        yield (block @ centres.T).argmax(dim=1)
