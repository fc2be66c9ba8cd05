from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from train.features.blobs import blobs

from imc.config import Config
from imc.train import train


@pytest.fixture(scope="session")
def rows() -> NDArray[np.float32]:
    """Three groups of 30 rows each."""
    return blobs()[0]


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of three colours, 20 of each, and a file that is damaged."""
    folder = tmp_path_factory.mktemp("images") / "photos"
    random = np.random.default_rng(0)
    for number, name in enumerate(("red", "green", "blue")):
        (folder / name).mkdir(parents=True)
        for index in range(20):
            pixels = random.integers(0, 100, (20, 24, 3))
            pixels[..., number] += 150
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{index}.png")
    (folder / "red" / "3a.png").write_bytes((folder / "red" / "3.png").read_bytes()[:200])
    return folder


@pytest.fixture(scope="session")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with their labels, as an .npz."""
    path = tmp_path_factory.mktemp("features") / "blobs.npz"
    values, labels = blobs()
    np.savez(path, features=values, labels=labels)
    return path


@pytest.fixture(scope="session")
def trained_on_features(features: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run on them; a test that writes into it works on a copy."""
    out = tmp_path_factory.mktemp("trained") / "run"
    train(on_features(features, out))
    return out


def on_features(features: Path, out: Path, **options: object) -> Config:
    """A run on features that takes a fraction of a second."""
    own = {"epochs": 30, "warmup_updates": 5, "sub_heads": 4, "neighbours": 5, "checkpoint_every": 0, "lr": 0.02}
    return Config(features=(str(features),), out=str(out), backend="eager", **{**own, **options})  # type: ignore[arg-type]
