"""The figures of a run: each function draws one PNG file and says in words what it shows."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from imc.data import Images
from imc.metrics import best_matching, clustering_accuracy, confusion_matrix
from imc.pages import figures
from imc.pages.heatmaps import heatmaps
from imc.runs.model import LoadedRun
from imc.scores.evaluation import PLANE_IMAGES, Outputs, embeddings, evenly_spaced, plane
from imc.text import counted
from imc_kernels import prototype_scores

HEATMAPS = 8  # images in a row
NO_LABEL = "no label"


class Drawn(NamedTuple):
    """A PNG file and its text alternative."""

    path: Path
    alt: str


def draw_confusion(path: Path, images: Images, clusters: NDArray[np.int64], num_clusters: int) -> Drawn:
    """Classes against clusters, the clusters in the order of the classes they are matched to. Needs labels."""
    assert images.labels is not None
    labels, classes = images.labels.numpy(), len(images.class_names)
    matrix = confusion_matrix(labels, clusters, num_classes=classes, num_clusters=num_clusters)
    columns = _column_order(images, clusters, num_clusters).tolist()
    accuracy = clustering_accuracy(labels, clusters)
    title = f"{images.name}: {counted(matrix.sum(), 'image{s}')}, accuracy {accuracy:.1%}"
    figures.save_confusion(path, matrix, images.class_names, columns, title)
    found = f"{accuracy:.1%} lie in the cluster that is matched to their class"
    return Drawn(path, f"Confusion matrix of {counted(classes, 'class{es}')} and {num_clusters} clusters: {found}.")


def _column_order(images: Images, clusters: NDArray[np.int64], num_clusters: int) -> NDArray[np.int64]:
    """The clusters in the order of the classes that they are matched to, then the others."""
    matched = [cluster for _, cluster in _matching(images, clusters, num_clusters)]
    return np.array(matched + [cluster for cluster in range(num_clusters) if cluster not in matched])


def _matching(images: Images, clusters: NDArray[np.int64], num_clusters: int) -> list[tuple[int, int]]:
    """The pairs (class, cluster) of :func:`best_matching`."""
    assert images.labels is not None
    shape = {"num_classes": len(images.class_names), "num_clusters": num_clusters}
    return best_matching(confusion_matrix(images.labels.numpy(), clusters, **shape))


def class_of(images: Images, index: int) -> str:
    """The name of an image's class; where there are labels."""
    assert images.labels is not None
    label = int(images.labels[index])
    return NO_LABEL if label < 0 else images.class_names[label]


def draw_gallery(
    path: Path, images: Images, clusters: NDArray[np.int64], confidence: NDArray[np.float32], num_clusters: int
) -> Drawn:
    """One row per cluster, its most and its least certain images."""
    title = f"{images.name}: {counted(len(clusters), 'image{s}')} in {num_clusters} clusters"
    captions = [f"cluster {cluster}: {text}" for cluster, text in enumerate(describe(images, clusters, num_clusters))]
    assert images.shown is not None
    figures.save_gallery(path, images.shown.numpy(), clusters, confidence, captions, title)
    return Drawn(
        path, f"Gallery of {num_clusters} clusters, one a row: its most certain images, then its least certain."
    )


def describe(images: Images, clusters: NDArray[np.int64], num_clusters: int) -> list[str]:
    """A few words for each cluster: its size and, where there are labels, its most frequent class and its share."""
    sizes = np.bincount(clusters, minlength=num_clusters)
    texts = [f"{size:,}" if size else "empty" for size in sizes]
    if images.labels is not None:
        labels = images.labels.numpy()
        matrix = confusion_matrix(labels, clusters, num_classes=len(images.class_names), num_clusters=num_clusters)
        for cluster in np.flatnonzero(matrix.sum(axis=0)):
            majority = int(matrix[:, cluster].argmax())
            share = matrix[majority, cluster] / matrix[:, cluster].sum()
            texts[cluster] += f", {share:.0%} “{images.class_names[majority]}”"
    return texts


