from __future__ import annotations

import copy
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from train.features.blobs import blobs
from train.features.conftest import on_features

from imc import predict
from imc.cli import main
from imc.config import Config
from imc.data import Images
from imc.data.views import Batch
from imc.errors import StoppedError, UserError
from imc.evaluate import evaluate
from imc.features.views import RowViews
from imc.files.csv import read_rows
from imc.files.run_places import NEIGHBOURS
from imc.methods.temi import Temi
from imc.models.standardise import Standardise
from imc.report import Options as ReportOptions
from imc.report import report
from imc.runs.model import load_run
from imc.train import plan, train


@pytest.mark.parametrize(
    "options",
    [{}, {"mutual": True}, {"augmentation": "noise", "noise": 0.2}, {"head_hidden": 8}, {"scaling": "columns"}],
    ids=str,
)
def test_groups_are_found(features: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    result = train(on_features(features, tmp_path / "run", **options))
    assert result is not None
    assert result["acc"] > 0.95
    assert result["kmeans_features_acc"] > 0.95
    assert result["kmeans_acc"] is None
    assert not (tmp_path / "run" / "gallery.png").exists()


def test_by_the_other_method(features: Path, tmp_path: Path) -> None:
    own = {"method": "imc-swav", "sub_heads": None, "prototypes": 12, "classifier_widths": (8,), "lr": 0.01}
    result = train(on_features(features, tmp_path / "run", **own))
    assert result is not None
    assert result["acc"] > 0.9


def test_by_self_distillation(features: Path, tmp_path: Path) -> None:
    config = on_features(features, tmp_path / "run", method="temi", teacher_momentum=0.9)
    result = train(config)
    assert result is not None
    assert result["acc"] > 0.9
    stopped = dataclasses.replace(config, out=str(tmp_path / "stopped"))
    with pytest.raises(StoppedError):
        train(dataclasses.replace(stopped, stop_after_epoch=7))
    train(Config(out=stopped.out, resume=True))
    model = load_run(stopped.out).model.state_dict()
    assert all(torch.equal(x, model[name]) for name, x in load_run(tmp_path / "run").model.state_dict().items())
    assert np.load(tmp_path / "run" / NEIGHBOURS).shape == (90, 5)


def test_the_teachers_and_the_prior_are_moving_averages() -> None:
    encoder = Standardise((8,), "none")
    sizes = {"clusters": 3, "sub_heads": 2, "head_hidden": 0, "beta": 0.6, "temperature": 0.1}
    model = Temi(encoder, teacher_momentum=0.75, **sizes).train()
    before = model.teachers.weight.clone()
    with torch.no_grad():
        model.heads.weight.add_(1)
    views = torch.randn(2, 10, 8)
    step = model([views])
    assert torch.allclose(model.teachers.weight, before + 0.25)
    predicted = (model.teachers(views.flatten(0, 1)) / 0.1).softmax(dim=-1).mean(dim=1)
    assert torch.allclose(model.prior, 0.9 / 3 + 0.1 * predicted, atol=1e-6)
    step.loss.backward()
    assert model.heads.weight.grad is not None
    assert model.teachers.weight.grad is None
    held = copy.deepcopy(model.state_dict())
    model.eval()([views])
    assert all(torch.equal(x, held[name]) for name, x in model.state_dict().items())


def test_rows_may_be_given_from_python(tmp_path: Path) -> None:
    values, labels = blobs()
    data = Images("blobs", torch.from_numpy(values), torch.from_numpy(labels), ("a", "b", "c"))
    own = {"epochs": 30, "warmup_updates": 5, "sub_heads": 4, "neighbours": 5, "lr": 0.02}
    result = train(Config(out=str(tmp_path / "run"), backend="eager", **own), data)  # type: ignore[arg-type]
    assert result is not None
    assert result["acc"] > 0.95


def test_the_default_method_is_that_of_features(features: Path) -> None:
    assert plan(Config(features=(str(features),))).method == "crlc"
    assert plan(Config(data=str(features))).features == (str(features),)
    assert plan(Config(data="digits")).method == "imc-swav"


def test_new_rows_get_the_clusters_of_training(trained_on_features: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "new.npy", blobs()[0].astype(np.float64))
    options = predict.Options(str(trained_on_features), (str(tmp_path / "new.npy"),), out=str(tmp_path / "new.csv"))
    assert predict.predict(options)["images"] == 90
    found = [row["cluster"] for row in read_rows(tmp_path / "new.csv")]
    assert found == [row["cluster"] for row in read_rows(trained_on_features / "labels.csv")]


def test_predictions_of_what_the_run_does_not_take(trained_on_features: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "narrow.npy", np.ones((4, 3)))
    np.save(tmp_path / "images.npy", np.ones((4, 8, 8), np.uint8))
    (tmp_path / "folder").mkdir()
    for name, said in (
        ("narrow.npy", "rows of 3 features"),
        ("images.npy", "shape"),
        ("folder", "no file of features"),
    ):
        with pytest.raises(UserError, match=said):
            predict.predict(predict.Options(str(trained_on_features), (str(tmp_path / name),)))


def test_evaluation_and_page(trained_on_features: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(trained_on_features, tmp_path / "run")
    assert evaluate(folder)["splits"]["train"]["acc"] > 0.95
    assert "row 1" in report(ReportOptions(str(folder))).read_text()


def test_the_model_is_exported(trained_on_features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(trained_on_features), "--format", "torch", "--out", str(tmp_path)]) == 0
    assert "images: float32 [B, 8]" in capsys.readouterr().out
    program = torch.export.load(tmp_path / "model.pt2").module()
    rows = torch.from_numpy(blobs()[0])
    assert torch.equal(program(rows)[2], load_run(trained_on_features).model.predict(rows).argmax(dim=1))


def test_a_resumed_run_is_the_uninterrupted_one(
    features: Path, trained_on_features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = on_features(features, tmp_path / "run")
    with pytest.raises(StoppedError):
        train(dataclasses.replace(config, stop_after_epoch=7))
    moved = tmp_path / "moved.npz"
    shutil.copy(features, moved)
    train(Config(out=config.out, resume=True, features=(str(moved),)), given={"features", "out", "resume"})
    model = load_run(tmp_path / "run").model.state_dict()
    assert all(torch.equal(x, model[name]) for name, x in load_run(trained_on_features).model.state_dict().items())

    values, labels = blobs(seed=1)
    np.savez(moved, features=values, labels=labels)
    with pytest.raises(UserError, match="not all the same"):
        train(Config(out=config.out, resume=True))


def test_its_neighbours_are_those_it_began_with(features: Path, tmp_path: Path) -> None:
    config = on_features(features, tmp_path / "run")
    with pytest.raises(StoppedError):
        train(dataclasses.replace(config, stop_after_epoch=1))
    kept = np.roll(np.load(tmp_path / "run" / NEIGHBOURS), 1, axis=0)
    np.save(tmp_path / "run" / NEIGHBOURS, kept)
    train(Config(out=config.out, resume=True))
    assert (np.load(tmp_path / "run" / NEIGHBOURS) == kept).all()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"neighbours": 90}, "--neighbours must be at most 89, the other rows of blobs, got 90"),
        ({"clusters": 91}, "--clusters must be at most 90, the rows of blobs"),
        ({"encoder": "resnet18"}, "--encoder is for images"),
        ({"flip": 0.5}, "--flip is for images"),
        ({"augmentation": "crops"}, "is for images; of features accepted"),
        ({"data": "digits.npy"}, "exclude each other"),
        ({"train_on": "train+test"}, "--train-on"),
        ({"columns": (9,)}, "--columns must be"),
        ({"beta": 0.5}, "--beta belongs to --method temi, this is --method crlc"),
    ],
)
def test_options_that_features_do_not_take(features: Path, tmp_path: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        train(on_features(features, tmp_path / "run", **options))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("options", [{"neighbours": 3}, {"augmentation": "noise"}, {"files": "y"}, {"method": "temi"}])
def test_options_that_images_do_not_take(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="for features"):
        Config(**options).validate()


def test_views_are_a_function_of_seed_update_and_samples() -> None:
    rows, neighbours = torch.randn(20, 3), torch.randint(20, (20, 4), dtype=torch.int32)

    def views(samples: torch.Tensor, start: int, update: int) -> torch.Tensor:
        made = RowViews(neighbours, views=(2, 1), noise=0.0, seed=3, device=torch.device("cpu"))
        large, small = made(Batch(rows, samples, samples, start, 6), update)
        assert (large.shape[0], small.shape[0]) == (2, 1)
        return torch.cat([large, small])

    samples = torch.tensor([4, 9, 1, 0, 7, 7])
    whole = views(samples, 0, 5)
    assert torch.equal(whole[0], rows[samples])
    assert torch.equal(torch.cat([views(samples[:2], 0, 5), views(samples[2:], 2, 5)], dim=1), whole)
    assert not torch.equal(views(samples, 0, 6)[1:], whole[1:])
    for view in whole[1:]:
        for sample, row in zip(samples.tolist(), view, strict=True):
            assert (rows[neighbours[sample].long()] == row).all(dim=1).any()


def test_what_the_run_prints(
    features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ["--epochs", "1", "--warmup-updates", "1", "--batch-size", "45"]
    assert main(["train", "--features", str(features), *flags]) == 0
    assert "k-means on features" in capsys.readouterr().out
    config = json.loads((tmp_path / "runs" / "blobs" / "config.json").read_text())
    assert config["features"] == [str(features)]
