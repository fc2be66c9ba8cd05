"""How well the presets cluster features, beside k-means on the same features: seeds, mean and spread.

    python -m benchmarks.features photos.npz                     # arrays features and labels, perhaps held-out ones
    python -m benchmarks.features photos.npy                     # what imc embed wrote, with the .csv beside it
    python -m benchmarks.features digits --seeds 0 1 2           # scikit-learn's digits as rows [1797, 64]; also iris,
                                                                 # wine and breast_cancer
    python -m benchmarks.features imagenette.npy --choices       # 100 of each of five classes, six choices of classes
    python -m benchmarks.features photos.npz --method imc-swav --sub-heads 50     # and every flag of imc train

Scores are those of the held-out rows where there are any, else of the rows that are trained on. "heads" is the answer,
of several heads the one with the lowest loss; "vote" what most of them say, each with its clusters named as those of
that one, and "a head" their mean. "said .9" is the share of rows of confidence 0.85 to 0.95, all seeds together, whose
class is the most frequent of their cluster; "sure" the share of rows of confidence 0.9 or more, and "right" the same of
those.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn import datasets

from imc.command_line import arguments
from imc.command_line.options import argument, option
from imc.command_line.terminal import show, silence
from imc.config import Config
from imc.data import Images
from imc.features.files import read_features
from imc.files.csv import read_rows
from imc.metrics import best_matching, clustering_accuracy, confusion_matrix, mean_and_deviation
from imc.runs.model import load_run
from imc.scores.evaluation import kmeans_on_features, outputs
from imc.several_runs import SET_HERE
from imc.train import train

# Of Imagenette's classes in the order of their names: tench, springer, cassette player, chain saw, church, French horn,
# garbage truck, gas pump, golf ball, parachute. The third is the hard one, the machines.
CHOICES = ((0, 1, 2, 3, 4), (5, 6, 7, 8, 9), (2, 3, 5, 6, 7), (0, 2, 4, 6, 8), (1, 3, 5, 7, 9), (0, 1, 4, 8, 9))
EACH = 100  # rows of a class
OF_SCIKIT_LEARN = ("digits", "iris", "wine", "breast_cancer")
SURE, WIDTH = 0.9, 0.05


@dataclass(frozen=True)
class Options:
    """What is measured."""

    source: str = argument("FEATURES", "an .npz of features and labels, an .npy of imc embed, or digits, iris, ...")
    seeds: tuple[int, ...] = option((0, 1, 2, 3, 4), "benchmark", "the seeds", at_least=0)
    choices: bool = option(False, "benchmark", "the first 100 rows of each of five classes, for six choices of them")


def main(argv: Sequence[str]) -> None:
    """A line for each set."""
    options, config = arguments.parse_with(
        Options, Config, argv, without=SET_HERE, program="python -m benchmarks.features", description=__doc__ or ""
    )
    show(
        f"{'set':30}{'rows':>8}{'k-means':>17}{'heads':>17}{'vote':>17}{'a head':>8}{'seconds':>9}{'said .9':>9}"
        f"{'sure':>7}{'right':>7}"
    )
    with tempfile.TemporaryDirectory() as folder:
        lines = [measure(name, path, options.seeds, config, Path(folder)) for name, path in _sets(options, folder)]
    if len(lines) > 1:
        show(f"{'mean':38}" + "".join(f"{np.mean(means):17.3f}" for means in zip(*lines, strict=True)))


def measure(name: str, path: str, seeds: Sequence[int], config: Config, folder: Path) -> tuple[float, float, float]:
    """Train with each seed, and print the line of the set; the mean accuracies of k-means, the answer and the vote."""
    baseline, own, vote, single, seconds, confidence, right = [], [], [], [], [], [], []
    data = read_features([path], views=config.are_augmented)
    scored = data.train if data.test is None else data.test
    assert scored.labels is not None
    labels = scored.labels.numpy()
    for seed in seeds:
        begun = time.perf_counter()
        out = str(folder / f"{name}-{seed}")
        with silence():
            train(replace(config, features=(path,), seed=seed, out=out, checkpoint_every=0), report=False)
            seconds.append(time.perf_counter() - begun)
            run = load_run(out)
            result = outputs(run, scored.images)
        own.append(clustering_accuracy(labels, result.clusters))
        by_head = result.by_head.T.numpy()
        vote.append(clustering_accuracy(labels, _vote(by_head, result.clusters)))
        single.append(
            np.mean([clustering_accuracy(labels, head) for head in (by_head if len(by_head) else [result.clusters])])
        )
        confidence.append(result.confidence)
        right.append(_in_majority(labels, result.clusters))
        baseline.append(clustering_accuracy(labels, _kmeans(data.train, scored, run.config)))
    columns = (f"{mean:.3f} +- {deviation:.3f}" for mean, deviation in map(mean_and_deviation, (baseline, own, vote)))
    said, hit = np.concatenate(confidence), np.concatenate(right)
    about, sure = np.abs(said - SURE) < WIDTH, said >= SURE
    shares = f"{_share(hit[about]):9.1%}{sure.mean():7.0%}{_share(hit[sure]):7.1%}"
    scores = "".join(f"{text:>17}" for text in columns)
    show(f"{name:30}{len(labels):8,}{scores}{np.mean(single):8.3f}{np.mean(seconds):9.1f}{shares}")
    return float(np.mean(baseline)), float(np.mean(own)), float(np.mean(vote))


def _share(hit: NDArray[np.bool_]) -> float:
    return float(hit.mean()) if len(hit) else float("nan")


def _kmeans(train: Images, scored: Images, config: Config) -> NDArray[np.int64]:
    """The cluster of each scored row; the centres are those of the rows that are trained on."""
    options = (config.clusters, config.seed, config.columns, config.scaling)
    if scored is train:
        return kmeans_on_features(train.images, *options)
    both = torch.cat([train.images.float(), scored.images.float()])
    return kmeans_on_features(both, *options)[len(train.images) :]


def _vote(by_head: NDArray[np.int64], answer: NDArray[np.int64]) -> NDArray[np.int64]:
    """The cluster [M] that most heads [H, M] name, once their clusters are matched with those of the answer [M]."""
    clusters = 1 + int(max(answer.max(), by_head.max(initial=0)))
    votes = np.zeros((len(answer), clusters), np.int64)
    votes[np.arange(len(answer)), answer] = 1
    for head in by_head:
        matching = dict(best_matching(confusion_matrix(head, answer, num_classes=clusters, num_clusters=clusters)))
        votes[np.arange(len(answer)), [matching[cluster] for cluster in head]] += 1
    return votes.argmax(axis=1)


def _in_majority(labels: NDArray[np.int64], clusters: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether the class of each sample [M] is the most frequent one of its cluster."""
    most = {cluster: np.bincount(labels[clusters == cluster]).argmax() for cluster in np.unique(clusters)}
    return np.array([most[cluster] for cluster in clusters]) == labels


