"""Train one configuration with several seeds: mean and standard deviation of every score.

    imc seeds digits                          # seeds 0 to 4; writes runs/digits-seeds/
    imc seeds cifar10 --seeds 0 1 2 --epochs 100
    imc seeds my/photos --clusters 20         # without labels: how far the seeds agree

Every flag of imc train that is listed below is passed on. A run that is done is kept: the same command goes on after an
interruption, and another --seeds adds to what is there. Scores are those of imc evaluate; the folder of each run is one
that imc evaluate, report, predict and export take.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from imc import cli
from imc.command_line import arguments
from imc.command_line.options import argument, check, option
from imc.command_line.terminal import show
from imc.config import Config
from imc.data import NAMES, name_of
from imc.data.options import A_SOURCE
from imc.evaluate import Options as EvaluateOptions
from imc.evaluate import evaluate
from imc.files.paths import user_path
from imc.files.run_places import RUNS
from imc.pages.summary import SUMMARY, summarise, summary_table, write_summary
from imc.runs.preview import preview
from imc.several_runs import SET_HERE, agreement, clusters_of, load_once, train_each
from imc.text import shortened, visible


@dataclass(frozen=True)
class Options:
    """The own options of ``imc seeds``."""

    data: str = argument("DATA", A_SOURCE, suggested=NAMES)
    seeds: tuple[int, ...] = option((0, 1, 2, 3, 4), "seeds", "the seeds", at_least=0, below=2**32)
    out: str | None = option(
        None, "seeds", "folder for the runs and summary.json; default: runs/<data>-seeds", path=True
    )
    skip_probes: bool = option(False, "seeds", "leave out the nearest neighbours and the linear layer")
    overwrite: bool = option(False, "seeds", "train again what is done")


FLAGS = arguments.joined(Options, Config, without=SET_HERE)


def main(argv: Sequence[str]) -> None:
    """The command: a data set in, a table out."""
    texts = {"program": "imc seeds", "description": __doc__ or ""}
    options, config = arguments.parse_with(Options, Config, argv, without=SET_HERE, here=preview, **texts)
    show(report(seeds(options, config)))


def seeds(options: Options, config: Config | None = None) -> dict[str, Any]:
    """Train with each seed, evaluate, and write summary.json.

    Args:
        options: those of the command.
        config: of the runs; its data set, seed and folder are set here.

    Returns:
        The content of summary.json: :func:`imc.pages.summary.summarise` of the runs, and ``agreement``, the mean
        adjusted Rand index over all pairs of runs (None for one seed).

    Raises:
        UserError: a value that is not accepted.
        RunError: a run failed.
        StoppedError: a signal.
    """
    check(options)
    out = RUNS / shortened(name_of(options.data), "-seeds") if options.out is None else user_path(options.out)
    config, data = load_once(replace(config or Config(), data=options.data, overwrite=options.overwrite))
    configs = [replace(config, seed=seed, out=str(out / f"seed-{seed}")) for seed in dict.fromkeys(options.seeds)]
    train_each(configs, data)
    folders = tuple(str(each.out) for each in configs)
    settings = EvaluateOptions(runs=folders, skip_probes=options.skip_probes, skip_figures=True, device=config.device)
    evaluations = [evaluate(folder, settings, data) for folder in folders]
    summary = {**summarise(evaluations), "agreement": agreement([clusters_of(folder) for folder in folders])}
    write_summary(out, summary, evaluations)
    return {**summary, "out": str(out)}


def report(summary: dict[str, Any]) -> str:
    """A summary as text."""
    lines = [summary_table(summary)]
    if summary["agreement"] is not None:
        lines.append(f"agreement of the seeds (mean ARI of all pairs): {summary['agreement']:.3f}")
    return "\n".join([*lines, visible(str(Path(summary["out"]) / SUMMARY))])


if __name__ == "__main__":
    sys.exit(cli.main(["seeds", *sys.argv[1:]]))
