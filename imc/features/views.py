"""Views of a sample that is a row of features: itself and its neighbours, itself with noise, or stored views of it; and
views of an image whose neighbours are known: crops of itself and of them.

As of other images (:mod:`imc.data.views`), they are a pure function of the seed, the number of the update and the
samples.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from imc.data.options import CropOptions
from imc.data.pixels import FREE_SHARE, ResidentPixels
from imc.data.views import VIEWS, Batch, CropViews, derived_seed


class HostRows:
    """Rows in host memory or over a memory map, from which the views of a batch are gathered; for a GPU without room.

    Args:
        rows: [M, D], or with stored views [M, V, D].
        device: where the batches go.
    """

    def __init__(self, rows: Tensor, device: torch.device) -> None:
        self.rows, self.device = rows, device

    def batches(self, rows: Sequence[Tensor], start: int, total: int) -> Generator[Batch]:
        """The batches of these samples, each int64 [B] on the host."""
        for samples in rows:
            positions = samples.to(self.device, non_blocking=True)
            yield Batch(self.rows, positions, positions, start, total)


def split_views(rows: Tensor) -> tuple[Tensor, Tensor | None]:
    """The first view [M, D] of samples [M, V, D], which stands for the sample, and all; rows [M, D] have no others."""
    return (rows[:, 0], rows) if rows.dim() == 3 else (rows, None)


def open_rows(rows: Tensor, device: torch.device, choice: str) -> ResidentPixels | HostRows:
    """The rows by the choice "on" (the device), "off" (the host), or "auto": on the device where they fit."""
    if choice == "auto" and device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        choice = "on" if rows.nbytes < FREE_SHARE * free else "off"
    return HostRows(rows, device) if choice == "off" else ResidentPixels([rows], device)


class RowViews:
    """The views of rows: the first is the row itself, every further one a neighbour, drawn evenly.

    Of samples with stored views [M, V, D] each view is one of those, another one while there are such.

    Args:
        neighbours: int32 [M, k]; None: every view is the row itself, or a stored one.
        views: number of large and of small views, which differ in their part in the loss alone.
        noise: standard deviation of normal noise on every view, as a fraction of the row's root mean square.
        seed: of the run.
        device: where the views go.
    """

    def __init__(
        self, neighbours: Tensor | None, *, views: tuple[int, int], noise: float, seed: int, device: torch.device
    ) -> None:
        self.neighbours = None if neighbours is None else neighbours.to(device)
        self.views, self.noise, self.seed = views, noise, seed
        self.generator = torch.Generator(device)

    def __call__(self, batch: Batch, update: int) -> list[Tensor]:
        """For the large and the small views a tensor float32 [V, B, D]."""
        self.generator.manual_seed(derived_seed(self.seed, VIEWS, update))
        device, count = self.generator.device, len(batch.samples)
        part = slice(batch.start, batch.start + count)
        samples = batch.samples.expand(sum(self.views), count)
        # What is drawn is drawn for all ranks, so that their number does not change what a sample sees.
        if self.neighbours is not None:
            shape = (sum(self.views) - 1, batch.total)
            drawn = torch.randint(self.neighbours.shape[1], shape, generator=self.generator, device=device)[:, part]
            samples = torch.cat([samples[:1], self.neighbours[samples[1:], drawn].long()])
        place: tuple[Tensor, ...] = (samples,)
        if batch.images.dim() == 3:
            stored = batch.images.shape[1]
            order = torch.rand(stored, batch.total, generator=self.generator, device=device).argsort(dim=0)[:, part]
            place = (samples, order[torch.arange(len(samples), device=device) % stored])
        views = batch.images[tuple(x.to(batch.images.device) for x in place)].to(device, torch.float32)
        if self.noise:
            every = (len(views), batch.total, views.shape[2])
            noise = torch.randn(every, generator=self.generator, dtype=torch.float32, device=device)[:, part]
            views = views + self.noise * views.square().mean(dim=2, keepdim=True).sqrt() * noise
        return [size for size in views.split(list(self.views)) if len(size)]


class NeighbourCrops(CropViews):
    """Crops of images and of their neighbours: the first view is of the image itself, every further one of a neighbour,
    drawn evenly.

    Args:
        options: resolved.
        neighbours: int32 [M, k], on the host.
    """

    def __init__(self, options: CropOptions, neighbours: Tensor) -> None:
        super().__init__(options)
        self.neighbours = neighbours.cpu()
        self.count = sum(crops.count for crops in self.crops)

    def with_neighbours(self, samples: Tensor, start: int, total: int, update: int) -> Tensor:
        """The samples int64 [B] of one rank, then a neighbour of each for every further view: int64 [V*B], on the host.

        What is drawn is drawn for all ``total`` samples of the update, of which these begin at ``start``.
        """
        generator = torch.Generator().manual_seed(derived_seed(self.options.seed, VIEWS, update))
        drawn = torch.randint(self.neighbours.shape[1], (self.count - 1, total), generator=generator)
        chosen = drawn[:, start : start + len(samples)]
        return torch.cat([samples, self.neighbours[samples.expand_as(chosen), chosen].long().flatten()])

    def __call__(self, batch: Batch, update: int | Tensor) -> list[Tensor]:
        """Of a batch of :meth:`with_neighbours`."""
        parts = zip(batch.positions.chunk(self.count), batch.samples.chunk(self.count), strict=True)
        views = [batch._replace(positions=positions, samples=samples) for positions, samples in parts]
        sizes, first = [], 0
        for crops in self.crops:
            own = range(first, first + crops.count)
            one = replace(crops, count=1)
            cut = [self._cut(views[view], one, self._draw(views[view], update, one, view)) for view in own]
            together = torch.cat([view[0] for view in cut])  # of four dimensions, which keeps their order in memory
            sizes.append(together.unflatten(0, (crops.count, -1)))
            first += crops.count
        return sizes
