"""One page about a run, for the eye: curves, the images of every cluster, confusion, embeddings, the machine.

    imc report runs/birds                      # writes runs/birds/report.html and its figures under runs/birds/figures/
    imc report runs/birds --data other-birds   # the same run on other images

report.html stands alone: it can be mailed, and opens without a network, on a phone too. Labels are used where the data
set has them; nothing needs them.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imc import cli
from imc.command_line import arguments
from imc.command_line.options import argument, check, option
from imc.command_line.terminal import Stages, show
from imc.data import Dataset, Images
from imc.data.model_images import fit_for_model
from imc.files.json import read_json
from imc.files.paths import user_path
from imc.files.run_places import FIGURES, METRICS, RESULT
from imc.files.whole import replacing
from imc.machine.device import DEVICES, choose_device
from imc.machine.torch_state import turn
from imc.metrics import SCORES, clustering_scores, confusion_matrix, per_class_table
from imc.pages import page
from imc.pages.figures import most_and_least_certain
from imc.pages.run_figures import (
    Drawn,
    class_of,
    describe,
    draw_confusion,
    draw_counts,
    draw_curves,
    draw_heatmaps,
    draw_plane,
    prototype_winners,
)
from imc.runs.data import clustered, other_data, run_data
from imc.runs.files import read_metrics
from imc.runs.model import LoadedRun, load_run
from imc.scores.evaluation import AS_TRAINED, BATCH, Outputs, outputs
from imc.text import counted, inflected, visible

PAGE = "report.html"
PARTS = ("galleries", "embeddings", "evidence", "curves")  # as the progress bar calls them
SHOWN = 12  # images of a cluster that are most, and that are least certain
SHOWN_CLUSTERS = 100  # beyond this many, the largest are shown


@dataclass(frozen=True)
class Options:
    """The options of ``imc report``."""

    run: str = argument("RUN", "folder of a trained run")
    data: str | None = option(None, "report", "data set to show; default: what the run was trained on")
    labels_from_folders: bool = option(False, "report", "take the names of a folder's sub-folders as labels")
    device: str = option("auto", "machine", "where to run; auto: a GPU where there is one", choices=DEVICES)
    batch_size: int = option(BATCH, "machine", "images at a time; the result does not depend on it", at_least=1)


def main(argv: Sequence[str]) -> None:
    """The command: a run in, a page out."""
    show(visible(str(report(arguments.parse(Options, argv, program="imc report", description=__doc__ or "")))))


@turn()
def report(options: Options, data: Dataset | None = None) -> Path:
    """Write report.html and its figures into the folder of a run.

    Args:
        options: those of the command.
        data: the data set to use instead of loading it.

    Returns:
        The page.

    Raises:
        UserError: the folder holds no trained run, or its data set is not there.
    """
    check(options)
    folder = user_path(options.run)
    run = load_run(folder, choose_device(options.device))
    if data is None:
        data = other_data(folder, run.config, options.data, options.labels_from_folders)
    else:
        data = fit_for_model(run.config, run_data(run.config, data))
    images = clustered(run.config, data)
    result = outputs(run, images.images, batch_size=options.batch_size)
    pictures = folder / FIGURES
    pictures.mkdir(exist_ok=True)
    seed, total = run.config.seed, result.probabilities.shape[1]

    with Stages("report", PARTS) as stages:
        sections = [("Clusters", _clusters(images, result))]
        if images.labels is not None:
            confusion = draw_confusion(pictures / "confusion-train.png", images, result.clusters, total)
            sections.append(("Classes", _figure(confusion) + _classes(images, result)))
        stages.next()
        scatter = draw_plane(pictures / "embeddings.png", images, result, seed)
        caption = "t-SNE of the encoder's features: near points look alike to it."
        sections.append(("Embeddings", _figure(scatter, caption)))
        stages.next()
        if not images.are_features:
            evidence = draw_heatmaps(pictures / "heatmaps.png", run, images, result, seed)
            caption = "Grad-CAM: the warm parts of an image speak for the cluster that it was given."
            sections.append(("Evidence", _figure(evidence, caption)))
        stages.next()
        sections.append(("Training", _training(folder, pictures)))
        sections.append(("Use", _use(pictures, run, images, result)))
        sections.append(("Configuration", _configuration(folder, run)))
        stages.next()
    path = folder / PAGE
    name = run.config.name or folder.resolve().name
    title = name if name == images.name else f"{name}: {images.name}"
    with replacing(path) as file:
        file.write(page.page(title, _lead(data.note, images, result), sections))
    return path


def _lead(note: str, images: Images, result: Outputs) -> str:
    clusters, total = result.clusters, result.probabilities.shape[1]
    tiles = [
        (f"{len(clusters):,}", inflected(len(clusters), "image{s}")),
        (f"{len(np.unique(clusters))} of {total}", "clusters in use"),
    ]
    if images.labels is not None:
        scores = clustering_scores(images.labels.numpy(), clusters)
        tiles += [(f"{scores[score]:.3f}", score.upper()) for score in SCORES]
    tiles.append((f"{result.confidence.mean():.0%}", "mean confidence"))
    form = f"All of this page is by the model with {AS_TRAINED}, like labels.csv, predictions and exports."
    return page.paragraph(note, muted=True) + page.numbers(tiles) + page.paragraph(form, muted=True)


def _figure(drawn: Drawn, caption: str = "") -> str:
    return page.figure(drawn.path, drawn.alt, caption)


def _clusters(images: Images, result: Outputs) -> str:
    clusters, confidence = result.clusters, result.confidence
    texts = describe(images, clusters, result.probabilities.shape[1])
    sizes = np.bincount(clusters, minlength=len(texts))
    shown = np.sort(np.argsort(-sizes, kind="stable")[:SHOWN_CLUSTERS])
    parts = [page.paragraph("Of each cluster its most certain images, then its least certain ones.")]
    if len(shown) < len(texts):
        parts.append(page.paragraph(f"The {len(shown)} largest of {len(texts)} clusters.", muted=True))
    if not sizes.all():
        empty = ", ".join(map(str, np.flatnonzero(sizes == 0)))
        parts.append(page.paragraph(f"Without images: {empty}.", muted=True))
    for cluster in shown[sizes[shown] > 0]:
        most, least = most_and_least_certain(clusters, confidence, cluster, SHOWN)
        body = page.tag("h3", f"Cluster {cluster}: {page.escape(texts[cluster])}")
        for heading, members in (("most certain", most), ("least certain", least)):
            if len(members):
                caption = f"{heading}, {confidence[members[0]]:.0%} to {confidence[members[-1]]:.0%}"
                body += page.tag("p", caption, class_="muted") + _thumbnails(images, confidence, members)
        parts.append(page.tag("div", body, class_="cluster"))
    return "\n".join(parts)


def _thumbnails(images: Images, confidence: NDArray[np.float32], members: NDArray[np.int64]) -> str:
    def name(index: int) -> str:
        known = f"{images.sample} {index}" if images.files is None else images.files[index]
        label = "" if images.labels is None else f", class {class_of(images, index)}"
        return f"{known}{label}, confidence {confidence[index]:.0%}"

    if images.shown is None:
        return page.paragraph("; ".join(name(index) for index in members.tolist()))
    shown = images.shown
    return page.thumbnails((shown[index].numpy(), name(index)) for index in members.tolist())


def _classes(images: Images, result: Outputs) -> str:
    assert images.labels is not None
    shape = {"num_classes": len(images.class_names), "num_clusters": result.probabilities.shape[1]}
    table = per_class_table(confusion_matrix(images.labels.numpy(), result.clusters, **shape), images.class_names)
    rows = [
        (row["class"], row["images"], row["cluster"], f"{row['precision']:.1%}", f"{row['recall']:.1%}")
        for row in table
    ]
    return page.table(["class", "images", "cluster", "precision", "recall"], rows)


def _training(folder: Path, pictures: Path) -> str:
    metrics = read_metrics(folder / METRICS)
    if not metrics:
        return ""
    seconds = sum(line.get("seconds", 0) for line in metrics)
    caption = f"{counted(len(metrics), 'epoch{s}')} in {counted(round(seconds), 'second{s}')}."
    return _figure(draw_curves(pictures / "curves.png", metrics), caption)


def _use(pictures: Path, run: LoadedRun, images: Images, result: Outputs) -> str:
    total = result.probabilities.shape[1]
    body = _figure(draw_counts(pictures / "cluster-use.png", result.clusters, total, "cluster"))
    winners = prototype_winners(run, images.images)
    if winners is not None:
        body += _figure(draw_counts(pictures / "prototype-use.png", *winners, "prototype", ranked=True))
    return body


def _configuration(folder: Path, run: LoadedRun) -> str:
    path = folder / RESULT
    result = read_json(path) if path.exists() else {}
    parts = [part for part in (result.get("machine"), result.get("versions")) if isinstance(part, dict)]
    machine = {name: value for part in (*parts, {"backend": result.get("backend")}) for name, value in part.items()}
    config = [(name, _text(value)) for name, value in run.config.to_dict().items() if value is not None]
    return (
        page.tag("h3", "The machine of the training")
        + page.table(["what", "value"], [(name, _text(value)) for name, value in machine.items()])
        + page.tag("details", page.tag("summary", "Every option of the run") + page.table(["option", "value"], config))
    )


def _text(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)


if __name__ == "__main__":
    sys.exit(cli.main(["report", *sys.argv[1:]]))
