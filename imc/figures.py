"""The figures of a report, as PNG files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

DPI = 150
GALLERY_ROWS = 50  # beyond this many clusters, the largest are shown
GALLERY_COLUMNS = 10
ANNOTATED_CLUSTERS = 20  # beyond this many, counts do not fit into the cells
INK, MUTED = "#1a1a1a", "#6b6b6b"


def save_confusion(
    path: Path, matrix: NDArray[np.int64], class_names: tuple[str, ...], columns: list[int], title: str
) -> None:
    """Draw a confusion matrix.

    Args:
        path: the PNG file.
        matrix: counts [classes, clusters].
        class_names: one per row.
        columns: the clusters in the order in which they are drawn.
        title: of the figure.
    """
    classes, clusters = len(class_names), len(columns)
    counts = matrix[:, columns]
    shares = counts / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    annotated = max(classes, clusters) <= ANNOTATED_CLUSTERS
    cell = 0.52 if annotated else 8 / max(classes, clusters)
    figure, axes = _figure(2.6 + cell * clusters, 1.8 + cell * classes)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_title(title, loc="left", fontsize=12, color=INK, pad=10)
    axes.set_xlabel("cluster, in the order of the class it is matched to")
    axes.set_ylabel("class")
    if annotated:
        axes.set_xticks(range(clusters), [str(column) for column in columns])
        axes.set_yticks(range(classes), class_names)
        for row, column in np.argwhere(counts > 0):
            colour = "white" if shares[row, column] > 0.55 else INK
            axes.text(column, row, f"{counts[row, column]}", ha="center", va="center", fontsize=9, color=colour)
        axes.set_xticks(np.arange(clusters + 1) - 0.5, minor=True)
        axes.set_yticks(np.arange(classes + 1) - 0.5, minor=True)
        axes.grid(which="minor", color="white", linewidth=1.5)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=axes, fraction=0.04, pad=0.03, format="{x:.0%}")
    bar.set_label("share of the class")
    bar.outline.set_visible(False)
    _save(figure, path)


def save_gallery(
    path: Path,
    images: NDArray[np.uint8],
    clusters: NDArray[np.int64],
    confidence: NDArray[np.float32],
    captions: list[str],
    title: str,
) -> None:
    """Draw one row per cluster: its most certain images left, its least certain ones right.

    Args:
        path: the PNG file.
        images: [M, H, W, C], grey or RGB.
        clusters: [M].
        confidence: [M], the probability of the cluster.
        captions: one per cluster, drawn at the left of its row.
        title: of the figure.
    """
    sizes = np.bincount(clusters, minlength=len(captions))
    rows = np.sort(np.argsort(-sizes, kind="stable")[:GALLERY_ROWS])
    height, width = images.shape[1] + 1, images.shape[2] + 1
    canvas = np.full((len(rows) * height - 1, (2 * GALLERY_COLUMNS + 1) * width - 1, images.shape[3]), 255, np.uint8)
    for position, cluster in enumerate(rows):
        members = np.flatnonzero(clusters == cluster)
        members = members[np.argsort(-confidence[members], kind="stable")]
        left = members[:GALLERY_COLUMNS]
        right = members[len(left) :][-GALLERY_COLUMNS:]
        for start, chosen in ((0, left), (2 * GALLERY_COLUMNS + 1 - len(right), right)):
            for column, index in enumerate(chosen, start):
                top, edge = position * height, column * width
                canvas[top : top + height - 1, edge : edge + width - 1] = images[index]

    tile = 0.4
    figure, axes = _figure(2.2 + tile * (2 * GALLERY_COLUMNS + 1), 1.1 + tile * len(rows))
    axes.imshow(
        canvas.squeeze(-1) if canvas.shape[-1] == 1 else canvas, cmap="gray", vmin=0, vmax=255, interpolation="nearest"
    )
    for position, cluster in enumerate(rows):
        axes.text(
            -0.6 * width,
            (position + 0.5) * height - 1,
            captions[cluster],
            ha="right",
            va="center",
            fontsize=9,
            color=INK if sizes[cluster] else MUTED,
        )
    for column, heading in ((0, "most certain"), (GALLERY_COLUMNS + 1, "least certain")):
        axes.text(column * width - 0.5, -0.35 * height, heading, ha="left", va="bottom", fontsize=10, color=MUTED)
    shown = "" if len(rows) == len(captions) else f" (the {len(rows)} largest of {len(captions)})"
    figure.suptitle(title + shown, x=0.02, ha="left", fontsize=12, color=INK)
    axes.axis("off")
    _save(figure, path)


def _figure(width: float, height: float):  # type: ignore[no-untyped-def]
    # Not pyplot: it would keep every figure in a global list and choose a display.
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots()


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, bbox_inches="tight", pad_inches=0.15, facecolor="white")
