"""Batch normalisation whose statistics are per view."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from imc.text import counted
from imc_kernels import per_view_batch_norm
from imc_kernels.eager.distributed import sum_over
from imc_kernels.ops.per_view_batch_norm import update_running_statistics
from imc_kernels.ops.precision import at_least_single

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
        if self.training and self.group is not None:
            return _completed(self._over_group(input, views, self.group, *running, momenta), relu, residual)
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

    def _over_group(
        self,
        input: Tensor,
        views: int,
        group: ProcessGroup,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        momenta: Sequence[float],
    ) -> Tensor:
        if len(input) % views:
            rows = counted(len(input), "row{s} {is|are}")
            raise ValueError(f"PerViewBatchNorm: {rows} not {views} views of equal size")
        x = at_least_single(input).unflatten(0, (views, len(input) // views))  # [V, B, C, ...]
        channels, spatial = x.shape[2], [1] * (x.dim() - 3)
        rest = [dim for dim in range(1, x.dim()) if dim != 2]
        own = x.numel() // (views * channels)
        if group.size() == 1 and own < 2:
            raise ValueError(f"PerViewBatchNorm: a variance takes 2 values a channel and view, got {list(input.shape)}")

        def sum_over_rows(values: Tensor) -> Tensor:
            """[V, B, C, ...] -> the sums [V, C] of all processes, and behind them how many they are of."""
            return sum_over(functional.pad(values.sum(dim=rest).flatten(), (0, 1), value=own), group)

        # Two passes: the mean of squares minus the square of the mean would cancel.
        sums = sum_over_rows(x)
        count = sums[-1].detach()
        mean = (sums[:-1] / count).view(views, channels)
        centred = x - mean.view(views, 1, channels, *spatial)
        variance = (sum_over_rows(centred.square())[:-1] / count).view(views, channels)
        normalised = centred * (variance + self.eps).rsqrt().view(views, 1, channels, *spatial)
        if self.weight is not None:
            normalised = normalised * self.weight.view(channels, *spatial)
        if self.bias is not None:
            normalised = normalised + self.bias.view(channels, *spatial)
        if running_mean is not None and running_var is not None:
            update_running_statistics(running_mean, running_var, mean.detach(), variance.detach(), count, momenta)
        return normalised.flatten(0, 1).to(input.dtype)


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
