"""What a run writes at its end. The only place that reads the labels."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sklearn
import torch
from numpy.typing import NDArray

from imc.config import Config
from imc.data import Images
from imc.files.csv import Rows
from imc.files.json import write_json
from imc.files.run_places import FILES, RESULT
from imc.files.whole import replacing, written
from imc.machine.arithmetic import arithmetic, processor
from imc.metrics import SCORES, clustering_scores
from imc.pages.run_figures import draw_confusion, draw_gallery
from imc.scores.evaluation import UNSURE, kmeans_on_features, kmeans_on_pixels
from imc.text import counted, shell_word, visible
from imc_kernels.version import __version__


def write_results(
    folder: Path,
    config: Config,
    data: Images,
    clusters: NDArray[np.int64],
    confidence: NDArray[np.float32],
    train_seconds: float,
) -> dict[str, Any]:
    """Score the clusters and write labels.csv, confusion.png (with labels), gallery.png and result.json.

    Args:
        folder: where to.
        config: the resolved configuration.
        data: the images with their labels, if there are any.
        clusters, confidence: [M], of :class:`imc.scores.evaluation.Outputs`.
        train_seconds: wall time of the training loop.

    Returns:
        The content of result.json. Without labels the scores are None and k-means does not run; on features that of
        pixels runs where these are known.
    """
    labels = None if data.labels is None else data.labels.numpy()
    own: dict[str, float | None] = dict.fromkeys(SCORES)
    baseline: dict[str, float | None] = dict.fromkeys(SCORES)
    on_features: dict[str, float | None] = dict.fromkeys(SCORES) if data.are_features else {}
    assert config.clusters is not None
    if labels is not None:
        own.update(clustering_scores(labels, clusters))
        if data.shown is not None:
            baseline.update(clustering_scores(labels, kmeans_on_pixels(data.shown, config.clusters, config.seed)))
        if data.are_features:
            found = kmeans_on_features(data.images, config.clusters, config.seed, config.columns, config.scaling)
            on_features.update(clustering_scores(labels, found))
    result: dict[str, Any] = {
        **own,
        **{f"kmeans_{name}": value for name, value in baseline.items()},
        **{f"kmeans_features_{name}": value for name, value in on_features.items()},
        "train_seconds": round(train_seconds, 3),
        "clusters": config.clusters,
        "clusters_used": len(np.unique(clusters)),
        "images": len(clusters),
        "bn_recalibrate": "none",  # as in evaluation.json
        "data": data.name,
        "name": config.name,
        "method": config.method,
        "backend": config.backend,
        "seed": config.seed,
        "threads": config.threads,
        "versions": versions(),
        "arithmetic": arithmetic(torch.device(config.device), config.amp),
        "machine": machine(data.images.device),
    }
    with written(folder):
        _write_labels(folder / "labels.csv", data, clusters, confidence)
        if labels is not None:
            draw_confusion(folder / "confusion.png", data, clusters, config.clusters)
        if data.shown is not None:
            draw_gallery(folder / "gallery.png", data, clusters, confidence, config.clusters)
    write_json(folder / RESULT, result)
    return result


def versions() -> dict[str, str]:
    """The versions that decide a result."""
    return {
        "imc": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "scikit-learn": sklearn.__version__,
    }


def machine(device: torch.device) -> dict[str, Any]:
    """What the numbers of seconds belong to."""
    described: dict[str, Any] = {
        "system": platform.platform(terse=True),
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "device": str(device),
    }
    if device.type == "cuda":
        described["gpu"] = torch.cuda.get_device_name(device)
    return described


def table(result: dict[str, Any], folder: Path) -> str:
    """The end of a run as text: the scores beside those of k-means, the time, and the files written."""
    lines = []
    if result["acc"] is not None:
        lines.append(f"{'':20}{'ACC':>8}{'NMI':>8}{'ARI':>8}")
        method = {"imc-swav": "IMC-SwAV", "crlc": "CRLC", "temi": "TEMI"}[result["method"]]
        baselines = (("k-means on features", "kmeans_features_"), ("k-means on pixels", "kmeans_"))
        for title, prefix in ((method, ""), *baselines):
            if result.get(f"{prefix}acc") is None:
                continue
            scores = "".join(f"{result[prefix + name]:8.3f}" for name in SCORES)
            lines.append(f"{title:20}{scores}")
        better = (result.get("kmeans_features_acc") or 0) - result["acc"]
        if better > 0:
            lines.append(f"k-means on the features was better here, by {100 * better:.1f} points of ACC")
    lines.append(
        f"{result['train_seconds']:.1f} s of training, backend {result['backend']}, seed {result['seed']}, "
        f"{counted(result['threads'], 'thread{s}')}, {result['clusters_used']} of {result['clusters']} clusters used"
    )
    lines.append(f"{visible(str(folder))}: {' '.join(name for name in FILES if (folder / name).exists())}")
    lines.append(f"to look at it: imc report {shell_word(folder)}")
    return "\n".join(lines)


def _write_labels(path: Path, data: Images, clusters: NDArray[np.int64], confidence: NDArray[np.float32]) -> None:
    columns: dict[str, Sequence[Any]] = {
        "index": list(range(len(clusters))),
        "cluster": clusters.tolist(),
        "confidence": [f"{value:.6f}" for value in confidence],
    }
    if data.are_features:
        columns["unsure"] = [int(value < UNSURE) for value in confidence]
    if data.files is not None:
        columns["file"] = data.files
    if data.labels is not None:
        columns["label"] = data.labels.tolist()
    with replacing(path) as file:
        rows = Rows(file, list(columns))
        for row in zip(*columns.values(), strict=True):
            rows.add(*row)
