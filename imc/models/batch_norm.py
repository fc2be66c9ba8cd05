"""Batch normalisation whose statistics are per view."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from imc_kernels import per_view_batch_norm
from imc_kernels.eager.distributed import sum_over
from imc_kernels.ops.per_view_batch_norm import update_running_statistics

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class PerViewBatchNorm(_BatchNorm):
    """``nn.BatchNorm1d``/``2d`` over views that pass the layers around it as one batch.

    Equal to one pass of the standard module per view, in order: values, gradients, and running statistics, which are
    updated once per view. Parameters and buffers have the standard module's names.

    Attributes:
        group: where set, the statistics of a view are those of its rows in all processes of the group, which must hold
            equally many.
    """

    group: ProcessGroup | None = None

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() not in (2, 4):
            raise ValueError(f"PerViewBatchNorm takes [V*B, C] or [V*B, C, H, W], got {list(input.shape)}")

    def forward(self, input: Tensor, views: int = 1, relu: bool = False) -> Tensor:
        """Normalise [V*B, C] or [V*B, C, H, W], the V views one after the other; with ``relu`` then ``max(., 0)``."""
        self._check_input_dim(input)
        if not self.training:
            output = super().forward(input)
            return functional.relu(output, inplace=True) if relu else output
        assert self.momentum is not None, "PerViewBatchNorm has no cumulative average: it needs a momentum"
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(views)
        if self.group is not None:
            output = self._over_group(input, views, self.group)
            return functional.relu(output, inplace=True) if relu else output
        return per_view_batch_norm(
            input,
            self.weight,
            self.bias,
            views=views,
            running_mean=self.running_mean,
            running_var=self.running_var,
            momentum=self.momentum,
            eps=self.eps,
            relu=relu,
        )

    def _over_group(self, input: Tensor, views: int, group: ProcessGroup) -> Tensor:
        x = input.float().unflatten(0, (views, -1))  # [V, B, C] or [V, B, C, H, W]
        rest = [dim for dim in range(1, x.dim()) if dim != 2]
        # Two passes: the mean of squares minus the square of the mean would cancel.
        mean = sum_over(x.mean(dim=rest, keepdim=True), group) / group.size()
        centred = x - mean
        variance = sum_over(centred.square().mean(dim=rest, keepdim=True), group) / group.size()
        normalised = centred * (variance + self.eps).rsqrt()
        if self.weight is not None:
            shape = (-1, *[1] * (x.dim() - 3))
            normalised = normalised * self.weight.view(shape) + self.bias.view(shape)
        if self.running_mean is not None and self.running_var is not None:
            count = x.numel() // (views * x.shape[2]) * group.size()
            statistics = (mean.detach().view(views, -1), variance.detach().view(views, -1))
            update_running_statistics(self.running_mean, self.running_var, *statistics, count, self.momentum or 0.0)
        return normalised.flatten(0, 1).to(input.dtype)


def synchronise(model: nn.Module, group: ProcessGroup | None) -> None:
    """Let every :class:`PerViewBatchNorm` of the model have the statistics of all processes of the group."""
    for module in model.modules():
        if isinstance(module, PerViewBatchNorm):
            module.group = group
