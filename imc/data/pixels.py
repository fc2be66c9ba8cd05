"""Where the images of a batch come from: the device, or host memory that is streamed to it."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import torch
from torch import Tensor

from imc.data.views import Batch
from imc.errors import UserError

FREE_SHARE = 0.5  # of the device's free memory that a data set may take unasked


class Source(Protocol):
    """What gives the batches of an epoch."""

    def batches(self, rows: Sequence[Tensor], start: int, total: int) -> Generator[Batch]:
        """The batches of these samples, each int64 [B] on the host."""


class ResidentPixels:
    """All images on the device.

    Args:
        parts: uint8 [M, H, W, C] each; together they are the data set.
        device: where to.
    """

    def __init__(self, parts: Sequence[Tensor], device: torch.device) -> None:
        if len(parts) == 1:
            self.images = parts[0].to(device)
            return
        self.images = torch.empty(sum(map(len, parts)), *parts[0].shape[1:], dtype=torch.uint8, device=device)
        for part, place in zip(parts, self.images.split([len(part) for part in parts]), strict=True):
            place.copy_(part)

    def batches(self, rows: Sequence[Tensor], start: int, total: int) -> Generator[Batch]:
        """The batches of these samples, each int64 [B] on the host."""
        for samples in rows:
            positions = samples.to(self.images.device, non_blocking=True)
            yield Batch(self.images, positions, positions, start, total)


class StreamedPixels:
    """Images in host memory or over a memory map; the next batch is gathered and copied while one is trained on.

    Args: as :class:`ResidentPixels`.
    """

    def __init__(self, parts: Sequence[Tensor], device: torch.device) -> None:
        self.parts = parts
        self.starts = [0, *itertools.accumulate(len(part) for part in parts[:-1])]
        self.device = device

    def batches(self, rows: Sequence[Tensor], start: int, total: int) -> Generator[Batch]:
        """The batches of these samples, each int64 [B] on the host."""
        with ThreadPoolExecutor(1, thread_name_prefix="pixels") as pool:
            following = None if not rows else pool.submit(self._gather, rows[0])
            for position, samples in enumerate(rows):
                assert following is not None
                host = following.result()
                more = position + 1 < len(rows)
                following = pool.submit(self._gather, rows[position + 1]) if more else None
                images = host.to(self.device, non_blocking=True)
                positions = torch.arange(len(samples), device=self.device)
                yield Batch(images, positions, samples.to(self.device, non_blocking=True), start, total)

    def _gather(self, samples: Tensor) -> Tensor:
        # A new pinned block each time: torch's host allocator reuses one only when its copy has ended.
        shape = (len(samples), *self.parts[0].shape[1:])
        images = torch.empty(shape, dtype=torch.uint8, pin_memory=self.device.type == "cuda")
        for part, start in zip(self.parts, self.starts, strict=True):
            rows = ((samples >= start) & (samples < start + len(part))).nonzero()[:, 0]
            images[rows] = part[samples[rows] - start]
        return images


def open_pixels(parts: Sequence[Tensor], device: torch.device, choice: str) -> ResidentPixels | StreamedPixels:
    """The images by the choice "on" (the device), "off" (streamed), or "auto": on the device where they fit.

    Raises:
        UserError: images of different shapes.
    """
    shapes = {tuple(part.shape[1:]) for part in parts}
    if len(shapes) > 1:
        raise UserError(f"all splits of the data set must have images of one shape, got {sorted(shapes)}")
    if choice == "auto":
        choice = "on"
        if device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            choice = "on" if sum(part.numel() for part in parts) < FREE_SHARE * free else "off"
        elif len(parts) > 1:
            choice = "off"  # which copies nothing
    return ResidentPixels(parts, device) if choice == "on" else StreamedPixels(parts, device)
