"""The presets are the papers' tables; what the user gives wins."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from imc.config import Config, presets
from imc.config.filling import filled, require_fit
from imc.data.outline import Outline
from imc.errors import UserError
from imc.training.optimizer import learning_rate


def resolve(config: Config, name: str, *, side: int, channels: int, count: int, classes: int) -> Config:
    data = Outline(name, count, classes, side=side, channels=channels)
    return require_fit(filled(config, data), data)


def resolved(method: str, data: str, side: int, channels: int = 3, **given: Any) -> Config:
    config = Config(method=method, data=data, **given)
    return resolve(config, data, side=side, channels=channels, count=50_000, classes=10)


@pytest.mark.parametrize(
    ("data", "side", "large", "small", "batch", "stem"),
    [
        ("cifar10", 32, 28, 18, 256, "cifar"),
        ("cifar20", 32, 28, 18, 256, "cifar"),
        ("cifar100", 32, 28, 18, 512, "cifar"),
        ("stl10", 96, 76, 52, 256, "cifar-pool"),
        ("tiny-imagenet", 64, 56, 36, 512, "cifar-pool"),
    ],
)
def test_imc_swav_is_the_table_of_its_specification(
    data: str, side: int, large: int, small: int, batch: int, stem: str
) -> None:
    config = resolved("imc-swav", data, side)
    assert (config.large_crops, config.small_crops) == (2, 4)
    assert (config.large_size, config.small_size, config.batch_size, config.stem) == (large, small, batch, stem)
    assert (config.large_area, config.small_area) == ((0.2, 1.0), (0.08, 0.4))
    assert (config.flip, config.jitter_probability, config.grayscale, config.blur_probability) == (0.5, 0.8, 0.25, 0)
    assert (config.brightness, config.contrast, config.saturation, config.hue) == (0.4, 0.4, 0.4, 0.1)
    assert (config.optimizer, config.lr, config.classifier_lr) == ("adam", 5e-4, 5e-4)
    assert (config.beta1, config.beta2, config.weight_decay) == (0.8, 0.999, 1e-5)
    assert (config.epochs, config.warmup_updates, config.freeze_updates) == (500, 500, 500)
    assert (config.encoder, config.prototypes, config.embedding_dim) == ("resnet18", 1000, 128)
    assert (config.temperature, config.sinkhorn_epsilon, config.sinkhorn_iterations) == (0.1, 0.05, 3)
    assert (config.entropy_weight, config.logit_limit, config.projection_bias) == (4, 5, True)
    assert config.bank == (data == "stl10")
    assert not config.decay_matrices_only
    assert config.normalize


@pytest.mark.parametrize(("data", "side", "blur"), [("cifar10", 32, 0.0), ("cifar20", 32, 0.0), ("stl10", 96, 0.5)])
def test_crlc_is_its_specification(data: str, side: int, blur: float) -> None:
    config = resolved("crlc", data, side)
    assert (config.large_crops, config.small_crops, config.large_size, config.large_area) == (2, 0, side, (0.2, 1.0))
    assert (config.grayscale, config.blur_probability, config.normalize) == (0.2, blur, data != "stl10")
    assert (config.optimizer, config.lr, config.schedule, config.momentum) == ("sgd", 0.1, "constant", 0.9)
    assert (config.weight_decay, config.decay_matrices_only) == (5e-4, True)
    assert (config.batch_size, config.epochs, config.warmup_updates) == (512, 2000, 0)
    assert (config.encoder, config.sub_heads, config.head_hidden, config.embedding_dim) == ("resnet34", 10, 512, 128)
    assert (config.smoothing, config.entropy_weight, config.logit_limit) == (0.01, 2, 25)
    assert (config.contrast_weight, config.temperature) == (10, 0.1)


def test_the_learning_rate_of_the_paper() -> None:
    config = resolved("imc-swav", "cifar10", 32)
    steps = 195
    rates = [learning_rate(update, config, 5e-4, steps) for update in range(500 * steps)]
    assert rates[0] == pytest.approx(1e-6)
    assert rates[249] == pytest.approx(2.5e-4)
    assert rates[499] == rates[150 * steps - 1] == pytest.approx(5e-4)
    for epoch, factor in ((150, 0.4), (300, 0.16), (400, 0.064)):
        assert rates[epoch * steps] == pytest.approx(5e-4 * factor)
        assert rates[epoch * steps - 1] == pytest.approx(5e-4 * factor / 0.4)


def test_the_cosine_ends_at_zero() -> None:
    config = dataclasses.replace(resolved("imc-swav", "digits", 8, 1), epochs=10, warmup_updates=4)
    rates = [learning_rate(update, config, 2.0, 1) for update in range(10)]
    assert rates[:5] == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0])
    assert rates[7] == pytest.approx(1.0)
    assert 0 < rates[9] < 0.2


def test_what_is_given_wins() -> None:
    config = resolved("imc-swav", "cifar10", 32, lr=1.0, projection_bias=False, large_area=(0.3, 0.4))
    assert (config.lr, config.classifier_lr, config.projection_bias, config.large_area) == (1.0, 1.0, False, (0.3, 0.4))


def test_own_images_take_the_natural_preset_nearest_to_their_size() -> None:
    config = resolved("imc-swav", "photos", 128)
    assert (config.large_size, config.small_size, config.augmentation) == (101, 69, "crops")
    assert resolved("crlc", "photos", 48).large_size == 48
    assert resolved("imc-swav", "cifar-like", 32).large_size == 28


@pytest.mark.parametrize("method", ["imc-swav", "crlc"])
@pytest.mark.parametrize(("data", "side", "kind"), [("digits", 8, "affine"), ("mnist", 28, "affine")])
def test_digits_are_not_flipped(method: str, data: str, side: int, kind: str) -> None:
    assert resolved(method, data, side, 1).augmentation == kind


def test_a_set_without_labels_needs_a_number_of_clusters() -> None:
    config = Config(data="photos")
    with pytest.raises(UserError, match="--clusters must say how many to find: photos has no labels"):
        resolve(config, "photos", side=32, channels=3, count=100, classes=0)
    few = resolve(dataclasses.replace(config, clusters=5), "photos", side=32, channels=3, count=100, classes=0)
    assert few.batch_size == 64


def test_few_images_of_ones_own_get_a_recipe_that_ends_its_warm_up() -> None:
    for method in ("imc-swav", "crlc"):
        config = Config(method=method, data="photos", clusters=5)
        few = resolve(config, "photos", side=32, channels=3, count=500, classes=0)
        updates = few.epochs * (500 // few.batch_size)
        assert few.warmup_updates <= updates / 4
        assert (few.encoder, few.augmentation, few.large_size > 20) == ("digits", "crops", True)
    tiny = resolve(config, "photos", side=32, channels=3, count=40, classes=0)
    assert tiny.batch_size == 40  # the preset's 64 would be more than there are


@pytest.mark.parametrize("method", ["imc-swav", "crlc"])
@pytest.mark.parametrize("side", [8, 32, 96])
@pytest.mark.parametrize("count", [2, 3, 40, 100, 200, 500, 4999, 5000, 20_000])
def test_few_images_of_ones_own_get_enough_updates_and_many_no_more(method: str, side: int, count: int) -> None:
    config = Config(method=method, clusters=2)
    own = resolve(config, "photos", side=side, channels=3, count=count, classes=0)
    steps, named = count // own.batch_size, presets.numbers(method, "photos", side, count)["epochs"]
    assert own.epochs * steps >= presets.LEAST_UPDATES
    assert own.epochs == named or (own.epochs - 1) * steps < presets.LEAST_UPDATES


def test_epochs_that_are_given_or_published_stay() -> None:
    def epochs(name: str, **given: Any) -> int | None:
        config = Config(clusters=2, **given)
        return resolve(config, name, side=8, channels=1, count=100, classes=0).epochs

    assert epochs("photos", epochs=3) == 3
    assert epochs("photos", batch_size=10) == 40
    assert epochs("photos", batch_size=50) == 150
    assert epochs("digits") == 40
