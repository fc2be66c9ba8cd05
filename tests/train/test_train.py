from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional
from train.conftest import crlc_config

from imc.config import Config
from imc.data import Images
from imc.errors import RunError, UserError
from imc.files.run_places import FILES, NAMES, NEIGHBOURS
from imc.methods import build_model, misfit
from imc.runs.folder import open_run_folder, require_free
from imc.runs.model import load_run
from imc.train import plan, train
from imc_kernels import backends


def read_metrics(folder: str | Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what a clock measured."""
    lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    return [
        {key: value for key, value in line.items() if key not in ("seconds", "images_per_second")} for line in lines
    ]


def read_labels(folder: str | Path) -> list[dict[str, str]]:
    with (Path(folder) / "labels.csv").open() as file:
        return list(csv.DictReader(file))


def elsewhere(config: Config, tmp_path: Path, name: str) -> Config:
    return dataclasses.replace(config, out=str(tmp_path / name))


def test_the_run_folder(tiny: Config, digits: Images) -> None:
    result = train(tiny, digits)
    folder = Path(result["out"])
    assert {path.name for path in folder.iterdir()} == set(FILES) - {NAMES, NEIGHBOURS}

    stored = json.loads((folder / "result.json").read_text())
    assert stored == {key: value for key, value in result.items() if key != "out"}
    assert {"acc", "nmi", "ari", "kmeans_acc", "train_seconds", "backend", "seed", "versions"} <= set(stored)
    assert 0 < stored["acc"] <= 1
    assert stored["kmeans_acc"] > 0.5
    assert stored["backend"] == "eager"

    config = json.loads((folder / "config.json").read_text())
    assert config.keys() == {field.name for field in dataclasses.fields(Config)}
    assert config["clusters"] == 10
    assert config["threads"] == torch.get_num_threads()
    assert config["lr"] == pytest.approx(6e-3)

    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in metrics] == [1, 2]
    names = "loss swapped_prediction mutual_information prototype_use prototype_perplexity cluster_use lr"
    assert {*names.split(), "images_per_second", "seconds"} <= metrics[0].keys()

    rows = read_labels(folder)
    assert [int(row["index"]) for row in rows] == list(range(192))
    assert [int(row["label"]) for row in rows] == digits.labels.tolist()
    assert all(0.1 <= float(row["confidence"]) <= 1 and 0 <= int(row["cluster"]) < 10 for row in rows)

    for name in ("confusion.png", "gallery.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")

    run = load_run(folder)
    assert json.loads(json.dumps(run.config.to_dict())) == config
    logits = run.model.predict(run.prepare(digits.images))
    assert logits.argmax(dim=1).tolist() == [int(row["cluster"]) for row in rows]
    assert run.model.embed(run.prepare(digits.images)).shape == (192, 8)


def test_one_seed_is_bitwise_one_run(tiny: Config, digits: Images, tmp_path: Path) -> None:
    first, again, other = (
        dataclasses.replace(elsewhere(tiny, tmp_path, name), seed=seed) for name, seed in (("a", 3), ("b", 3), ("c", 4))
    )
    for config in (first, again, other):
        train(config, digits)
    assert read_metrics(first.out) == read_metrics(again.out)
    assert read_labels(first.out) == read_labels(again.out)
    assert read_metrics(first.out) != read_metrics(other.out)
    states = [load_run(config.out).model.state_dict() for config in (first, again)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_eager_and_cpu_give_one_loss_curve(tiny: Config, digits: Images, tmp_path: Path) -> None:
    if reason := backends.BACKENDS["cpu"].missing():
        pytest.skip(reason)
    curves = []
    for backend in ("eager", "cpu"):
        config = dataclasses.replace(elsewhere(tiny, tmp_path, backend), backend=backend)
        assert train(config, digits)["backend"] == backend
        curves.append(read_metrics(config.out))
    for eager, cpu in zip(*curves, strict=True):
        for name in ("loss", "swapped_prediction", "mutual_information"):
            assert cpu[name] == pytest.approx(eager[name], rel=1e-4)


def test_labels_are_read_by_the_report_only(tiny: Config, digits: Images, tmp_path: Path) -> None:
    true, false, none = (elsewhere(tiny, tmp_path, name) for name in ("true", "false", "none"))
    results = [
        train(true, digits),
        train(false, dataclasses.replace(digits, labels=digits.labels.flip(0))),
        train(none, dataclasses.replace(digits, labels=None)),
    ]
    assert read_metrics(true.out) == read_metrics(false.out) == read_metrics(none.out)
    clusters = [
        [(row["cluster"], row["confidence"]) for row in read_labels(config.out)] for config in (true, false, none)
    ]
    assert clusters[0] == clusters[1] == clusters[2]
    assert results[0]["nmi"] != results[1]["nmi"]
    assert results[2]["acc"] is results[2]["kmeans_acc"] is None
    assert not (Path(none.out) / "confusion.png").exists()


@pytest.mark.parametrize(("freeze", "trained"), [(6, False), (5, True)])
def test_prototypes_rest_until_their_freeze_ends(tiny: Config, digits: Images, freeze: int, trained: bool) -> None:
    config = dataclasses.replace(tiny, freeze_updates=freeze, weight_decay=0.1)
    train(config, digits)
    run = load_run(config.out)
    torch.manual_seed(config.seed)
    initial = build_model(run.config).prototypes.weight
    difference = functional.normalize(initial, dim=1) - run.model.prototypes.weight
    assert (difference.abs().max().item() > 1e-5) == trained


def test_more_clusters_than_classes(tiny: Config, digits: Images) -> None:
    result = train(dataclasses.replace(tiny, clusters=25, epochs=1), digits)
    assert result["clusters"] == 25


def test_a_loss_that_diverges_stops_the_run(tiny: Config, digits: Images) -> None:
    with pytest.raises(RunError, match=r"loss term \w+ became (nan|inf|-inf) at update \d+; a lower --lr"):
        train(dataclasses.replace(tiny, lr=1e30, warmup_updates=0), digits)
    assert not (Path(tiny.out) / "result.json").exists()


def test_a_result_is_not_overwritten_unasked(tiny: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_run_folder(tiny) as folder:
        (folder / "metrics.jsonl").write_text("of an interrupted run\n")
        (folder / "notes.txt").touch()
    with open_run_folder(tiny) as again:
        assert again == folder
    assert not (folder / "metrics.jsonl").exists()
    (folder / "result.json").write_text("{}")
    for function in (require_free, lambda config: open_run_folder(config).__enter__()):
        with pytest.raises(UserError, match="already holds a result; give another --out or --name, or pass --overwr"):
            function(tiny)
    with open_run_folder(dataclasses.replace(tiny, overwrite=True)):
        assert not (folder / "result.json").exists()
    assert (folder / "notes.txt").exists()

    monkeypatch.chdir(tmp_path)
    names = []
    for _ in range(3):
        with open_run_folder(Config()) as made:
            names.append(str(made))
    assert names == ["runs/digits", "runs/digits-2", "runs/digits-3"]
    with open_run_folder(Config(name="mine")) as made:
        assert str(made) == "runs/mine"


def test_an_automatic_choice_is_reported_by_name_and_saved_as_automatic(tiny: Config, digits: Images) -> None:
    config = dataclasses.replace(tiny, backend="auto", epochs=1)
    result = train(config, digits)
    assert result["backend"] == backends.serving("cpu", torch.float32)[0]
    assert json.loads((Path(result["out"]) / "config.json").read_text())["backend"] == "auto"


@pytest.mark.parametrize(
    "sizes", [{"prototypes": 10**12}, {"widths": (10**9, 10**9)}, {"widths": (10**30,)}, {"queue": 10**12}], ids=str
)
def test_a_model_larger_than_the_memory_is_refused_before_it_is_built(
    sizes: dict[str, Any], tiny: Config, digits: Images
) -> None:
    with pytest.raises(
        UserError, match=r"the model takes [\d,.]+ GB, more than the memory here|cannot be built"
    ) as error:
        train(dataclasses.replace(tiny, **sizes), digits)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("method", ["imc-swav", "crlc"])
def test_looking_at_a_models_sizes_draws_no_random_number(method: str, tiny: Config, digits: Images) -> None:
    config = plan(tiny if method == "imc-swav" else crlc_config(tiny), digits)
    before = torch.get_rng_state()
    assert misfit(config, None, {}) is not None
    assert torch.equal(torch.get_rng_state(), before)
