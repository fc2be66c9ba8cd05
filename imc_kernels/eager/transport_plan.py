"""Entropic optimal transport between rows and columns of any mass (Cuturi, arXiv 1306.0895), also where mass may be
made and lost (Chizat et al., arXiv 1607.05816), by logarithms. An entry of -inf is excluded, exactly."""

import torch
from torch import Tensor


def column_scalings(
    scores: Tensor, log_rows: Tensor, log_columns: Tensor, iterations: int, tolerance: float, damping: float
) -> Tensor:
    """Scores over epsilon [..., B, K], logarithms of masses [..., B] and [..., K] -> those of the columns' scalings,
    [..., K], after ``iterations`` scalings of columns, then rows, but for the last of the rows.

    A problem stops where the next scaling of its columns would move no more than ``tolerance`` of their mass.
    """
    mass = log_columns.exp().sum(dim=-1, keepdim=True)
    rows = torch.where(log_rows > -torch.inf, 0 * log_rows.exp(), -torch.inf)
    columns, done = log_columns, None
    for _ in range(iterations):
        sums = log_sum(scores + rows.unsqueeze(-1), dim=-2)
        scaled = scaling(log_columns, sums, damping)
        if done is None:
            columns, done = scaled, torch.zeros_like(mass, dtype=torch.bool)
        else:
            moved = ((columns + sums).exp() - (scaled + sums).exp()).abs().sum(dim=-1, keepdim=True)
            done = done | (moved <= tolerance * mass)  # a device's host does not wait to know
            columns = torch.where(done, columns, scaled)
        rows = row_scalings(scores, columns, log_rows, damping)
    return columns


def row_scalings(scores: Tensor, columns: Tensor, log_rows: Tensor, damping: float) -> Tensor:
    """Their logarithms [..., B] after those of the columns [..., K]."""
    return scaling(log_rows, log_sum(scores + columns.unsqueeze(-2), dim=-1), damping)


def scaling(log_mass: Tensor, sums: Tensor, damping: float) -> Tensor:
    """The logarithm of what scales sums, given by theirs, to a mass; -inf, that of 0, where all is excluded."""
    return (log_mass - damping * sums).masked_fill(sums == -torch.inf, -torch.inf)


def log_sum(x: Tensor, dim: int) -> Tensor:
    """torch.logsumexp, with a gradient of 0 where it is -inf; torch's is NaN there."""
    excluded = (x == -torch.inf).all(dim=dim)
    return x.masked_fill(excluded.unsqueeze(dim), 0).logsumexp(dim=dim).masked_fill(excluded, -torch.inf)
