"""Score a trained run: how well its clusters agree with the classes, and what its encoder has learned.

    imc evaluate runs/digits                          # writes evaluation.json and figures/ into the run's folder
    imc evaluate runs/digits --bn-recalibrate train   # with the statistics of the train split
    imc evaluate runs/photos --labels y.npy           # classes that the training had not
    imc evaluate runs/a runs/b runs/c                 # each of them, then mean and standard deviation

For the train and the test split, where there are: ACC (Hungarian), NMI (arithmetic), ARI, a table of the classes and
the confusion matrix. For the encoder: the accuracy of its nearest neighbours and of a linear layer on its features,
fitted to the train split and scored on the test split; without one, by leaving one out and over five folds.

The model is the one that training left, as for the run's own result.json and labels.csv, ``imc predict``, ``report``
and ``export``. ``--bn-recalibrate train`` estimates the statistics of batch normalisation again first, on un-augmented
images of the train split, since training saw augmented ones. ``--bn-recalibrate test`` does so on the test split: it
is transductive, as it lets the test images help to classify each other. It is what the authors of IMC-SwAV published,
so it is here for comparison with their numbers. The output says which it was.

From Python: ``evaluate("runs/digits")`` returns what evaluation.json holds.
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
from imc.data import NAMES, Dataset, Images
from imc.data.labels import with_labels
from imc.data.model_images import fit_for_model
from imc.errors import UserError
from imc.files.json import write_json
from imc.files.paths import user_path
from imc.files.run_places import FIGURES
from imc.machine.device import DEVICES, choose_device
from imc.machine.torch_state import turn
from imc.metrics import SCORES, clustering_scores, confusion_matrix, mean_and_deviation, per_class_table
from imc.pages.run_figures import draw_confusion, draw_heatmaps, draw_plane
from imc.pages.summary import summarise, summary_table, write_summary
from imc.runs.data import other_data, run_data
from imc.runs.model import LoadedRun, load_run
from imc.scores.evaluation import AS_TRAINED, BATCH, Outputs, outputs, recalibrate
from imc.scores.probes import NEIGHBOURS, knn_accuracy, linear_probe_accuracy
from imc.text import counted, visible

EVALUATION = "evaluation.json"


@dataclass(frozen=True)
class Options:
    """The options of ``imc evaluate``."""

    runs: tuple[str, ...] = argument("RUN", "folder of a trained run")
    data: str | None = option(None, "evaluation", "data set to score; default: the run's", suggested=NAMES, path=True)
    labels_from_folders: bool = option(False, "evaluation", "take the names of a folder's sub-folders as labels")
    labels: str | None = option(
        None, "evaluation", "the classes of the samples in the order of labels.csv, as .npy or one a line", path=True
    )
    bn_recalibrate: str = option(
        "none",
        "evaluation",
        "split that batch normalisation is recalibrated on first, if any; test is transductive",
        choices=("none", "train", "test"),
    )
    skip_probes: bool = option(False, "evaluation", "leave out the nearest neighbours and the linear layer")
    skip_figures: bool = option(False, "evaluation", "write no figures")
    out: str | None = option(
        None,
        "evaluation",
        "several runs: folder for summary.json and the figure of accuracy against training images",
        path=True,
    )
    device: str = option("auto", "machine", "where to run; auto: a GPU where there is one", choices=DEVICES)
    batch_size: int = option(BATCH, "machine", "images at a time; the result does not depend on it", at_least=1)
    amp: str = option(
        "auto",
        "machine",
        "bfloat16 autocast of the encoder; auto: of a run trained so, where the device has instructions for it",
        choices=("auto", "bf16", "off"),
    )


def main(argv: Sequence[str]) -> None:
    """The command: folders in, tables out."""
    options = arguments.parse(Options, argv, program="imc evaluate", description=__doc__ or "")
    if len(options.runs) == 1 and options.out is not None:
        raise UserError("--out takes the summary of several runs, and one run was given; its results lie in its folder")
    results = []
    for folder in options.runs:
        results.append(evaluate(folder, options))
        show(table(results[-1]))
    if len(results) > 1:
        summary = summarise(results)
        show(summary_table(summary))
        if options.out is not None:
            write_summary(user_path(options.out), summary, results)


@turn()
def evaluate(folder: str | Path, options: Options | None = None, data: Dataset | None = None) -> dict[str, Any]:
    """Score a run, and write evaluation.json and figures/ into its folder.

    Args:
        folder: of the run.
        options: those of the command; the runs in it are not read.
        data: the data set to use instead of loading it.

    Returns:
        The content of evaluation.json. Without labels the scores are None and the encoder is not scored.

    Raises:
        UserError: the folder holds no trained run, or the data set does not fit it.
    """
    folder = user_path(folder)
    options = Options(runs=(str(folder),)) if options is None else options
    check(options)
    run = load_run(folder, choose_device(options.device))
    if data is None:
        data = other_data(folder, run.config, options.data, options.labels_from_folders)
    else:
        data = fit_for_model(run.config, run_data(run.config, data))
    if options.labels is not None:
        if options.labels_from_folders:
            raise UserError("--labels and --labels-from-folders exclude each other")
        data = with_labels(data, options.labels)
    recalibrated = _recalibrate(run, data, options.bn_recalibrate)
    splits = {name: split for name, split in (("train", data.train), ("test", data.test)) if split is not None}
    results = {
        name: outputs(run, split.images, batch_size=options.batch_size, amp=options.amp)
        for name, split in splits.items()
    }
    evaluation: dict[str, Any] = {
        "run": str(folder),
        "data": data.name,
        "seed": run.config.seed,
        "training_images": len(data.train.images),
        "bn_recalibrate": options.bn_recalibrate,
        "bn_images": recalibrated,
        "transductive": options.bn_recalibrate == "test",
        "head": getattr(run.model, "best_head", None),
        "splits": {name: _score(split, results[name]) for name, split in splits.items()},
    }
    with Stages("evaluate", ("nearest neighbours and linear probe", "figures")) as stages:
        evaluation["encoder"] = None if options.skip_probes else _probe(data, results)
        stages.next()
        if not options.skip_figures:
            _draw(folder / FIGURES, run, splits, results)
        stages.next()
    write_json(folder / EVALUATION, evaluation)
    return evaluation


def _recalibrate(run: LoadedRun, data: Dataset, split: str) -> int:
    if split == "none":
        return 0
    if split == "test" and data.test is None:
        raise UserError(f"--bn-recalibrate test needs a test split, and {data.name} has none; accepted are none, train")
    chosen = data.train if split == "train" or data.test is None else data.test
    return recalibrate(run, chosen.images)


def _score(split: Images, result: Outputs) -> dict[str, Any]:
    clusters, total = result.clusters, result.probabilities.shape[1]
    sizes = np.bincount(clusters, minlength=total)
    scores: dict[str, Any] = {
        "images": len(clusters),
        **dict.fromkeys(SCORES),
        "clusters_used": int((sizes > 0).sum()),
        "cluster_sizes": sizes.tolist(),
        "mean_confidence": float(result.confidence.mean()),
    }
    if split.labels is not None:
        labels = split.labels.numpy()
        matrix = confusion_matrix(labels, clusters, num_classes=len(split.class_names), num_clusters=total)
        scores.update(clustering_scores(labels, clusters))
        scores["classes"] = per_class_table(matrix, split.class_names)
        scores["confusion"] = matrix.tolist()
        if result.by_head.shape[1]:
            scores["heads"] = _by_head(labels, result.by_head.numpy())
    return scores


def _by_head(labels: NDArray[np.int64], clusters: NDArray[np.int64]) -> dict[str, Any]:
    """Mean, standard deviation and values of each score over the cluster heads: clusters [M, H]."""
    heads = [clustering_scores(labels, head) for head in clusters.T]
    spread = {score: [head[score] for head in heads] for score in SCORES}
    return {
        score: dict(zip(("mean", "deviation", "values"), (*mean_and_deviation(values), values), strict=True))
        for score, values in spread.items()
    }


def _probe(data: Dataset, results: dict[str, Outputs]) -> dict[str, Any] | None:
    if data.train.labels is None:
        return None
    train = (results["train"].features, data.train.labels)
    if data.test is None or data.test.labels is None:
        protocol = "leaving one out, and 5 folds, of the train split"
        return {"knn": knn_accuracy(*train), "linear_probe": linear_probe_accuracy(*train), "protocol": protocol}
    both = (*train, results["test"].features, data.test.labels)
    protocol = "fitted to the train split, scored on the test split"
    return {"knn": knn_accuracy(*both), "linear_probe": linear_probe_accuracy(*both), "protocol": protocol}


def _draw(folder: Path, run: LoadedRun, splits: dict[str, Images], results: dict[str, Outputs]) -> None:
    folder.mkdir(exist_ok=True)
    for name, split in splits.items():
        if split.labels is not None:
            total = results[name].probabilities.shape[1]
            draw_confusion(folder / f"confusion-{name}.png", split, results[name].clusters, total)
    name, split = list(splits.items())[-1]  # the test split, where there is one
    draw_plane(folder / "embeddings.png", split, results[name], run.config.seed)
    if not split.are_features:
        draw_heatmaps(folder / "heatmaps.png", run, split, results[name], run.config.seed)


def table(evaluation: dict[str, Any]) -> str:
    """An evaluation as text."""
    recalibrated = evaluation["bn_recalibrate"]
    norms = {
        "none": AS_TRAINED,
        "train": "batch normalisation recalibrated on the train split",
        "test": "batch normalisation recalibrated on the TEST split: transductive",
    }[recalibrated]
    lines = [f"{visible(evaluation['run'])}: {visible(evaluation['data'])}, {norms}"]
    lines.append(f"{'':14}{'images':>10}{'ACC':>8}{'NMI':>8}{'ARI':>8}{'clusters used':>16}")
    for name, split in evaluation["splits"].items():
        scores = "".join(_number(split[score]) for score in SCORES)
        used = f"{split['clusters_used']} of {len(split['cluster_sizes'])}"
        lines.append(f"{name:14}{split['images']:>10,}{scores}{used:>16}")
        if "heads" in split:
            means = "".join(_number(split["heads"][score]["mean"]) for score in SCORES)
            deviations = "".join(_number(split["heads"][score]["deviation"]) for score in SCORES)
            heads = counted(len(split["heads"]["acc"]["values"]), "head{s}")
            lines.append(f"{f'  mean of {heads}':24}{means}")
            lines.append(f"{'  their deviation':24}{deviations}")
    if evaluation["head"] is not None:
        lines.append(f"head {evaluation['head']}, the one with the lowest loss over the last epoch, gives the clusters")
    encoder = evaluation["encoder"]
    if encoder is not None:
        lines.append(
            f"encoder: {NEIGHBOURS} nearest neighbours {_number(encoder['knn']).strip()}, "
            f"linear probe {_number(encoder['linear_probe']).strip()} ({encoder['protocol']})"
        )
    name, split = list(evaluation["splits"].items())[-1]
    if "classes" in split:
        width = max(5, *(len(visible(row["class"])) for row in split["classes"])) + 2
        lines.append(f"{f'class ({name})':{width}}{'images':>10}{'cluster':>10}{'precision':>11}{'recall':>8}")
        for row in split["classes"]:
            cluster = "-" if row["cluster"] is None else str(row["cluster"])
            shares = f"{row['precision']:11.3f}{row['recall']:8.3f}"
            lines.append(f"{visible(row['class']):{width}}{row['images']:>10,}{cluster:>10}{shares}")
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return f"{'-':>8}" if value is None else f"{value:8.3f}"


if __name__ == "__main__":
    sys.exit(cli.main(["evaluate", *sys.argv[1:]]))