def prototype_winners(run: LoadedRun, images: torch.Tensor, batch_size: int) -> tuple[NDArray[np.int64], int] | None:
    """The nearest prototype of each image uint8 [M, H, W, C], and the number of prototypes; None if there are none."""
    layer = getattr(run.model, "prototypes", None)
    if layer is None:
        return None
    prototypes = layer.weight.detach()
    winners = [
        prototype_scores(points, prototypes).argmax(dim=1).cpu()
        for points in embeddings(run, images, batch_size=batch_size)
    ]
    return torch.cat(winners).numpy(), len(prototypes)


def draw_plane(path: Path, images: Images, result: Outputs, seed: int) -> Drawn:
    """The features in the plane, coloured by cluster and, where there are labels, by class; 2,000 images at most.

    A class and the cluster that is matched to it have one colour.
    """
    count, total = result.features.shape[0], result.probabilities.shape[1]
    chosen = evenly_spaced(count, PLANE_IMAGES)
    points = plane(result.features[chosen], seed)
    order, matched = np.arange(total), {}
    if images.labels is not None:
        order = _column_order(images, result.clusters, total)
        matched = {cluster: label for label, cluster in _matching(images, result.clusters, total)}
    # The classes' colours first, then those of clusters without a class.
    colours = iter(figures.palette(len(images.class_names) + total - len(matched)))
    of_class = [next(colours) for _ in images.class_names]
    names = [
        (f"cluster {cluster}", of_class[matched[cluster]] if cluster in matched else next(colours))
        for cluster in order.tolist()
    ]
    colourings = [("coloured by cluster", np.argsort(order)[result.clusters[chosen.numpy()]], names)]
    if images.labels is not None:
        labels = images.labels[chosen].numpy()
        classes = [
            *zip(images.class_names, of_class, strict=True),
            *([(NO_LABEL, "#d0d0d0")] if labels.min() < 0 else []),
        ]
        colourings.append(("coloured by class", np.where(labels < 0, len(of_class), labels), classes))
    figures.save_scatter(path, points, colourings)
    by = " and once more by class" if len(colourings) > 1 else ""
    shown = counted(len(points), "image{s}")
    return Drawn(path, f"Scatter plot (t-SNE) of the features of {shown}, coloured by cluster{by}.")


def draw_heatmaps(path: Path, run: LoadedRun, images: Images, result: Outputs, seed: int) -> Drawn:
    """Where the evidence for the cluster lies: in images clustered right and wrong, or without labels certain and not.

    Right is a cluster that is matched to the image's class. The images are drawn at random, with the seed.
    """
    groups = _right_and_wrong(images, result) if images.labels is not None else _certain_and_uncertain(result)
    random = np.random.default_rng(seed)
    rows = []
    for title, members in groups:
        if len(members) == 0:
            continue
        chosen = np.sort(random.choice(members, min(HEATMAPS, len(members)), replace=False))
        pixels = images.images[torch.from_numpy(chosen)]
        heat = heatmaps(run.model, run.prepare(pixels.to(run.device))).cpu().numpy()
        rows.append((title, pixels.numpy(), heat, [_caption(images, result, index) for index in chosen]))
    figures.save_heatmaps(path, rows)
    shown = "; ".join(f"{len(captions)} {title}" for title, _, _, captions in rows)
    return Drawn(path, f"Images and below each its heat-map of the evidence for its cluster: {shown}.")


def _right_and_wrong(images: Images, result: Outputs) -> list[tuple[str, NDArray[np.int64]]]:
    assert images.labels is not None
    labels, clusters = images.labels.numpy(), result.clusters
    cluster_of = dict(_matching(images, clusters, result.probabilities.shape[1]))
    right = np.array([cluster_of.get(label, -1) for label in labels]) == clusters
    wrong = ~right & (labels >= 0)
    return [("clustered right", np.flatnonzero(right)), ("clustered wrong", np.flatnonzero(wrong))]


def _certain_and_uncertain(result: Outputs) -> list[tuple[str, NDArray[np.int64]]]:
    order = np.argsort(-result.confidence, kind="stable")
    half = (len(order) + 1) // 2
    few = max(1, min(half, len(order) // 10))
    return [("among the most certain", order[:few]), ("among the least certain", order[len(order) - few :])]


def _caption(images: Images, result: Outputs, index: int) -> str:
    cluster = f"cluster {result.clusters[index]}"
    return cluster if images.labels is None else f"{class_of(images, index)}: {cluster}"
