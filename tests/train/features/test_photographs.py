"""A folder of photographs is shown to a pretrained encoder where one is installed, and is told of it where not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from imc.config import Config
from imc.features.photographs import ADVICE, SIDE, are_photographs
from imc.runs import data

NAME = "module:train.features.pooling.Pooling"


def pictures(folder: Path, width: int, height: int) -> str:
    (folder / "inner").mkdir(parents=True)
    for number in range(4):
        pixels = np.full((height, width, 3), 60 * number, np.uint8)
        Image.fromarray(pixels).save(folder / "inner" / f"{number}.png")
    (folder / "notes.txt").write_text("no picture")
    (folder / "broken.png").write_bytes(b"no picture")
    return str(folder)


@pytest.fixture
def photographs(tmp_path: Path) -> str:
    return pictures(tmp_path / "photographs", SIDE, SIDE + 30)


@pytest.fixture
def icons(tmp_path: Path) -> str:
    return pictures(tmp_path / "icons", SIDE - 1, SIDE + 30)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "installed_encoder", lambda: NAME)


@pytest.fixture
def absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "installed_encoder", lambda: None)


@pytest.mark.usefixtures("installed")
def test_photographs_are_shown_to_the_installed_encoder(photographs: str) -> None:
    config = data.sourced(Config(data=photographs))
    assert config.encoder == NAME
    assert len(config.weights_sha256 or "") == 64


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    "options",
    [
        {"encoder": "resnet18"},
        {"image_size": 32},
        {"large_size": 28},
        {"augmentation": "crops"},
        {"train_on": "train+test"},
        {"stem": "cifar"},
        {"init": "runs/other"},
    ],
    ids=lambda options: next(iter(options)),
)
def test_an_option_for_pixels_keeps_the_run_on_pixels(photographs: str, options: dict[str, Any]) -> None:
    assert data.sourced(Config(data=photographs, **options)) == Config(data=photographs, **options)


@pytest.mark.usefixtures("installed")
def test_a_module_of_ones_own_is_trained_on_them(photographs: str) -> None:
    assert data.sourced(Config(data=photographs), own_encoder=True).encoder is None


@pytest.mark.usefixtures("installed")
def test_small_pictures_and_named_sets_stay_pixels(icons: str) -> None:
    for source in (icons, "digits", "cifar10"):
        assert not are_photographs(source)
        assert data.sourced(Config(data=source)).encoder is None


@pytest.mark.usefixtures("absent")
def test_without_an_encoder_the_run_says_what_one_would_bring(photographs: str, icons: str) -> None:
    assert ADVICE in data.run_data(data.sourced(Config(data=photographs))).note
    assert ADVICE not in data.run_data(Config(data=photographs, encoder="resnet18")).note
    assert ADVICE not in data.run_data(Config(data=icons)).note
