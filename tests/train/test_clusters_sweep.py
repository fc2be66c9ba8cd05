from __future__ import annotations

import csv
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest

from imc import several_runs
from imc.cli import main
from imc.clusters_sweep import Options, clusters_sweep, measure, report
from imc.config import Config
from imc.data import Dataset, Images
from imc.errors import RunError, StoppedError
from imc.runs.model import load_run
from imc.seeds import Options as SeedsOptions
from imc.seeds import seeds
from imc.several_runs import agreement, train


@pytest.fixture(autouse=True)
def few_digits(split_digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """The data set of these tests, whatever its name."""
    monkeypatch.setattr("imc.several_runs.run_data", lambda config, data=None: split_digits)


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The folders of the runs that were trained, in order."""
    folders: list[str] = []

    def recorded(config: Config, data: Dataset) -> dict[str, Any] | None:
        folders.append(Path(str(config.out)).name)
        return train(config, data)

    monkeypatch.setattr(several_runs, "train", recorded)
    return folders


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "clusters-sweep.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_sweep_writes_a_table_curves_and_runs(tiny: Config, tmp_path: Path, trainings: list[str]) -> None:
    out = tmp_path / "sweep"
    sweep = clusters_sweep(Options("digits", clusters=(6, 3), seeds=(0, 1), out=str(out)), tiny)
    names = ["clusters-3-seed-0", "clusters-3-seed-1", "clusters-6-seed-0", "clusters-6-seed-1"]
    assert trainings == names
    assert [load_run(out / name).config.clusters for name in names] == [3, 3, 6, 6]
    assert [Path(row["run"]).name for row in table(out)] == names
    assert [(line["clusters"], line["runs"]) for line in sweep["by_clusters"]] == [(3, 2), (6, 2)]
    for line in sweep["by_clusters"]:
        members = [row for row in table(out) if int(row["clusters"]) == line["clusters"]]
        assert line["silhouette"] == pytest.approx(np.mean([float(row["silhouette"]) for row in members]))
        assert -1 <= line["agreement"] <= 1
    assert json.loads((out / "clusters-sweep.json").read_text())["runs"] == sweep["runs"]
    assert matplotlib.image.imread(out / "clusters-sweep.png").std() > 0.02  # not blank


def test_what_is_done_is_kept_and_what_was_interrupted_goes_on(
    tiny: Config, tmp_path: Path, trainings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "sweep"
    options = Options("digits", clusters=(3, 4), out=str(out))
    both = clusters_sweep(dataclasses.replace(options, out=str(tmp_path / "whole")), tiny)
    clusters_sweep(dataclasses.replace(options, clusters=(3,)), tiny)

    def stopping(config: Config, data: Dataset) -> None:
        train(dataclasses.replace(config, stop_after_epoch=1), data)

    with monkeypatch.context() as patch:
        patch.setattr(several_runs, "train", stopping)
        with pytest.raises(StoppedError, match="the same command goes on"):
            clusters_sweep(options, tiny)
    trainings.clear()
    again = clusters_sweep(options, tiny)
    assert trainings == ["clusters-4-seed-0"]
    keys = ("clusters", "silhouette", "cluster_entropy", "prediction_entropy", "acc")
    assert [[row[key] for key in keys] for row in again["runs"]] == [[row[key] for key in keys] for row in both["runs"]]


def test_another_configuration_is_refused_until_it_may_overwrite(
    tmp_path: Path, trainings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--clusters", "3", "--out", str(tmp_path), "--epochs", "1", "--backend", "eager", "--small-crops", "0"]
    assert main(["clusters-sweep", "digits", *flags]) == 0
    assert "The silhouette is highest for 3 clusters." in capsys.readouterr().out
    assert main(["clusters-sweep", "digits", *flags, "--log-every", "1"]) == 0
    assert trainings == ["clusters-3-seed-0"]
    capsys.readouterr()
    assert main(["clusters-sweep", "digits", *flags, "--lr", "0.5"]) == 2
    assert "holds a run with --lr 0.006, and 0.5 was asked for; give another --out" in capsys.readouterr().err
    assert main(["clusters-sweep", "digits", *flags, "--lr", "0.001", "--overwrite"]) == 0
    assert load_run(tmp_path / "clusters-3-seed-0").config.lr == 0.001


def test_measures_of_known_outputs(trained: Path, digits: Images) -> None:
    run = load_run(trained)
    last = run.model.classifier.layers[-1]
    last.weight.data.zero_()
    last.bias.data.zero_()
    even = measure(run, digits)
    assert even["cluster_entropy"] == pytest.approx(1)
    assert even["prediction_entropy"] == pytest.approx(1)
    assert even["mutual_information"] == pytest.approx(0, abs=1e-6)
    last.bias.data[3] = 100
    collapsed = measure(run, digits)
    assert (collapsed["silhouette"], collapsed["clusters_used"]) == (None, 1)
    assert collapsed["cluster_entropy"] == pytest.approx(0, abs=1e-12)
    assert collapsed["prediction_entropy"] == pytest.approx(0, abs=1e-12)


def test_seeds_are_trained_evaluated_and_summarised(tiny: Config, tmp_path: Path, trainings: list[str]) -> None:
    summary = seeds(SeedsOptions("digits", seeds=(0, 4), out=str(tmp_path), skip_probes=True), tiny)
    assert trainings == ["seed-0", "seed-4"]
    assert [load_run(folder).config.seed for folder in summary["runs"]] == [0, 4]
    accuracy = summary["scores"]["test"]["acc"]
    evaluated = [json.loads((Path(folder) / "evaluation.json").read_text()) for folder in summary["runs"]]
    assert accuracy["values"] == [each["splits"]["test"]["acc"] for each in evaluated]
    assert accuracy["deviation"] == pytest.approx(abs(np.subtract(*accuracy["values"])) / math.sqrt(2))
    seeds(SeedsOptions("digits", seeds=(0, 4, 5), out=str(tmp_path), skip_probes=True), tiny)
    assert trainings == ["seed-0", "seed-4", "seed-5"]
    assert len(json.loads((tmp_path / "summary.json").read_text())["runs"]) == 3


@pytest.mark.parametrize(
    ("agreements", "said"), [((0.4, 0.9), "for 5 clusters"), ((0.6, None), ""), ((0.1, 0.2), "5, 9 clusters")]
)
def test_seeds_that_disagree_are_told(agreements: tuple[float | None, ...], said: str) -> None:
    lines = [{"clusters": number, "agreement": value} for number, value in zip((5, 9), agreements, strict=True)]
    text = report({"by_clusters": lines, "how_to_read": "", "out": "runs/x"})
    assert ("The seeds disagree" in text) == bool(said)
    assert said in text


def test_agreement() -> None:
    assert agreement([np.array([0, 0, 1, 1]), np.array([1, 1, 0, 0]), np.array([2, 2, 5, 5])]) == 1
    assert agreement([np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])]) == pytest.approx(-0.5)
    assert agreement([np.array([0, 1])]) is None


def test_a_run_that_fails_is_named(tiny: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object) -> None:
        raise RunError("the loss became NaN")

    monkeypatch.setattr(several_runs, "train", failing)
    with pytest.raises(RunError, match="clusters-3-seed-0: the loss became NaN"):
        clusters_sweep(Options("digits", clusters=(3,), out=str(tmp_path)), tiny)


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["clusters-sweep", "digits"], "--clusters must list the numbers to try"),
        (["clusters-sweep", "digits", "--clusters", "1"], "--clusters must be an integer of at least 2, got 1"),
        (["clusters-sweep", "digits", "--clusters", "5", "--seed", "1"], "unknown flag --seed; did you mean --seeds?"),
        (["clusters-sweep", "digits", "--clusters", "5", "--epochs", "0"], "--epochs must be an integer of at least 1"),
        (["seeds"], "DATA is missing in: imc seeds DATA [options]"),
        (["seeds", "digits", "--seeds", "-1"], "--seeds must be an integer of at least 0 and below"),
        (["seeds", "digits", "--resume"], "unknown flag --resume"),
    ],
)
def test_a_mistake_is_one_sentence(argv: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert says in error


def test_several_processes_are_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    assert main(["seeds", "digits"]) == 2
    assert "use torchrun with imc train" in capsys.readouterr().err
