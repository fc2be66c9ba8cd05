"""A recipe for less than an hour is one: copied, it is accepted, and takes the time that it says."""

from __future__ import annotations

import shlex
from typing import Any

import pytest
import torch

from imc.command_line import arguments
from imc.config import Config
from imc.config.resolve import resolve
from imc.data import Dataset, Images
from imc.runs import smaller
from imc.runs.plan import HOUR
from imc.runs.smaller import smaller_recipe

CPU = torch.device("cpu")
POOLING = "module:train.features.pooling.Pooling"


def pictures(name: str, count: int, side: int, channels: int = 3) -> Dataset:
    """So many images, of which one stands for all."""
    pixels = torch.arange(side * side * channels).remainder(256).to(torch.uint8).view(1, side, side, channels)
    images = Images(name, pixels.expand(count, -1, -1, -1), torch.arange(count) % 10, tuple("abcdefghij"))
    return Dataset(name, images, None, None, (0.5,) * channels, (0.25,) * channels, "")


def rows(count: int) -> Dataset:
    images = Images("rows", torch.zeros(1, 8).expand(count, -1), None, ())
    return Dataset("rows", images, None, None, (), (), "")


def recipe(asked: Config, data: Dataset, seconds: float) -> str:
    config = resolve(asked, data, CPU)
    found = smaller_recipe(asked, asked.given(), config, data, len(data.train.images), seconds)
    assert found is not None
    return found


def parsed(sentence: str) -> Config:
    assert sentence.startswith("a smaller recipe, about ")
    program, command, *argv = shlex.split(sentence.partition(": ")[2])
    assert (program, command) == ("imc", "train")
    return arguments.parse_given(Config, argv, program="imc train", description="")[0].validate()


@pytest.fixture(autouse=True)
def not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smaller, "installed_encoder", lambda: None)


CASES: list[tuple[dict[str, Any], Dataset, float]] = [
    ({"data": "cifar10"}, pictures("cifar10", 50_000, 32), 20.0),
    ({"data": "cifar10", "method": "crlc", "seed": 3}, pictures("cifar10", 50_000, 32), 20.0),
    ({"data": "my photos/$x", "clusters": 7, "encoder": "resnet50"}, pictures("x", 9_000, 96), 60.0),
    (
        {"data": "-x", "clusters": 7, "encoder": "resnet18", "stem": "imagenet", "lr": 0.1},
        pictures("x", 700, 224),
        60.0,
    ),
    ({"data": "tiny-imagenet", "out": "runs/it's", "batch_size": 64}, pictures("tiny-imagenet", 100_000, 64), 9.0),
    ({"data": "stl10", "name": "mine", "overwrite": True}, pictures("stl10", 5_000, 96), 30.0),
    ({"data": "mnist", "epochs": 4000}, pictures("mnist", 60_000, 28, 1), 0.3),
    ({"epochs": 10_000}, pictures("digits", 1_797, 8, 1), 0.3),
    ({"features": ("a b.npy",), "data": "a b.npy", "clusters": 3, "epochs": 10_000}, rows(4_000), 1.0),
    (
        {"features": ("a.npy", "b.npy"), "data": "a.npy", "clusters": 3, "method": "temi", "epochs": 99_999},
        rows(900),
        1.0,
    ),
]


@pytest.mark.parametrize(("options", "data", "seconds"), CASES)
def test_it_takes_less_than_an_hour(
    options: dict[str, Any], data: Dataset, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(smaller, "_seconds_of_update", lambda config: 0.8)
    asked, count = Config(**options), len(data.train.images)
    before = resolve(asked, data, CPU)
    steps = count // before.batch_size
    assert before.epochs * steps * seconds > HOUR
    copied = parsed(recipe(asked, data, seconds))
    side = copied.image_size or (0 if before.side is None else before.side)
    small = data if before.on_features else pictures(data.name, count, side, before.channels)
    after = resolve(copied, small, CPU)
    rate = seconds if before.on_features or before.encoder == "digits" else 0.8
    assert after.epochs * (count // after.batch_size) * rate < HOUR
    assert (after.clusters, after.method, after.seed) == (before.clusters, before.method, before.seed)
    assert not copied.overwrite
    assert (copied.out is None, copied.name is None) == (asked.out is None, asked.name is None)
    assert copied.out is None or copied.out != asked.out


@pytest.mark.parametrize("name", ["cifar10", "my/photos"])
def test_an_installed_encoder_comes_first(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smaller, "installed_encoder", lambda: POOLING)
    asked = Config(data=name, clusters=5, method="imc-swav", encoder="resnet34", stem="imagenet", train_on="train")
    copied = parsed(recipe(asked, pictures(name, 50_000, 32), 20.0))
    assert (copied.data, copied.clusters, copied.encoder, copied.stem) == (name, 5, POOLING, None)


def test_an_encoder_that_takes_too_long_for_so_many_images_is_not_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smaller, "installed_encoder", lambda: POOLING)
    monkeypatch.setattr(smaller, "_seconds_of_embedding", lambda encoder: 1.0)
    monkeypatch.setattr(smaller, "_seconds_of_update", lambda config: 0.8)
    assert parsed(recipe(Config(data="cifar10"), pictures("cifar10", 50_000, 32), 20.0)).encoder == "digits"


def test_a_trial_that_fails_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smaller, "installed_encoder", lambda: "module:no.such")
    asked, data = Config(data="cifar10"), pictures("cifar10", 50_000, 32)
    assert smaller_recipe(asked, {"data"}, resolve(asked, data, CPU), data, 50_000, 20.0) is None


def test_where_nothing_is_short_enough_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smaller, "_seconds_of_update", lambda config: 100.0)
    assert "takes less than an hour" in recipe(Config(data="cifar10"), pictures("cifar10", 50_000, 32), 2000.0)


@pytest.mark.parametrize("method", ["imc-swav", "crlc"])
def test_the_trial_makes_updates_and_leaves_the_generators(method: str) -> None:
    data = pictures("few", 40, 32)
    torch.manual_seed(0)
    expected = torch.randn(3)
    torch.manual_seed(0)
    sentence = recipe(Config(data="few", method=method, clusters=4, encoder="resnet18", epochs=99_999), data, 10.0)
    assert torch.equal(torch.randn(3), expected)
    assert parsed(sentence).epochs == smaller.MOST_EPOCHS or parsed(sentence).epochs > 0
