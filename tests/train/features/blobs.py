"""Groups of points around distant centres."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def blobs(
    groups: int = 3, members: int = 30, columns: int = 8, seed: int = 0
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Rows float32 [groups * members, columns] in mixed order, and their groups."""
    random = np.random.default_rng(seed)
    centres = 6 * np.eye(groups, columns)
    labels = random.permutation(np.repeat(np.arange(groups), members))
    return (centres[labels] + random.normal(size=(len(labels), columns))).astype(np.float32), labels
