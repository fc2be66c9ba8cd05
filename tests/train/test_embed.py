"""The command `imc embed` on a few pictures and a network that costs nothing."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from imc.cli import main
from imc.embed import Options, embed
from imc.errors import UserError
from imc.models.named import load_encoder

NETWORKS = """
from torch import nn

def pooled():
    network = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())
    network.side = 16
    return network

def maps():
    return nn.MaxPool2d(4)
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A working folder with networks and photographs."""
    (tmp_path / "own_networks.py").write_text(NETWORKS)
    generator = np.random.default_rng(0)
    for index in range(6):
        path = tmp_path / "photos" / ("train" if index < 4 else "val") / "xy"[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(256, size=(20, 30, 3), dtype=np.uint8)).save(path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("IMC_CACHE", str(tmp_path / "cache"))
    yield
    sys.modules.pop("own_networks", None)


def options(**given: Any) -> Options:
    return Options(**{"data": "photos", "encoder": "module:own_networks.pooled", "amp": "off", **given})


def test_features_their_images_and_their_encoder_are_written() -> None:
    result = embed(options(labels_from_folders=True, out="out/photos.npy"))
    assert result["files"] == [f"out/photos.{kind}" for kind in ("npy", "csv", "json")]
    assert (result["images"], result["features"], result["computed"]) == (6, 12, 6)
    features = np.load("out/photos.npy", mmap_mode="r")
    assert (features.shape, features.dtype) == ((6, 12), np.float32)
    with Path("out/photos.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["row"] for row in rows] == [str(row) for row in range(6)]
    assert [(row["file"], row["split"], row["label"], row["class"]) for row in rows] == [
        (f"{folder}/{kind}/{index}.png", split, str("xy".index(kind)), kind)
        for folder, split, indices in (("train", "train", (0, 2, 1, 3)), ("val", "test", (4, 5)))
        for index in indices
        for kind in "xy"[index % 2]
    ]
    described = json.loads(Path("out/photos.json").read_text())
    encoder = load_encoder("module:own_networks.pooled", amp="off")
    assert described.items() >= encoder.identity.items()
    assert (described["shape"], described["splits"]) == ([6, 12], {"train": 4, "test": 2})
    assert described["classes"] == ["x", "y"]


def test_a_second_run_knows_all_and_replaces_only_if_told(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["embed", "photos", "--encoder", "module:own_networks.pooled", "--out", "photos.npy"]
    assert main(arguments) == 0
    assert "6 images: 12 features of module:own_networks.pooled\n" in capsys.readouterr().out
    assert main(arguments) == 2
    assert "photos.npy exists already; give another --out, or pass --overwrite" in capsys.readouterr().err
    Image.new("RGB", (20, 20)).save("photos/train/new.png")
    assert main([*arguments, "--overwrite"]) == 0
    assert "7 images, of which 6 were known" in capsys.readouterr().out


def test_views_and_half_precision() -> None:
    embed(options(views=3, dtype="float16"))
    features = np.load("features.npy")
    assert (features.shape, features.dtype) == ((6, 3, 12), np.float16)
    assert json.loads(Path("features.json").read_text())["views_seed"] == 0


def test_digits_without_files() -> None:
    result = embed(options(data="digits", image_size=8))
    with Path("features.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == result["images"] == 1797
    assert (rows[3]["file"], rows[3]["label"], rows[3]["class"]) == ("train[3]", "3", "3")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"data": "phots"}, "'phots' is not there; accepted are digits, .*; did you mean photos"),
        ({"data": "cifar10", "data_root": "."}, "--data cifar10 is not in ."),
        ({"out": "photos.npz"}, "--out must be a file that ends in .npy, got 'photos.npz'"),
        ({"out": "photos"}, "--out must be a file that ends in .npy, got 'photos'"),
        ({"encoder": "resnet18"}, "--encoder 'resnet18' is not known; accepted are efficientnet-lite0"),
        ({"encoder": "module:own_networks.maps"}, "must give one vector an image"),
        ({"weights": "absent.pt"}, "--weights absent.pt is not there"),
        ({"dtype": "float64"}, "--dtype 'float64' is not known; accepted are float32, float16"),
        ({"views": 1}, "--views must be an integer of at least 2, got 1"),
        ({"image_size": 0}, "--image-size must be an integer of at least 8"),
        ({"data": "photos/train/x/0.png"}, "of files, .npy and .npz are accepted"),
    ],
)
def test_what_cannot_be_embedded_is_one_sentence_and_leaves_nothing(given: dict[str, Any], said: str) -> None:
    before = sorted(Path().rglob("*.*"))
    with pytest.raises(UserError, match=said) as error:
        embed(options(**given))
    assert "\n" not in str(error.value)
    assert [
        path for path in sorted(Path().rglob("*.*")) if path not in before and "__pycache__" not in path.parts
    ] == []
