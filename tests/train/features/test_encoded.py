from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from train.features import pooling

from imc import predict
from imc.config import Config
from imc.errors import StoppedError, UserError
from imc.evaluate import evaluate
from imc.features.encoded import frozen_encoder
from imc.files.csv import read_rows
from imc.report import Options as ReportOptions
from imc.report import report
from imc.train import plan, train

NAME = "module:train.features.pooling.build"


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMC_CACHE", str(tmp_path_factory.getbasetemp() / "encoded"))


def encoded(photos: Path, out: Path, **options: Any) -> Config:
    own = {"epochs": 30, "warmup_updates": 5, "sub_heads": 4, "neighbours": 5, "checkpoint_every": 0, "lr": 0.02}
    shown = {"labels_from_folders": True, "backend": "eager", "encoder": NAME}
    return Config(data=str(photos), out=str(out), **{**shown, **own, **options})


@pytest.fixture(scope="module")
def run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IMC_CACHE", str(tmp_path_factory.getbasetemp() / "encoded"))
        out = tmp_path_factory.mktemp("encoded") / "run"
        train(encoded(photos, out))
    return out


def test_the_result_stands_beside_both_baselines(run: Path) -> None:
    result = json.loads((run / "result.json").read_text())
    assert result["acc"] > 0.95
    assert result["images"] == 60
    assert result["kmeans_features_acc"] is not None
    assert result["kmeans_acc"] is not None
    assert (run / "gallery.png").exists()
    config = json.loads((run / "config.json").read_text())
    assert (config["method"], config["encoder"]) == ("crlc", NAME)
    assert config["weights_sha256"] == frozen_encoder(NAME, None, None, "cpu").weights_sha256


def test_pictures_are_predicted_as_in_training(run: Path, photos: Path, tmp_path: Path) -> None:
    known = {row["file"]: row["cluster"] for row in read_rows(run / "labels.csv")}
    result = predict.predict(predict.Options(str(run), (str(photos),), out=str(tmp_path / "all.csv")))
    assert (result["images"], result["skipped"]) == (60, 1)
    assert {row["file"]: row["cluster"] for row in read_rows(tmp_path / "all.csv")} == known
    one = str(photos / "green" / "4.png")
    result = predict.predict(predict.Options(str(run), (one,), out=str(tmp_path / "one.csv")))
    assert [str(cluster) for _, cluster, _ in result["pictures"]] == [known["green/4.png"]]


def test_rows_of_features_are_predicted_too(run: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", np.ones((3, 12)))
    assert predict.predict(predict.Options(str(run), (str(tmp_path / "rows.npy"),)))["images"] == 3
    np.save(tmp_path / "images.npy", np.full((5, 20, 24, 3), 200, np.uint8))
    assert predict.predict(predict.Options(str(run), (str(tmp_path / "images.npy"),)))["images"] == 5


def test_evaluation_and_page(run: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(run, tmp_path / "run")
    assert evaluate(folder)["splits"]["train"]["acc"] > 0.95
    assert "data:image" in report(ReportOptions(str(folder))).read_text()


def test_it_is_resumed(photos: Path, tmp_path: Path) -> None:
    config = encoded(photos, tmp_path / "run")
    with pytest.raises(StoppedError):
        train(dataclasses.replace(config, stop_after_epoch=3))
    moved = tmp_path / "moved"
    shutil.copytree(photos, moved)
    result = train(Config(out=config.out, resume=True, data=str(moved)), given={"out", "resume", "data"})
    assert result is not None
    assert result["acc"] > 0.95


def test_other_weights_are_refused(run: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pooling, "build", pooling.other)
    frozen_encoder.cache_clear()
    with pytest.raises(UserError, match=r"has other weights here than those of the run: SHA-256"):
        predict.predict(predict.Options(str(run), (str(photos),), overwrite=True))
    frozen_encoder.cache_clear()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"encoder": "resnet19"}, "--encoder 'resnet19' is not known; accepted are digits, resnet18"),
        ({"encoder": "resnet18", "weights": "w.pt"}, "--weights is for a pretrained --encoder"),
        ({"encoder": NAME, "flip": 0.5}, "--flip is for images, and the run is on --encoder"),
        ({"encoder": NAME, "train_on": "train+test"}, "--train-on is for images"),
        ({"encoder": NAME, "files": "names.txt"}, "--files is for features"),
        ({"encoder": NAME, "features": ("a.npy",)}, "--encoder is for images"),
    ],
)
def test_options_that_do_not_go_together(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Config(**options).validate()


def test_a_named_set(tmp_path: Path) -> None:
    config = plan(Config(data="digits", encoder=NAME, out=str(tmp_path / "run")))
    assert (config.columns, config.clusters) == ((12,), 10)
