"""Where the batches of a run on features come from: its rows, and the neighbours that are their views."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from imc.data.pixels import Source
from imc.data.views import Views
from imc.features.neighbours import mutual_neighbours, nearest_neighbours
from imc.features.views import RowViews, open_rows
from imc.files.run_places import NEIGHBOURS
from imc.files.whole import write_file


def find_neighbours(
    rows: Tensor,
    transform: Callable[[Tensor], Tensor],
    *,
    count: int,
    mutual: bool,
    seed: int,
    device: torch.device,
    folder: Path | None,
) -> Tensor:
    """The neighbours int32 [M, k] of each row [M, D], of the run in ``folder`` those it began with.

    What is found again could differ in a tie, by another number of threads, and a resumed run with it.
    """
    stored = None if folder is None else stored_neighbours(folder, len(rows), count)
    if stored is not None:
        return stored
    found = nearest_neighbours(rows, count, transform=transform, seed=seed, device=device)
    return mutual_neighbours(found) if mutual else found


def stored_neighbours(folder: Path, samples: int, count: int) -> Tensor | None:
    """The neighbours int32 [M, k] of so many samples in the folder of a run; None: they are not there, or damaged."""
    with contextlib.suppress(Exception):  # in whatever way
        stored = torch.from_numpy(np.load(folder / NEIGHBOURS, allow_pickle=False))
        whole = stored.dtype == torch.int32 and stored.shape == (samples, count)
        if whole and int(stored.min()) >= 0 and int(stored.max()) < samples:
            return stored
    return None


def write_neighbours(folder: Path, neighbours: Tensor) -> None:
    """Store them in the folder of a run."""
    buffer = io.BytesIO()
    np.save(buffer, neighbours.numpy(), allow_pickle=False)
    write_file(folder / NEIGHBOURS, buffer.getbuffer())


def row_source(
    rows: Tensor,
    neighbours: Tensor | None,
    *,
    views: tuple[int, int],
    noise: float,
    seed: int,
    device: torch.device,
    device_data: str,
) -> tuple[Source, Views]:
    """What the training loop takes its batches and their views from; see :class:`imc.features.views.RowViews`.

    Rows are [M, D], or with stored views [M, V, D].
    """
    return open_rows(rows, device, device_data), RowViews(
        neighbours, views=views, noise=noise, seed=seed, device=device
    )
