"""Train with several numbers of clusters, where the number is not known.

    imc clusters-sweep my/photos --clusters 5 10 15 20              # writes runs/photos-clusters/
    imc clusters-sweep my/photos --clusters 5 10 --seeds 0 1 2      # each number with three seeds
    imc clusters-sweep digits --clusters 8 10 12 --epochs 20        # every flag of imc train that is listed below

A run that is done is kept: the same command goes on after an interruption, and further numbers add to what is there.
The folder holds

    clusters-sweep.csv     one line per run
    clusters-sweep.json    the same, the means by number of clusters, and how to read them
    clusters-sweep.png     the means as curves
    clusters-10-seed-0/    a run, which imc report, predict and export take; and so on

Nothing here reads labels but the columns acc, nmi and ari, where there are any.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import silhouette_score
from torch import Tensor

from imc import cli
from imc.command_line import arguments
from imc.command_line.options import argument, check, option
from imc.command_line.terminal import show
from imc.config import Config
from imc.data import NAMES, Images, name_of
from imc.data.options import A_SOURCE
from imc.errors import UserError
from imc.files.csv import Rows
from imc.files.json import write_json
from imc.files.paths import user_path
from imc.files.run_places import RUNS
from imc.files.whole import replacing
from imc.machine.device import choose_device
from imc.machine.torch_state import turn
from imc.metrics import SCORES
from imc.pages import figures
from imc.runs.data import clustered
from imc.runs.model import LoadedRun, load_run
from imc.runs.preview import preview
from imc.scores.evaluation import embeddings, evenly_spaced, outputs
from imc.several_runs import SET_HERE, agreement, clusters_of, load_once, train_each
from imc.text import shortened, visible

SWEEP = "clusters-sweep"  # of the files
SILHOUETTE_IMAGES = 2000  # evenly spaced; its cost grows with the square
DISAGREEMENT = 0.5  # of seeds, as the adjusted Rand index; a convention: half of what equal clusterings have
MEASURES = ("silhouette", "cluster_entropy", "prediction_entropy", "mutual_information", "clusters_used")
HOW_TO_READ = (
    "A number of clusters suits the images where the silhouette (-1 to 1) has a peak, the clusters are of like size "
    "(cluster entropy near 1) and the model is sure of them (prediction entropy near 0); beyond it groups are split, "
    "the silhouette falls, the prediction entropy rises and seeds agree less."
)


@dataclass(frozen=True)
class Options:
    """The own options of ``imc clusters-sweep``."""

    data: str = argument("DATA", A_SOURCE, suggested=NAMES)
    clusters: tuple[int, ...] = option(None, "sweep", "the numbers of clusters to try", at_least=2)
    seeds: tuple[int, ...] = option((0,), "sweep", "the seeds to train each number with", at_least=0, below=2**32)
    out: str | None = option(
        None, "sweep", "folder for the runs and the table; default: runs/<data>-clusters", path=True
    )
    overwrite: bool = option(False, "sweep", "train again what is done")


FLAGS = arguments.joined(Options, Config, without=SET_HERE)


def main(argv: Sequence[str]) -> None:
    """The command: a data set and numbers in, a table and a figure out."""
    texts = {"program": "imc clusters-sweep", "description": __doc__ or ""}
    options, config = arguments.parse_with(Options, Config, argv, without=SET_HERE, here=preview, **texts)
    show(report(clusters_sweep(options, config)))


@turn()
def clusters_sweep(options: Options, config: Config | None = None) -> dict[str, Any]:
    """Train with each number of clusters, measure, and write the table and the figure.

    Args:
        options: those of the command.
        config: of the runs; its data set, clusters, seed and folder are set here.

    Returns:
        The content of clusters-sweep.json: ``runs``, one dict per run; ``by_clusters``, their means by the number of
        clusters with the ``agreement`` of the seeds (mean ARI of all pairs; None for one seed); ``how_to_read``.

    Raises:
        UserError: a value that is not accepted.
        RunError: a run failed.
        StoppedError: a signal.
    """
    check(options)
    if not options.clusters:
        raise UserError("--clusters must list the numbers to try, such as --clusters 5 10 15 20")
    out = RUNS / shortened(name_of(options.data), "-clusters") if options.out is None else user_path(options.out)
    config, data = load_once(replace(config or Config(), data=options.data, overwrite=options.overwrite))
    configs = [
        replace(config, clusters=clusters, seed=seed, out=str(out / f"clusters-{clusters}-seed-{seed}"))
        for clusters in sorted(set(options.clusters))
        for seed in dict.fromkeys(options.seeds)
    ]
    results = train_each(configs, data)
    rows = []
    for each, result in zip(configs, results, strict=True):
        run = load_run(str(each.out), choose_device(each.device))
        scores = {name: result[name] for name in SCORES if result[name] is not None}
        measured = measure(run, clustered(run.config, data))
        rows.append({"clusters": each.clusters, "seed": each.seed, **measured, **scores, "run": str(each.out)})
    means = _by_clusters(rows)
    sweep = {"data": data.name, "how_to_read": HOW_TO_READ, "runs": rows, "by_clusters": means}
    write_json(out / f"{SWEEP}.json", sweep)
    _write_table(out / f"{SWEEP}.csv", rows)
    _draw(out / f"{SWEEP}.png", means)
    return {**sweep, "out": str(out)}


def measure(run: LoadedRun, images: Images) -> dict[str, float | int | None]:
    """How well a run's clusters are separated and used, without labels.

    Returns:
        ``silhouette``: of the embeddings by cosine distance, over 2,000 evenly spaced images; None for one cluster.
        ``cluster_entropy``: H(Y) / ln C of the mean probabilities. ``prediction_entropy``: H(Y given X) / ln C.
        ``mutual_information``: H(Y) - H(Y given X), nats. ``clusters_used``: how many are the first choice of an image.
    """
    result = outputs(run, images.images)
    count, total = result.probabilities.shape
    chosen = evenly_spaced(count, SILHOUETTE_IMAGES)
    points = torch.cat(list(embeddings(run, images.images[chosen]))).float().cpu().numpy()
    labels = result.clusters[chosen.numpy()]
    separable = 1 < len(np.unique(labels)) < len(labels)
    marginal = _entropy(result.probabilities.double().mean(dim=0))
    conditional = _entropy(result.probabilities.double()).mean()
    return {
        "silhouette": float(silhouette_score(points, labels, metric="cosine")) if separable else None,
        "cluster_entropy": float(marginal) / math.log(total),
        "prediction_entropy": float(conditional) / math.log(total),
        "mutual_information": float(marginal - conditional),
        "clusters_used": len(np.unique(result.clusters)),
    }


def _entropy(probabilities: Tensor) -> Tensor:
    """In nats, over the last dimension."""
    return torch.special.entr(probabilities).sum(dim=-1)


def _by_clusters(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    means = []
    for clusters in dict.fromkeys(row["clusters"] for row in rows):
        members = [row for row in rows if row["clusters"] == clusters]
        line: dict[str, Any] = {"clusters": clusters, "runs": len(members)}
        for name in (*MEASURES, *SCORES):
            values = [row[name] for row in members if row.get(name) is not None]
            if values:
                line[name] = float(np.mean(values))
        line["agreement"] = agreement([clusters_of(row["run"]) for row in members])
        means.append(line)
    return means


def _write_table(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    with replacing(path) as file:
        table = Rows(file, list(rows[0]))
        for row in rows:
            table.add(*row.values())


def _draw(path: Path, lines: Sequence[dict[str, Any]]) -> None:
    panels = (
        ("Separation: silhouette of the embeddings", ["silhouette"], ""),
        ("Use of the clusters, certainty: entropies / ln(clusters)", ["cluster_entropy", "prediction_entropy"], ""),
        ("Agreement of the seeds: adjusted Rand index", ["agreement"], ""),
    )
    present = [{name: value for name, value in line.items() if value is not None} for line in lines]
    figures.save_curves(path, present, panels, over="clusters")


def report(sweep: dict[str, Any]) -> str:
    """A sweep as text: a line per number of clusters, and how to read them."""
    lines = sweep["by_clusters"]
    columns = {
        "clusters": "clusters",
        "clusters_used": "used",
        "silhouette": "silhouette",
        "cluster_entropy": "cluster entropy",
        "prediction_entropy": "prediction entropy",
        "agreement": "agreement",
        "acc": "ACC",
    }
    shown = {name: title for name, title in columns.items() if any(line.get(name) is not None for line in lines)}
    table = ["  ".join(shown.values())]
    for line in lines:
        cells = (f"{_cell(line.get(name)):>{len(title)}}" for name, title in shown.items())
        table.append("  ".join(cells))
    files = f"{visible(sweep['out'])}: {' '.join(f'{SWEEP}.{kind}' for kind in ('csv', 'json', 'png'))}"
    separated = [line for line in lines if line.get("silhouette") is not None]
    if separated:
        best = max(separated, key=lambda line: line["silhouette"])
        table.append(f"The silhouette is highest for {best['clusters']} clusters.")
    unsure = [line for line in lines if line["agreement"] is not None and line["agreement"] < DISAGREEMENT]
    if unsure:
        numbers = ", ".join(str(line["clusters"]) for line in unsure)
        table.append(
            f"The seeds disagree (agreement below {DISAGREEMENT}) for {numbers} clusters: what one run finds there, "
            "another does not, and no number of clusters follows from it."
        )
    return "\n".join([*table, sweep["how_to_read"], files])


def _cell(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:g}" if isinstance(value, int) or value.is_integer() else f"{value:.3f}"


if __name__ == "__main__":
    sys.exit(cli.main(["clusters-sweep", *sys.argv[1:]]))
