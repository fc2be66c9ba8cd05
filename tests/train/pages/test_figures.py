from __future__ import annotations

import dataclasses
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure

from imc.data import Images
from imc.pages import figures
from imc.pages.run_figures import describe, draw_confusion, draw_heatmaps, draw_plane
from imc.runs.model import load_run
from imc.scores.evaluation import Outputs


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


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are drawn, instead of files."""
    figures_drawn: list[Figure] = []
    monkeypatch.setattr(figures, "_save", lambda figure, path: figures_drawn.append(figure))
    return figures_drawn


def axis_of(figure: Figure) -> Axes:
    figure.draw_without_rendering()
    return figure.axes[0]


def ticks(axes: Axes, which: str) -> dict[float, str]:
    """The texts that are seen, by their places."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    low, high = sorted(axes.get_xlim() if which == "x" else axes.get_ylim())
    places = zip(axis.get_majorticklocs(), axis.get_majorticklabels(), strict=True)
    return {place: text.get_text() for place, text in places if low <= place <= high}


def some_images(classes: int, labels: np.ndarray) -> Images:
    pixels = torch.zeros(len(labels), 4, 4, 1, dtype=torch.uint8)
    return Images("x", pixels, torch.from_numpy(labels), tuple(f"class {label}" for label in range(classes)))


@pytest.mark.parametrize(("classes", "clusters"), [(3, 3), (3, 6), (6, 3), (12, 10), (30, 25), (10, 90), (90, 10)])
def test_rows_and_columns_of_a_confusion_are_named(classes: int, clusters: int, drawn: list[Figure]) -> None:
    random = np.random.default_rng(1)
    assigned = random.integers(clusters, size=600)
    images = some_images(classes, assigned * 7 % classes)
    draw_confusion(Path("x"), images, assigned, clusters)
    axes = axis_of(drawn[0])
    shares = np.asarray(axes.images[0].get_array())
    rows, columns = ticks(axes, "y"), ticks(axes, "x")
    assert min(len(rows), len(columns)) >= min(classes, clusters, 20)
    for row, name in rows.items():
        of_class = images.labels.numpy() == int(name.removeprefix("class "))
        for column, number in columns.items():
            expected = (of_class & (assigned == int(number))).sum() / max(1, of_class.sum())
            assert shares[int(row), int(column)] == pytest.approx(expected)


def colours_by_name(axes: Axes) -> dict[str, tuple[float, ...]]:
    return {
        str(group.get_label()): tuple(group.get_facecolor()[0][:3])
        for group in axes.collections
        if isinstance(group, PathCollection)
    }


@pytest.mark.parametrize(("classes", "clusters"), [(3, 3), (3, 6), (6, 3), (10, 12), (25, 22)])
def test_a_class_and_its_cluster_have_one_colour_and_no_other(
    classes: int, clusters: int, drawn: list[Figure], monkeypatch: pytest.MonkeyPatch
) -> None:
    assigned = np.arange(300) % clusters
    # Cluster c is that of class classes - 1 - c, as far as there are classes.
    images = some_images(classes, np.maximum(classes - 1 - assigned, 0))
    # t-SNE takes seconds.
    monkeypatch.setattr("imc.pages.run_figures.plane", lambda features, seed: features.numpy()[:, :2])
    features, probabilities = torch.randn(300, 3), torch.eye(clusters)[torch.from_numpy(assigned)]
    draw_plane(Path("x"), images, Outputs(features, probabilities, torch.empty(300, 0)), seed=0)
    by_cluster, by_class = (colours_by_name(axes) for axes in drawn[0].axes)
    assert len(set(by_cluster.values())) == clusters
    assert len(set(by_class.values())) == classes
    for cluster in range(min(classes, clusters) - 1):
        assert by_cluster[f"cluster {cluster}"] == by_class[f"class {classes - 1 - cluster}"]
    shared = set(by_cluster.values()) & set(by_class.values())
    assert len(shared) == min(classes, clusters)


def test_images_without_a_label_are_of_no_class(drawn: list[Figure], trained: Path, digits: Images) -> None:
    labels = digits.labels.clone()
    labels[::2] = -1
    images = dataclasses.replace(digits, labels=labels)
    assigned = digits.labels.numpy()
    result = Outputs(digits.images.flatten(1).float(), torch.eye(10)[digits.labels], torch.empty(192, 0))
    assert describe(images, assigned, 10) == describe(digits, assigned, 10)
    draw_confusion(Path("x"), images, assigned, 10)
    assert axis_of(drawn[-1]).get_title(loc="left") == "digits: 96 images, accuracy 100.0%"
    draw_plane(Path("x"), images, result, seed=0)
    assert len(drawn[-1].axes[1].collections[-1].get_offsets()) == 96
    assert drawn[-1].axes[1].collections[-1].get_label() == "no label"
    alt = draw_heatmaps(Path("x"), load_run(trained), images, result, seed=0).alt
    assert alt.endswith("8 clustered right.")  # none is wrong
