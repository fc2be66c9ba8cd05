"""A whole training step as one CUDA graph: one launch instead of hundreds."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from imc.data.pixels import ResidentPixels
from imc.data.views import Batch, CropViews, Views
from imc.methods.method import Method, Step
from imc.models.encoders import CustomEncoder

WARM_UP = 10  # ordinary steps first: libraries choose algorithms and allocate what they keep
FURTHER = 2  # the same of a process that is warm, where the step has changed: the optimiser begins new moments


class GraphedStep:
    """A training step: the first ones of this process are ordinary, then one is captured and replayed from then on.

    The crops' random numbers follow from the number of the update, which lies on the device, and the learning rates
    are tensors there: both are set before a replay. With the update that first trains the prototypes the step becomes
    another one, and is captured anew.

    Args:
        compute: the step to capture: loss, gradients and the optimiser's update on crops.
        views: what makes the crops; given the number of the update as a tensor.
        optimizer: that of the step.
        freeze_updates: first updates, which leave the prototypes untrained.
    """

    def __init__(
        self,
        compute: Callable[[list[Tensor]], Step],
        views: CropViews,
        optimizer: torch.optim.Optimizer,
        freeze_updates: int,
    ) -> None:
        self.compute, self.views, self.optimizer = compute, views, optimizer
        self.freeze_updates = freeze_updates
        self.ordinary = 0  # steps to make: a run that goes on is warm in none of its libraries
        self.frozen: bool | None = None  # what the steps so far were
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, batch: Batch, update: int) -> Step:
        """The update with this number; the tensors of a replayed step are overwritten by the next."""
        frozen = update < self.freeze_updates
        if frozen != self.frozen:
            self.ordinary = WARM_UP if self.frozen is None else max(self.ordinary, FURTHER)
            self.frozen, self.graph = frozen, None
        if self.ordinary > 0:
            self.ordinary -= 1
            return self.compute(self.views(batch, update))
        if self.graph is None:
            positions = batch.positions.clone()
            self._batch = batch._replace(positions=positions, samples=positions)
            self._update = torch.full((), update, dtype=torch.int64, device=positions.device)
            self._capture()
        self._batch.positions.copy_(batch.positions)
        self._update.fill_(update)
        assert self.graph is not None
        self.graph.replay()
        return self._step

    def _capture(self) -> None:
        self.optimizer.zero_grad()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self._step = self.compute(self.views(self._batch, self._update))


def obstacle(*, device: torch.device, world: int, model: Method, views: Views, pixels: object) -> str | None:
    """Why a run's step cannot be a CUDA graph, or None.

    Args:
        device: of the run.
        world: number of its ranks.
        model: what it trains.
        views, pixels: what makes the run's views, and what holds its images.
    """
    for there, reason in (
        (device.type != "cuda", "needs a CUDA device, and this run is on the CPU"),
        (world > 1, "works on one rank only"),
        (model.remembers, "cannot hold the bank or the queue, which change from step to step"),
        (not isinstance(views, CropViews), "needs --augmentation crops"),
        (not isinstance(pixels, ResidentPixels), "needs the data set on the device: --device-data on"),
        (isinstance(model.encoder, CustomEncoder), "is not for an encoder of one's own, which may wait for the device"),
    ):
        if there:
            return reason
    return None
