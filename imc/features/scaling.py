"""Whether rows of numbers are what a network gave or were measured, by the numbers alone: it decides their scaling.

Of what a network gives the direction says what it sees, and the length little. Of pixels, counts and measurements the
length is part of what was measured; where they are in several units, the largest unit would decide alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

LOOKED_AT = 10_000  # rows
FEW_COLUMNS = 128  # networks give more
UNITS = 10.0  # the largest deviation of a column / the median one, from which columns are in several units


def fitting_scaling(rows: Tensor) -> str:
    """The value of ``--scaling`` for rows [M, D] of which nothing else is known.

    Returns:
        "none" for whole numbers of 0 and more, as pixels and counts are, and for fewer than :data:`FEW_COLUMNS` columns
        of one unit; "columns" where so few are in several units; else "length".
    """
    chosen = torch.linspace(0, len(rows) - 1, min(len(rows), LOOKED_AT), dtype=torch.float64).long()
    sample = rows[chosen].double()
    few = sample.shape[1] < FEW_COLUMNS
    deviation = sample.std(dim=0, correction=0)
    spread = deviation[deviation > 0]
    if few and len(spread) and float(spread.max() / spread.median()) > UNITS:
        return "columns"
    counted = bool((sample >= 0).all() and (sample == sample.round()).all())
    return "none" if few or counted else "length"
