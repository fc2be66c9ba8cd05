"""A pretrained encoder that is trained further: from its weights, by both methods, and reloaded by every command."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from train.features.further import Small

from imc import export, predict
from imc.config import Config
from imc.data import load
from imc.errors import StoppedError, UserError
from imc.evaluate import Options as EvaluateOptions
from imc.evaluate import evaluate
from imc.files.csv import read_rows
from imc.models.further import architecture
from imc.report import Options as ReportOptions
from imc.report import report
from imc.runs.data import sourced
from imc.runs.model import load_run
from imc.train import plan, train

NAME = "module:train.features.further.build"


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMC_CACHE", str(tmp_path_factory.getbasetemp() / "further"))


def further(photos: Path, out: Path, **options: Any) -> Config:
    own = {
        "epochs": 3,
        "warmup_updates": 1,
        "batch_size": 20,
        "embedding_dim": 8,
        "projection_hidden": 8,
        "clusters": 3,
    }
    shown = {"labels_from_folders": True, "backend": "eager", "encoder": NAME, "train_encoder": True, "clusters": 3}
    heads = {"prototypes": 8, "classifier_widths": (8,)} if options.get("method") != "crlc" else {"sub_heads": 2}
    return Config(data=str(photos), out=str(out), **{**shown, **own, **heads, **options})


@pytest.fixture(scope="module", params=["crlc", "imc-swav"])
def run(request: pytest.FixtureRequest, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IMC_CACHE", str(tmp_path_factory.getbasetemp() / "further"))
        out = tmp_path_factory.mktemp("further") / "run"
        train(further(photos, out, method=request.param, lr=0.01))
    return out


def test_the_weights_are_trained_and_stored(run: Path) -> None:
    trained = load_run(run).model.encoder.state_dict()
    assert not torch.equal(trained["module.conv.weight"], Small().conv.weight)
    assert int(trained["module.norm.num_batches_tracked"]) == 2 * 3 * 3  # each view by itself
    config = json.loads((run / "config.json").read_text())
    assert (config["encoder"], config["train_encoder"], config["large_size"]) == (NAME, True, 16)
    assert config["mean"] == [0.4, 0.5, 0.6]


def test_every_command_reloads_it(run: Path, photos: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(run, tmp_path / "run")
    known = {row["file"]: row["cluster"] for row in read_rows(folder / "labels.csv")}
    result = predict.predict(predict.Options(str(folder), (str(photos),), out=str(tmp_path / "all.csv")))
    assert (result["images"], result["skipped"]) == (60, 1)
    assert {row["file"]: row["cluster"] for row in read_rows(tmp_path / "all.csv")} == known
    settings = EvaluateOptions((str(folder),), skip_probes=True, skip_figures=True)
    assert (
        evaluate(folder, settings)["splits"]["train"]["acc"] == json.loads((folder / "result.json").read_text())["acc"]
    )
    if load_run(folder).config.method == "crlc":  # the slow ones once
        assert "data:image" in report(ReportOptions(str(folder))).read_text()
    else:
        assert export.export(export.Options(str(folder), format="torch"))["shape"] == (16, 16, 3)


def test_it_is_resumed_bitwise(photos: Path, tmp_path: Path) -> None:
    whole = further(photos, tmp_path / "whole", method="crlc")
    train(whole, report=False)
    config = dataclasses.replace(whole, out=str(tmp_path / "parts"))
    with pytest.raises(StoppedError):
        train(dataclasses.replace(config, stop_after_epoch=1), report=False)
    train(Config(out=config.out, resume=True), given={"out", "resume"}, report=False)
    one, other = (load_run(tmp_path / name).model.state_dict() for name in ("whole", "parts"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_weights_of_a_file_are_the_start(photos: Path, tmp_path: Path) -> None:
    network = Small()
    torch.nn.init.normal_(network.conv.weight)
    torch.save(network.state_dict(), tmp_path / "own.pt")
    config = further(photos, tmp_path / "run", method="crlc", weights=str(tmp_path / "own.pt"), lr=1e-30, epochs=1)
    train(config, report=False)
    (tmp_path / "own.pt").unlink()  # a run holds what became of them
    assert torch.equal(load_run(tmp_path / "run").model.encoder.module.conv.weight, network.conv.weight)


def test_images_of_another_size_and_grey_ones_pass_it(tmp_path: Path) -> None:
    digits = load("digits").train
    digits = dataclasses.replace(digits, images=digits.images[:40], labels=None)
    config = dataclasses.replace(further(Path("digits"), tmp_path / "run", method="crlc"), labels_from_folders=False)
    train(config, digits)
    saved = load_run(tmp_path / "run").config
    assert (saved.side, saved.channels, saved.large_size, saved.mean) == (8, 1, 16, (0.5,))


def test_loading_leaves_the_generator(run: Path) -> None:
    before = torch.get_rng_state()
    load_run(run)
    architecture("efficientnet-lite0")
    assert torch.equal(torch.get_rng_state(), before)


def test_the_size_asked_for_is_that_of_images_and_views(photos: Path) -> None:
    lite = sourced(Config(data=str(photos), train_encoder=True, image_size=32, clusters=3))
    assert lite.encoder == "efficientnet-lite0"
    config = plan(lite)
    assert (config.side, config.large_size, config.feature_dim, config.encodes) == (32, 32, 1280, False)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "--train-encoder needs a pretrained --encoder, .* and none is given"),
        (
            {"encoder": "resnet18"},
            "--train-encoder needs a pretrained .* and resnet18 is trained without it",
        ),
        ({"encoder": "resnet19"}, "--encoder 'resnet19' is not known"),
        ({"encoder": NAME, "method": "temi"}, "--method temi is for features"),
        ({"encoder": NAME, "neighbours": 3}, "--neighbours is for features"),
        ({"encoder": NAME, "features": ("a.npy",)}, "--encoder is for images"),
        ({"features": ("a.npy",)}, "--train-encoder is for images"),
        ({"encoder": NAME, "freeze_encoder": True, "init": "x"}, "--train-encoder and --freeze-encoder exclude each"),
        ({"encoder": NAME, "weights": "w", "init": "x"}, "--weights and --init both say"),
        ({"encoder": NAME, "augmentation": "affine"}, "--train-encoder takes --augmentation crops, got affine"),
        ({"encoder": NAME, "sync_bn": True}, "--sync-bn is for the encoders of this package"),
        ({"encoder": NAME, "thread_independent": True}, "--thread-independent is for the encoders of this package"),
    ],
)
def test_options_that_do_not_go_together(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        Config(train_encoder=True, **options).validate()
    assert "\n" not in str(error.value)


def test_a_network_that_cannot_take_the_size_is_refused(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"must take images float32 .* of 24x24 pixels it says: images of"):
        train(further(photos, tmp_path / "run", image_size=24))
    assert not (tmp_path / "run").exists()
