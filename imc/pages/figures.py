"""Figures, as PNG files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imc.files.whole import replacing
from imc.pages.figure_text import LONGEST_TITLE, choose_fonts, drawable, in_plain_style
from imc.pages.plain_matplotlib import (
    Figure,
    FigureCanvasAgg,
    MaxNLocator,
    NullLocator,
    PercentFormatter,
    colormaps,
)

DPI = 150
GALLERY_ROWS = 50  # beyond this many clusters, the largest are shown
GALLERY_COLUMNS = 10
ANNOTATED_CLUSTERS = 20  # beyond this many, counts do not fit into the cells
NAMED = 40  # names on an axis; beyond this many, they do not fit below each other
Panel = tuple[str, Sequence[str], str]
INK, MUTED = "#1a1a1a", "#6b6b6b"


@in_plain_style
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
    axes.set_title(drawable(title, LONGEST_TITLE), loc="left", fontsize=12, color=INK, pad=10)
    axes.set_xlabel("cluster, in the order of the class it is matched to")
    axes.set_ylabel("class")
    _name_ticks(axes.set_xticks, list(map(str, columns)))
    _name_ticks(axes.set_yticks, [drawable(name) for name in class_names])
    if annotated:
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


@in_plain_style
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
        left, right = most_and_least_certain(clusters, confidence, cluster, GALLERY_COLUMNS)
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
            drawable(captions[cluster]),
            ha="right",
            va="center",
            fontsize=9,
            color=INK if sizes[cluster] else MUTED,
        )
    for column, heading in ((0, "most certain"), (GALLERY_COLUMNS + 1, "least certain")):
        axes.text(column * width - 0.5, -0.35 * height, heading, ha="left", va="bottom", fontsize=10, color=MUTED)
    shown = "" if len(rows) == len(captions) else f" (the {len(rows)} largest of {len(captions)})"
    figure.suptitle(drawable(title, LONGEST_TITLE) + shown, x=0.02, ha="left", fontsize=12, color=INK)
    axes.axis("off")
    _save(figure, path)


def most_and_least_certain(
    clusters: NDArray[np.int64], confidence: NDArray[np.float32], cluster: int, count: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The indices of a cluster's ``count`` most certain images and, of the others, of its ``count`` least certain ones.

    Both are in the order of falling confidence [M] and hold fewer where the cluster does.
    """
    members = np.flatnonzero(clusters == cluster)
    members = members[np.argsort(-confidence[members], kind="stable")]
    return members[:count], members[count:][-count:]


@in_plain_style
def save_curves(
    path: Path, metrics: Sequence[Mapping[str, Any]], panels: Sequence[Panel], *, over: str = "epoch"
) -> None:
    """Draw numbers over the epochs, or over another integer, one panel under the other.

    Args:
        path: the PNG file.
        metrics: one mapping per point, such as a line of metrics.jsonl.
        panels: (title, names of the numbers, unit); names that no point has are left out, and panels without any.
        over: the name of the integer.
    """
    present = {name for line in metrics for name in line}
    shown = [(title, [name for name in names if name in present], unit) for title, names, unit in panels]
    shown = [panel for panel in shown if panel[1]]
    figure, axes = _figure(7, 0.5 + 2.0 * len(shown), rows=len(shown))
    for panel, (title, names, unit) in zip(np.atleast_1d(axes), shown, strict=True):
        for position, name in enumerate(names):
            points = [(line[over], line[name]) for line in metrics if name in line]
            marker = "o" if len(points) == 1 or over != "epoch" else None
            panel.plot(*zip(*points, strict=True), color=f"C{position}", label=name, linewidth=1.6, marker=marker)
        panel.set_title(title, loc="left", fontsize=11, color=INK)
        panel.set_ylabel(unit)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.grid(color="#e6e6e6", linewidth=0.8)
        panel.spines[["top", "right"]].set_visible(False)
        panel.legend(frameon=False, fontsize=9)
    np.atleast_1d(axes)[-1].set_xlabel(over)
    _save(figure, path)


