"""A whole training step as one CUDA graph: one launch instead of hundreds."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from imc.data.pixels import ResidentPixels
from imc.data.views import Batch, CropViews
from imc.errors import UserError
from imc.methods.method import Step

WARM_UP = 10  # ordinary steps first: libraries choose algorithms and allocate what they keep


class GraphedStep:
    """A training step: the first ones of this process are ordinary, then one is captured and replayed from then on.

    The random numbers of the crops and the learning rates are computed outside and copied into the graph's inputs.

    Args:
        compute: the step to capture: loss, gradients and the optimiser's update on crops.
        views: what makes the crops.
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
        self.ordinary = 0  # steps of this process: a run that goes on is warm in none of its libraries
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, batch: Batch, update: int) -> Step:
        """The update with this number; the tensors of a replayed step are overwritten by the next."""
        if self.ordinary < WARM_UP or update < self.freeze_updates:
            self.ordinary += 1
            return self.compute(self.views(batch, update))
        parameters = self.views.parameters(batch, update)
        if self.graph is None:
            self._inputs = [batch.positions.clone(), *(x.clone() for x in parameters)]
            self._capture(batch.images)
        for static, new in zip(self._inputs, [batch.positions, *parameters], strict=True):
            static.copy_(new)
        assert self.graph is not None
        self.graph.replay()
        return self._step

    def _capture(self, images: Tensor) -> None:
        positions, *parameters = self._inputs
        self.optimizer.zero_grad()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self._step = self.compute(self.views.render(images, positions, parameters))


def require_capturable(
    *, device: torch.device, world: int, remembers: bool, views: object, pixels: object
) -> CropViews:
    """A run's step can be a CUDA graph.

    Args:
        device: of the run.
        world: number of its ranks.
        remembers: whether the method has a bank or a queue.
        views, pixels: what makes the run's views, and what holds its images.

    Returns:
        The views.

    Raises:
        UserError: the run has something that a graph cannot hold.
    """
    for refused, reason in (
        (device.type != "cuda", "needs a CUDA device, and this run is on the CPU"),
        (world > 1, "works on one rank only"),
        (remembers, "cannot hold the bank or the queue, which change from step to step"),
        (not isinstance(views, CropViews), "needs --augmentation crops"),
        (not isinstance(pixels, ResidentPixels), "needs the data set on the device: --device-data on"),
    ):
        if refused:
            raise UserError(f"--cuda-graph {reason}")
    assert isinstance(views, CropViews)
    return views
