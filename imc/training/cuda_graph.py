"""A whole training step as one CUDA graph: one launch instead of hundreds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from imc.config import Config
from imc.data.pixels import ResidentPixels
from imc.data.views import Batch, CropViews
from imc.errors import UserError
from imc.methods.method import Step

if TYPE_CHECKING:
    from imc.training.loop import Loop

WARM_UP = 10  # ordinary steps first: libraries choose algorithms and allocate what they keep


class GraphedStep:
    """The step of a loop, captured at its first call and replayed from then on.

    The random numbers of the crops and the learning rates are computed outside and copied into the graph's inputs.

    Args:
        loop: whose step to capture.

    Raises:
        UserError: the run has something that a graph cannot hold.
    """

    def __init__(self, loop: Loop) -> None:
        _check(loop)
        self.loop = loop
        self.graph: torch.cuda.CUDAGraph | None = None

    def ready(self, update: int) -> bool:
        """Whether the update with this number may be captured or replayed: the prototypes' freeze is over."""
        return update >= max(WARM_UP, self.loop.config.freeze_updates)

    def __call__(self, batch: Batch) -> Step:
        """One update; the step's tensors are overwritten by the next."""
        views = self.loop.views
        assert isinstance(views, CropViews)
        parameters = views.parameters(batch, self.loop.update)
        if self.graph is None:
            self._inputs = [batch.positions.clone(), *(x.clone() for x in parameters)]
            self._capture(batch, views)
        for static, new in zip(self._inputs, [batch.positions, *parameters], strict=True):
            static.copy_(new)
        assert self.graph is not None
        self.graph.replay()
        return self._step

    def _capture(self, batch: Batch, views: CropViews) -> None:
        positions, *parameters = self._inputs
        self.loop.optimizer.zero_grad()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self._step = self.loop.compute(views.render(batch.images, positions, parameters))


def _check(loop: Loop) -> None:
    config: Config = loop.config
    for refused, reason in (
        (loop.device.type != "cuda", "needs a CUDA device, and this run is on the CPU"),
        (loop.ranks.world > 1, "works on one rank only"),
        (config.bank or config.queue > 0, "cannot hold the bank or the queue, which change from step to step"),
        (config.augmentation != "crops", "needs --augmentation crops"),
        (not isinstance(loop.pixels, ResidentPixels), "needs the data set on the device: --device-data on"),
    ):
        if refused:
            raise UserError(f"--cuda-graph {reason}")
