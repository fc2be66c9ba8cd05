"""Batch normalisation whose statistics are per view."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from imc_kernels import per_view_batch_norm

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


_together: ContextVar[list[tuple[Tensor, int]] | None] = ContextVar("counted_together", default=None)


@contextlib.contextmanager
def counted_together() -> Iterator[None]:
    """What every :class:`PerViewBatchNorm` counts within is added at the end, in one call."""
    counts: list[tuple[Tensor, int]] = []
    before = _together.set(counts)
    try:
        yield
    finally:
        _together.reset(before)
        views: dict[int, int] = {}
        for counter, more in counts:
            views[id(counter)] = views.get(id(counter), 0) + more
        counters = {id(counter): counter for counter, _ in counts}
        if counters:
            with torch.no_grad():
                torch._foreach_add_(list(counters.values()), [views[key] for key in counters])


class PerViewBatchNorm(_BatchNorm):
    """``nn.BatchNorm1d``/``2d``/``3d`` over views that pass the layers around it as one batch.

    Equal to one pass of the standard module per view, in order: values, gradients, and running statistics, which are
    updated once per view. Parameters and buffers have the standard module's names.

    Attributes:
        group: where set, the statistics of a view in training are those of its rows in all processes of the group,
            which may hold unequally many. Averaged over the processes, the gradients are those of the sum of all rows.
    """

    group: ProcessGroup | None = None

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"PerViewBatchNorm takes [V*B, C, ...], got {list(input.shape)}")

    def forward(self, input: Tensor, views: int = 1, relu: bool = False, residual: Tensor | None = None) -> Tensor:
        """Normalise [V*B, C, ...], the V views one after the other, and add the residual of the same shape; with
        ``relu`` then ``max(., 0)``."""
        self._check_input_dim(input)
        if not self.training and (self.running_mean is not None or self.running_var is not None):
            return _completed(super().forward(input), relu, residual)
        tracked = self.training and self.track_running_stats
        running = (self.running_mean, self.running_var) if tracked else (None, None)
        momenta = self._momenta(views) if tracked else [0.0] * views
        return per_view_batch_norm(
            input,
            self.weight,
            self.bias,
            views=views,
            running_mean=running[0],
            running_var=running[1],
            momentum=momenta,
            eps=self.eps,
            relu=relu,
            residual=residual,
            group=self.group if self.training else None,
        )

    def _momenta(self, views: int) -> list[float]:
        """Of each view, which is counted."""
        if self.num_batches_tracked is None:
            return [self.momentum or 0.0] * views
        if self.momentum is not None:
            if torch.compiler.is_compiling() or (together := _together.get()) is None:
                self.num_batches_tracked.add_(views)
            else:
                together.append((self.num_batches_tracked, views))
            return [self.momentum] * views
        self.num_batches_tracked.add_(views)
        count = int(self.num_batches_tracked)
        return [1 / (count - views + view) for view in range(1, views + 1)]


def _completed(normalised: Tensor, relu: bool, residual: Tensor | None) -> Tensor:
    output = normalised if residual is None else normalised + residual
    return functional.relu(output, inplace=True) if relu else output


def view_by_view(module: nn.Module, images: Tensor, views: int) -> Tensor:
    """Features float32 [V*B, F] by any module: in training the ``views`` pass it one after the other, so whatever batch
    normalisation it has sees one view at a time."""
    chunks = images.chunk(views) if module.training else (images,)
    return torch.cat([module(view).flatten(1) for view in chunks]).float()


def synchronise(model: nn.Module, group: ProcessGroup | None) -> None:
    """Let every :class:`PerViewBatchNorm` of the model have the statistics of all processes of the group."""
    for module in model.modules():
        if isinstance(module, PerViewBatchNorm):
            module.group = group
