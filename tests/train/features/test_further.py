"""A pretrained encoder that is trained further: from its weights, by both methods, and reloaded by every command."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from train.features.further import Small

from imc import export, predict
from imc.command_line.options import only
from imc.config import Config, presets
from imc.data import load
from imc.data.options import CropOptions
from imc.data.views import Batch
from imc.errors import StoppedError, UserError
from imc.evaluate import Options as EvaluateOptions
from imc.evaluate import evaluate
from imc.features.views import NeighbourCrops
from imc.files.csv import read_rows
from imc.files.run_places import NEIGHBOURS
from imc.models.further import architecture
from imc.report import Options as ReportOptions
from imc.report import report
from imc.runs.data import run_data, sourced
from imc.runs.model import load_run
from imc.runs.plan import announced
from imc.scores.evaluation import outputs
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


@pytest.fixture(autouse=True, scope="module")
def few_updates_of_the_heads() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(presets, "FEWEST_UPDATES", 40)
        yield


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
    assert int(trained["module.norm.num_batches_tracked"]) == 0  # the statistics are those that it came with
    assert torch.equal(trained["module.norm.running_var"], Small().norm.running_var)
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


@pytest.mark.parametrize("damaged", [False, True])
def test_it_is_resumed_bitwise(damaged: bool, run: Path, photos: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(load_run(run).config, out=str(tmp_path / "parts"), name=None)
    with pytest.raises(StoppedError):
        train(dataclasses.replace(config, stop_after_epoch=1), report=False)
    if damaged:
        (tmp_path / "parts" / NEIGHBOURS).write_bytes(b"\x93NUMPY")
    train(Config(out=config.out, resume=True), given={"out", "resume"}, report=False)
    one, other = (load_run(folder).model.state_dict() for folder in (run, tmp_path / "parts"))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("method", ["crlc", "imc-swav"])
def test_it_begins_with_the_answer_of_the_kept_encoder(method: str, photos: Path, tmp_path: Path) -> None:
    """Heads that know nothing would undo what the encoder knows. Here nothing is learned after those of the kept."""
    still = {"lr": 1e-30, "classifier_lr": 1e-30, "epochs": 1}
    found = {}
    for name, options in (("kept", {"train_encoder": False}), ("further", {"train_encoder": True, **still})):
        sizes = {"prototypes": 8, "classifier_widths": (8,)} if method == "imc-swav" else {"sub_heads": 3}
        shown = {"labels_from_folders": True, "encoder": NAME, "clusters": 3, "image_size": 16, "seed": 3}
        config = Config(data=str(photos), out=str(tmp_path / name), method=method, **sizes, **shown, **options)
        train(config, report=False)
        run = load_run(tmp_path / name)
        found[name] = outputs(run, run_data(run.config).train.images).clusters
    assert len(set(found["kept"])) == 3
    np.testing.assert_array_equal(found["further"], found["kept"])


def test_crops_of_neighbours_do_not_depend_on_the_number_of_ranks(photos: Path, tmp_path: Path) -> None:
    config = plan(further(photos, tmp_path, method="crlc"))
    neighbours = torch.tensor([[1, 2], [2, 3], [3, 0], [0, 1]], dtype=torch.int32)
    views = NeighbourCrops(only(config, CropOptions), neighbours)
    samples, images = torch.tensor([3, 0, 2, 1]), torch.arange(4 * 16 * 16 * 3).view(4, 16, 16, 3).to(torch.uint8)

    def crops(start: int, end: int, update: int) -> torch.Tensor:
        rows = views.with_neighbours(samples[start:end], start, 4, update)
        own, other = rows.view(2, -1)
        assert torch.equal(own, samples[start:end])
        assert all(int(second) in neighbours[first] for first, second in zip(own, other, strict=True))
        return views(Batch(images, rows, rows, start, 4), update)[0]

    whole = crops(0, 4, 5)
    assert whole.shape == (2, 4, 3, 16, 16)
    assert torch.equal(whole, torch.cat([crops(0, 2, 5), crops(2, 4, 5)], dim=1))
    assert not torch.equal(whole, crops(0, 4, 6))


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
    assert "no better than keeping it" in announced(config, load(str(photos), image_size=32), 60, 1, 0)


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
        ({"encoder": NAME, "views": 3}, "--views is for an --encoder that is kept"),
        ({"encoder": NAME, "bank": True}, "--bank is for an encoder that is trained from nothing"),
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
