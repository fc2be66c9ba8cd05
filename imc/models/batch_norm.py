"""Batch normalisation whose statistics are per view."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm


class PerViewBatchNorm(_BatchNorm):
    """``nn.BatchNorm1d``/``2d`` over views that pass the layers around it as one batch.

    Equal to one pass of the standard module per view, in order: values, gradients, and running statistics, which are
    updated once per view. Parameters and buffers have the standard module's names.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() not in (2, 4):
            raise ValueError(f"PerViewBatchNorm takes [V*B, C] or [V*B, C, H, W], got {list(input.shape)}")

    def forward(self, input: Tensor, views: int = 1) -> Tensor:
        """Normalise [V*B, C] or [V*B, C, H, W], the V views one after the other along the first dimension."""
        self._check_input_dim(input)
        if not self.training:
            return super().forward(input)
        if len(input) % views:
            raise ValueError(f"PerViewBatchNorm: {len(input)} rows are not {views} views of equal size")
        assert self.momentum is not None, "PerViewBatchNorm has no cumulative average: it needs a momentum"
        parts = [
            functional.batch_norm(
                part, self.running_mean, self.running_var, self.weight, self.bias, True, self.momentum, self.eps
            )
            for part in input.chunk(views)
        ]
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(views)
        return torch.cat(parts)
