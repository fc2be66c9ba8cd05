"""A picture of what is found in features, beside k-means on the same: a map of the rows, in the clusters' colours.

    imc embed imagenette --encoder efficientnet-lite0 --out imagenette.npy
    python benchmarks/clusters_map.py imagenette.npy --out docs/photographs-map.png

FEATURES is what ``imc embed`` wrote, or an .npz of features and labels. Of each of --classes the first --each rows are
clustered by ``imc train --features``. The map (t-SNE of the features) knows neither clusters nor classes; a cluster has
the colour of the class that it is matched to, and a ring marks a row whose class is another. No photograph is shown.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from features import EACH, stored_source
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from imc.command_line import arguments
from imc.command_line.options import argument, option
from imc.command_line.terminal import silence
from imc.config import Config
from imc.data.folder_sets import IMAGENETTE
from imc.features.files import read_features
from imc.metrics import best_matching, clustering_accuracy, confusion_matrix
from imc.pages.figures import palette
from imc.runs.model import load_run
from imc.scores.evaluation import kmeans_on_features, outputs, plane
from imc.train import train


@dataclass(frozen=True)
class Options:
    """What is drawn."""

    source: str = argument("FEATURES", "what imc embed wrote, or an .npz of features and labels")
    out: str = option("photographs-map.png", "benchmark", "the PNG file", path=True)
    classes: tuple[int, ...] = option((2, 3, 5, 6, 7), "benchmark", "which classes; the names are Imagenette's")
    each: int = option(EACH, "benchmark", "rows of a class", at_least=2)
    seed: int = option(0, "benchmark", "of the run, k-means and the map", at_least=0)


def main(argv: Sequence[str]) -> None:
    """Cluster, and draw."""
    options = arguments.parse(Options, argv, program="python benchmarks/clusters_map.py", description=__doc__ or "")
    with tempfile.TemporaryDirectory() as folder:
        data = read_features([stored_source(options.source, folder)]).train
    assert data.labels is not None
    every = data.labels.numpy()
    rows = np.concatenate([np.flatnonzero(every == label)[: options.each] for label in options.classes])
    features, count = data.images[rows], len(options.classes)
    labels = np.searchsorted(np.sort(options.classes), every[rows])
    names = [list(IMAGENETTE.values())[label] for label in sorted(options.classes)]
    with tempfile.TemporaryDirectory() as folder, silence():
        path = Path(folder) / "features.npy"
        np.save(path, features.numpy())
        run_folder = str(Path(folder) / "run")
        train(Config(features=(str(path),), clusters=count, seed=options.seed, out=run_folder), report=False)
        run = load_run(run_folder)
        found = outputs(run, features).clusters
        baseline = kmeans_on_features(features, count, options.seed, run.config.columns, run.config.scaling)
    draw(
        Path(options.out),
        plane(features, options.seed),
        labels,
        names,
        {"k-means on the features": baseline, "imc train": found},
    )


def draw(
    path: Path,
    points: NDArray[np.floating[Any]],
    labels: NDArray[np.int64],
    names: Sequence[str],
    clusterings: dict[str, NDArray[np.int64]],
) -> None:
    """A panel for each clustering [M] of points [M, 2], by its title; classes [M] are numbers of ``names``."""
    figure = Figure(figsize=(4.2 * len(clusterings), 4.2), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    colours, count = palette(len(names)), len(names)
    panels = figure.subplots(1, len(clusterings), squeeze=False)[0]
    for axes, (title, clusters) in zip(panels, clusterings.items(), strict=True):
        matrix = confusion_matrix(labels, clusters, num_classes=count, num_clusters=count)
        class_of = {cluster: label for label, cluster in best_matching(matrix)}
        said = np.array([class_of[cluster] for cluster in clusters])
        for label, name in enumerate(names):
            own = said == label
            axes.scatter(*points[own].T, s=14, color=colours[label], linewidths=0, label=name)
        wrong = said != labels
        axes.scatter(*points[wrong].T, s=30, facecolors="none", edgecolors="#1a1a1a", linewidths=0.8)
        accuracy = clustering_accuracy(labels, clusters)
        axes.set_title(f"{title}: ACC {accuracy:.3f}, {int(wrong.sum())} of {len(labels)} misplaced", fontsize=10)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_color("#d0d0d0")
    handles, texts = axes.get_legend_handles_labels()
    figure.legend(handles, texts, loc="outside lower center", ncols=count, frameon=False, fontsize=9, markerscale=1.6)
    figure.savefig(path, format="png", facecolor="white")


if __name__ == "__main__":
    main(sys.argv[1:])
