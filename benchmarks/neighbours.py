"""What the approximate search for neighbours finds of the exact ones, and the time of both.

    python -m benchmarks.neighbours cifar.npz                 # of an .npz or .npy of features
    python -m benchmarks.neighbours --rows 1000000            # the approximate search alone, drawn rows of 768 columns

The rows are scaled as those of a run. Drawn rows lie around 1,000 centres in 32 dimensions.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from imc.features.files import read_features
from imc.features.neighbours import nearest_neighbours
from imc.models.standardise import Standardise

COUNT = 10
CENTRES, DIMENSIONS, COLUMNS = 1000, 32, 768
BLOCK = 10_000


def main() -> None:
    """Print one line for each search."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?", help="features; default: drawn rows")
    parser.add_argument("--rows", type=int, default=1_000_000, help="how many are drawn")
    options = parser.parse_args()
    rows = drawn(options.rows) if options.source is None else read_features([options.source]).train.images
    encoder = Standardise((rows.shape[1],), "length")
    encoder.fit(rows)
    found = _timed("lists", lambda: nearest_neighbours(rows, COUNT, transform=encoder, exact=False))
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"memory at most {most:.1f} GB, of which the rows {rows.nbytes / 1e9:.1f} GB", flush=True)
    if options.source is not None:
        exact = _timed("exact", lambda: nearest_neighbours(rows, COUNT, transform=encoder, exact=True))
        if (labels := read_features([options.source]).train.labels) is not None:
            alike = [float((labels[each.long()] == labels[:, None]).float().mean()) for each in (found, exact)]
            print(f"of one class with the row: {alike[0]:.3f} by the lists, {alike[1]:.3f} of the exact ones")
        shared = (found[:, :, None] == exact[:, None, :]).any(dim=2).float().mean()
        print(f"{len(rows):,} rows: the lists find {float(shared):.3f} of the {COUNT} nearest")


def drawn(count: int) -> Tensor:
    """Rows float16 [count, 768]."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.randn(DIMENSIONS, COLUMNS, generator=generator)
    centres = torch.randn(CENTRES, DIMENSIONS, generator=generator)
    rows = torch.empty(count, COLUMNS, dtype=torch.float16)
    for block in rows.split(BLOCK):
        group = torch.randint(CENTRES, (len(block),), generator=generator)
        points = centres[group] + 0.5 * torch.randn(len(block), DIMENSIONS, generator=generator)
        block.copy_(points @ basis + torch.randn(block.shape, generator=generator))
    return rows


def _timed(name: str, search: Callable[[], Any]) -> Any:
    begun = time.perf_counter()
    found = search()
    print(f"{name}: {time.perf_counter() - begun:.1f} s", flush=True)
    return found


if __name__ == "__main__":
    main()