def _sets(options: Options, folder: str) -> Iterator[tuple[str, str]]:
    if options.source in OF_SCIKIT_LEARN:
        read = getattr(datasets, f"load_{options.source}")()
        yield options.source, _stored(folder, options.source, features=read.data, labels=read.target)
        return
    path = stored_source(options.source, folder)
    if not options.choices:
        yield Path(path).stem, path
        return
    data = read_features([path]).train
    assert data.labels is not None
    labels = data.labels.numpy()
    for classes in CHOICES:
        rows = np.concatenate([np.flatnonzero(labels == label)[:EACH] for label in classes])
        name = f"{data.name} {' '.join(map(str, classes))}"
        yield name, _stored(folder, name.replace(" ", "-"), features=data.images[rows].numpy(), labels=labels[rows])


def stored_source(source: str, folder: str) -> str:
    """The path of an .npz: the source, or in this folder what ``imc embed`` wrote as the source."""
    path = Path(source)
    return _stored(folder, path.stem, **_embedded(path)) if path.suffix == ".npy" else source


def _stored(folder: str, name: str, **arrays: NDArray[Any]) -> str:
    """The path of an .npz with these arrays."""
    path = str(Path(folder, f"{name}.npz"))
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


def _embedded(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of an .npz from what ``imc embed`` wrote: the rows of the split test are held out."""
    features, rows = np.load(path, mmap_mode="r"), list(read_rows(path.with_suffix(".csv")))
    labels = np.array([int(row["label"]) for row in rows])
    held_out = np.array([row["split"] == "test" for row in rows])
    parts = {"features": features[~held_out], "labels": labels[~held_out]}
    if held_out.any():
        parts |= {"test_features": features[held_out], "test_labels": labels[held_out]}
    return parts


if __name__ == "__main__":
    main(sys.argv[1:])
