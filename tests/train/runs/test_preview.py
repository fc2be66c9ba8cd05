"""What is shown before the data are read is what the run then gets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from imc.config import Config
from imc.data.outline import Outline, outline_of, outline_of_source
from imc.features.photographs import SIDE
from imc.runs import data
from imc.runs.preview import preview
from imc.train import plan

# Found in the pixels, by the machine, when the encoder is there, or written as it is from anywhere.
LATER = {"pixel_scale", "mean", "std", "device", "threads", "amp", "channels_last", "feature_dim", "data", "features"}
ENCODER = "module:train.features.pooling.Pooling"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with data sets of several kinds."""
    monkeypatch.setenv("IMC_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(data, "installed_encoder", lambda: ENCODER)
    random = np.random.default_rng(0)
    for name, side, channels in (("icons", 40, 1), ("photos", SIDE, 3)):
        for number in range(12):
            folder = tmp_path / name / "ab"[number % 2]
            folder.mkdir(parents=True, exist_ok=True)
            pixels = random.integers(0, 256, (side, side + number, channels), dtype=np.uint8)
            Image.fromarray(pixels.squeeze()).save(folder / f"{number}.png")
    np.save("grey.npy", random.integers(0, 256, (30, 20, 24), dtype=np.uint8))
    np.save("rows.npy", random.normal(size=(40, 6)).astype(np.float32))
    return tmp_path


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"method": "crlc", "epochs": 3},
        {"data": "grey.npy", "clusters": 3},
        {"data": "icons", "clusters": 3},
        {"data": "icons", "labels_from_folders": True, "method": "crlc", "device": "cpu"},
        {"data": "icons", "clusters": 3, "image_size": 24, "augmentation": "affine"},
        {"data": "photos", "clusters": 3},
        {"data": "photos", "clusters": 3, "method": "imc-swav", "lr": 0.1},
        {"data": "photos", "clusters": 3, "encoder": "resnet18"},
        {"data": "rows.npy", "clusters": 3},
        {"features": ("rows.npy",), "clusters": 3, "method": "temi"},
    ],
    ids=str,
)
def test_a_preview_is_the_plan(given: dict[str, Any], here: Path) -> None:
    before = sorted(here.rglob("*"))
    values, about = preview(given)
    assert sorted(here.rglob("*")) == before
    planned = plan(Config(**given)).to_dict()
    assert {name: value for name, value in values.items() if name not in LATER} == {
        name: planned[name] for name in values if name not in LATER
    }
    assert {"method", "epochs", "batch_size", "lr", "encoder", "clusters"} <= values.keys() | (
        {"encoder"} if planned["features"] else set()
    )
    assert planned["method"] in about


def test_a_number_of_clusters_that_nothing_tells_stays_open(here: Path) -> None:
    values, _ = preview({"data": "icons"})
    assert "clusters" not in values
    assert values["epochs"] > 1


@pytest.mark.parametrize("source", ["digits", "grey.npy"])
def test_an_outline_is_that_of_the_data(source: str, here: Path) -> None:
    assert outline_of_source(source) == outline_of(data.run_data(Config(data=source)), with_test=False)


def test_an_outline_of_a_published_set_needs_no_file(here: Path) -> None:
    assert outline_of_source("cifar100") == Outline("cifar100", 50_000, 100, side=32, channels=3)
    assert outline_of_source("stl10", with_test=True) == Outline("stl10", 13_000, 10, side=96, channels=3)
    assert outline_of_source("mnist", image_size=14) == Outline("mnist", 60_000, 10, side=14, channels=1)
