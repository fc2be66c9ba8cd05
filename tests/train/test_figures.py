from __future__ import annotations

from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from imc import figures


@pytest.mark.parametrize(("clusters", "channels"), [(3, 1), (4, 3), (60, 1)])
def test_gallery(clusters: int, channels: int, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    assigned = random.integers(max(1, clusters - 1), size=80)  # the last cluster is empty
    figures.save_gallery(
        tmp_path / "gallery.png",
        random.integers(256, size=(80, 8, 8, channels)).astype(np.uint8),
        assigned,
        random.random(80, dtype=np.float32),
        [f"cluster {cluster}" for cluster in range(clusters)],
        "80 images",
    )
    assert matplotlib.image.imread(tmp_path / "gallery.png").std() > 0.02  # not blank


@pytest.mark.parametrize(("classes", "clusters"), [(3, 3), (3, 5), (40, 30)])
def test_confusion(classes: int, clusters: int, tmp_path: Path) -> None:
    matrix = np.random.default_rng(0).integers(50, size=(classes, clusters))
    matrix[0] = 0  # a class without images
    names = tuple(f"class {label}" for label in range(classes))
    figures.save_confusion(tmp_path / "confusion.png", matrix, names, list(range(clusters)), "random")
    assert matplotlib.image.imread(tmp_path / "confusion.png").std() > 0.02  # not blank
