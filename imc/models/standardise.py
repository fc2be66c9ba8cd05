"""The encoder of features that are given: it scales them, and has nothing to learn."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

SCALINGS = ("length", "columns", "none")
BLOCK = 4096  # rows
# Rows whose largest number is beyond these are multiplied by a power of two first, which rounds nothing: their squares
# would leave float32.
LARGE, LARGE_FACTOR, TINY, TINY_FACTOR = 2.0**40, 2.0**-76, 2.0**-36, 2.0**88


def directions(rows: Tensor) -> Tensor:
    """Rows [N, D] divided by their lengths, whatever these are; a row of zeros stays one."""
    largest = rows.abs().amax(dim=1, keepdim=True)
    factor = torch.where(largest > LARGE, LARGE_FACTOR, torch.where(largest < TINY, TINY_FACTOR, 1.0)).to(rows.dtype)
    return functional.normalize(rows * factor, dim=1)


def standardise_of(encoder: nn.Module) -> Standardise | None:
    """What scales the features of an encoder that is kept, or trained further: itself, or its last part."""
    found = encoder if isinstance(encoder, Standardise) else getattr(encoder, "standardise", None)
    return found if isinstance(found, Standardise) else None


class Standardise(nn.Module):
    """Rows [N, D] of any real dtype -> float32 [N, D], of mean 0 and mean square 1 over the rows of :meth:`fit`.

    Args:
        columns: of each file whose rows lie side by side; D is their sum.
        scaling: "length": first each file's part of a row is divided by its length, for what networks give;
            "columns": each column is divided by its own deviation, for measurements in several units; "none": neither.

    Attributes:
        feature_dim: D.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, columns: Sequence[int], scaling: str) -> None:
        super().__init__()
        self.columns = list(columns)
        self.feature_dim = sum(columns)
        self.scaling = scaling
        self.register_buffer("mean", torch.zeros(self.feature_dim, dtype=torch.float32))
        self.register_buffer("scale", torch.ones(self.feature_dim, dtype=torch.float32))

    def forward(self, rows: Tensor, views: int = 1) -> Tensor:
        return (self._lengths(rows) - self.mean) * self.scale

    def _lengths(self, rows: Tensor) -> Tensor:
        rows = rows.float()
        if self.scaling != "length":
            return rows
        if len(self.columns) == 1:
            return directions(rows)
        return torch.cat([directions(part) for part in rows.split(self.columns, dim=1)], dim=1)

    @property
    def is_flat(self) -> bool:
        """Whether all rows of :meth:`fit` were the same, as they are scaled."""
        return not bool(self.scale.any())

    @torch.no_grad()
    def fit(self, rows: Tensor) -> None:
        """Take mean and scale from rows [M, D], block by block. A column, or a matrix, without spread stays 0."""
        # Two passes: a column of 10^6 +- 1 would lose its spread in a difference of sums of squares.
        mean, variance = (torch.zeros(self.feature_dim, dtype=torch.float64) for _ in range(2))
        for block in rows.split(BLOCK):
            mean += self._lengths(block).double().sum(dim=0) / len(rows)
        for block in rows.split(BLOCK):
            variance += (self._lengths(block).double() - mean).square().sum(dim=0) / len(rows)
        if self.scaling != "columns":
            variance = variance.mean().expand(self.feature_dim)
        deviation = variance.sqrt()
        # Of equal numbers the rounding of their mean is left, which is no spread.
        flat = deviation <= 1e-6 * mean.abs().max().clamp_min(1e-30)
        self.mean.copy_(mean)
        self.scale.copy_(torch.where(flat, 0.0, 1 / deviation.clamp_min(1e-38)))
