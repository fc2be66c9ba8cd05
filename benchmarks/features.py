"""How well the presets cluster features, beside k-means on the same features: seeds, mean and spread.

    python -m benchmarks.features photos.npz                     # arrays features and labels, perhaps held-out ones
    python -m benchmarks.features digits --seeds 0 1 2           # scikit-learn's digits as rows [1797, 64]
    python -m benchmarks.features imagenette.npz --choices       # 100 of each of five classes, six choices of classes
    python -m benchmarks.features photos.npz --method imc-swav --sub-heads 50     # and every flag of imc train

Scores are those of the held-out rows where there are any, else of the rows that are trained on. "said .9" is the share
of rows of confidence 0.85 to 0.95, all seeds together, whose class is the most frequent of their cluster; "sure" the
share of rows of confidence 0.9 or more, and "right" the same of those.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from imc.command_line import arguments
from imc.command_line.options import argument, option
from imc.command_line.terminal import show, silence
from imc.config import Config
from imc.data import Images
from imc.features.files import read_features
from imc.metrics import clustering_accuracy, mean_and_deviation
from imc.runs.model import load_run
from imc.scores.evaluation import kmeans_on_features, outputs
from imc.several_runs import SET_HERE
from imc.train import train

# Of Imagenette's classes in the order of their names: tench, springer, cassette player, chain saw, church, French horn,
# garbage truck, gas pump, golf ball, parachute. The third is the hard one, the machines.
CHOICES = ((0, 1, 2, 3, 4), (5, 6, 7, 8, 9), (2, 3, 5, 6, 7), (0, 2, 4, 6, 8), (1, 3, 5, 7, 9), (0, 1, 4, 8, 9))
EACH = 100  # rows of a class
SURE, WIDTH = 0.9, 0.05


@dataclass(frozen=True)
class Options:
    """What is measured."""

    source: str = argument("FEATURES", "an .npz of features and labels, or digits")
    seeds: tuple[int, ...] = option((0, 1, 2, 3, 4), "benchmark", "the seeds", at_least=0)
    choices: bool = option(False, "benchmark", "the first 100 rows of each of five classes, for six choices of them")


def main(argv: Sequence[str]) -> None:
    """A line for each set."""
    options, config = arguments.parse_with(
        Options, Config, argv, without=SET_HERE, program="python -m benchmarks.features", description=__doc__ or ""
    )
    show(f"{'set':30}{'rows':>8}{'k-means':>17}{'heads':>17}{'seconds':>9}{'said .9':>9}{'sure':>7}{'right':>7}")
    with tempfile.TemporaryDirectory() as folder:
        lines = [measure(name, path, options.seeds, config, Path(folder)) for name, path in _sets(options, folder)]
    if len(lines) > 1:
        means = [mean_and_deviation([line[part] for line in lines])[0] for part in (0, 1)]
        show(f"{'mean':38}{means[0]:17.3f}{means[1]:17.3f}")


def measure(name: str, path: str, seeds: Sequence[int], config: Config, folder: Path) -> tuple[float, float]:
    """Train with each seed, and print the line of the set; the mean accuracies of k-means and of the heads."""
    baseline, own, seconds, confidence, right = [], [], [], [], []
    data = read_features([path])
    scored = data.train if data.test is None else data.test
    assert scored.labels is not None
    labels = scored.labels.numpy()
    for seed in seeds:
        begun = time.perf_counter()
        out = str(folder / f"{name}-{seed}")
        with silence():
            train(replace(config, features=(path,), seed=seed, out=out, checkpoint_every=0), report=False)
            seconds.append(time.perf_counter() - begun)
            result = outputs(load_run(out), scored.images)
        own.append(clustering_accuracy(labels, result.clusters))
        confidence.append(result.confidence)
        right.append(_in_majority(labels, result.clusters))
        baseline.append(clustering_accuracy(labels, _kmeans(data.train, scored, result.probabilities.shape[1], seed)))
    columns = (f"{mean:.3f} +- {deviation:.3f}" for mean, deviation in map(mean_and_deviation, (baseline, own)))
    said, hit = np.concatenate(confidence), np.concatenate(right)
    about, sure = np.abs(said - SURE) < WIDTH, said >= SURE
    shares = f"{_share(hit[about]):9.1%}{sure.mean():7.0%}{_share(hit[sure]):7.1%}"
    show(f"{name:30}{len(labels):8,}" + "".join(f"{text:>17}" for text in columns) + f"{np.mean(seconds):9.1f}{shares}")
    return float(np.mean(baseline)), float(np.mean(own))


def _share(hit: NDArray[np.bool_]) -> float:
    return float(hit.mean()) if len(hit) else float("nan")


def _kmeans(train: Images, scored: Images, clusters: int, seed: int) -> NDArray[np.int64]:

    if scored is train:
        return kmeans_on_features(train.images, clusters, seed)
    # The centres are those of the rows that are trained on.
    both = torch.cat([train.images.float(), scored.images.float()])
    return kmeans_on_features(both, clusters, seed)[len(train.images) :]


def _in_majority(labels: NDArray[np.int64], clusters: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether the class of each sample [M] is the most frequent one of its cluster."""
    most = {cluster: np.bincount(labels[clusters == cluster]).argmax() for cluster in np.unique(clusters)}
    return np.array([most[cluster] for cluster in clusters]) == labels


def _sets(options: Options, folder: str) -> Iterator[tuple[str, str]]:
    if options.source == "digits":
        digits = load_digits()
        path = str(Path(folder, "digits.npz"))
        np.savez(path, features=digits.data, labels=digits.target)
        yield "digits", path
        return
    if not options.choices:
        yield Path(options.source).stem, options.source
        return
    data = read_features([options.source]).train
    assert data.labels is not None
    labels = data.labels.numpy()
    for classes in CHOICES:
        rows = np.concatenate([np.flatnonzero(labels == label)[:EACH] for label in classes])
        name = f"{data.name} {' '.join(map(str, classes))}"
        path = str(Path(folder, f"{name.replace(' ', '-')}.npz"))
        np.savez(path, features=data.images[rows].numpy(), labels=labels[rows])
        yield name, path


if __name__ == "__main__":
    main(sys.argv[1:])