@in_plain_style
def save_scatter(
    path: Path,
    points: NDArray[np.floating[Any]],
    colourings: Sequence[tuple[str, NDArray[np.int64], Sequence[tuple[str, Any]]]],
) -> None:
    """Draw points of the plane once per colouring, such as by cluster and by class.

    Args:
        path: the PNG file.
        points: [M, 2].
        colourings: (title, group of each point [M], name and colour of each group). Up to 20 names go into a legend.
    """
    figure, axes = _figure(7, 6 * len(colourings), rows=len(colourings))
    for panel, (title, groups, names) in zip(np.atleast_1d(axes), colourings, strict=True):
        size = np.clip(12000 / max(len(points), 1), 3, 30)
        dots = [
            panel.scatter(*points[groups == group].T, s=size, color=colour, label=name, linewidths=0, alpha=0.8)
            for group, (name, colour) in enumerate(names)
        ]
        panel.set_title(title, loc="left", fontsize=12, color=INK)
        panel.set_xticks([])
        panel.set_yticks([])
        panel.spines[:].set_color("#d0d0d0")
        if len(names) <= ANNOTATED_CLUSTERS:
            legend = panel.legend(
                dots,
                ["."] * len(dots),
                loc="upper center",
                bbox_to_anchor=(0.5, 0),
                ncols=5,
                frameon=False,
                fontsize=9,
                markerscale=2.5,
            )
            # Not as labels, of which matplotlib leaves out those that begin with an underscore.
            for entry, name in zip(legend.get_texts(), [name for name, _ in names], strict=True):
                entry.set_text(drawable(name))
    _save(figure, path)


@in_plain_style
def save_heatmaps(
    path: Path, rows: Sequence[tuple[str, NDArray[np.uint8], NDArray[np.float32], Sequence[str]]]
) -> None:
    """Draw images, each above itself under its heat-map.

    Args:
        path: the PNG file.
        rows: (title, images [N, H, W, C], heat [N, h, w] in 0..1, captions [N]).
    """
    columns = max(len(images) for _, images, _, _ in rows)
    figure = Figure(figsize=(1.15 * columns, 2.75 * len(rows)), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    parts = figure.subfigures(len(rows), 1, squeeze=False)
    for part, (title, images, heat, captions) in zip(parts.flat, rows, strict=True):
        part.suptitle(title, x=0.01, ha="left", fontsize=11, color=INK)
        axes = part.subplots(2, columns, squeeze=False)
        for axis in axes.flat:
            axis.axis("off")
        for column, (image, warmth, caption) in enumerate(zip(images, heat, captions, strict=True)):
            grey = image if image.shape[-1] == 3 else np.repeat(image, 3, axis=-1)
            extent = (0, grey.shape[1], grey.shape[0], 0)
            for axis in axes[:, column]:
                axis.imshow(grey, interpolation="nearest", extent=extent)
            axes[1, column].imshow(
                warmth, cmap="inferno", vmin=0, vmax=1, alpha=0.6, interpolation="bilinear", extent=extent
            )
            axes[0, column].set_title(drawable(caption), fontsize=7, color=MUTED, pad=2)
    _save(figure, path)


@in_plain_style
def save_accuracy_by_images(path: Path, runs: Sequence[tuple[int, float]], title: str) -> None:
    """Draw accuracy against the number of training images: each run a dot, the mean of each number a line.

    Args:
        path: the PNG file.
        runs: (number of training images, accuracy in 0..1) of each run.
        title: of the figure.
    """
    numbers = sorted({images for images, _ in runs})
    means = [float(np.mean([accuracy for images, accuracy in runs if images == number])) for number in numbers]
    figure, axes = _figure(6, 3.6)
    axes.plot(numbers, means, color="C0", linewidth=1.6, label="mean")
    axes.scatter(*zip(*runs, strict=True), s=18, color="C0", alpha=0.6, linewidths=0, label="one run")
    axes.set_xscale("log")
    axes.set_xticks(numbers, [f"{number:,}" for number in numbers])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_title(drawable(title, LONGEST_TITLE), loc="left", fontsize=12, color=INK)
    axes.set_xlabel("training images")
    axes.set_ylabel("accuracy")
    axes.grid(color="#e6e6e6", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    _save(figure, path)


def palette(count: int) -> list[Any]:
    """So many colours that are told apart as well as they can be."""
    if count <= 10:
        return list(colormaps["tab10"].colors[:count])  # type: ignore[attr-defined]
    if count <= 20:
        return list(colormaps["tab20"].colors[:count])  # type: ignore[attr-defined]
    return list(colormaps["turbo"](np.linspace(0, 1, count)))


def _name_ticks(set_ticks: Callable[..., object], names: Sequence[str]) -> None:
    """Every name at its position; of too many every second, third, ..."""
    shown = range(0, len(names), -(-len(names) // NAMED))
    set_ticks(shown, [names[position] for position in shown], fontsize=10 if len(names) <= ANNOTATED_CLUSTERS else 7)


def _figure(width: float, height: float, rows: int = 1, columns: int = 1):  # type: ignore[no-untyped-def]
    # Not pyplot: it would keep every figure in a global list and choose a display.
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns)


def _save(figure: Figure, path: Path) -> None:
    choose_fonts(figure)
    with replacing(path, binary=True) as file:
        figure.savefig(file, format="png", bbox_inches="tight", pad_inches=0.15, facecolor="white")
