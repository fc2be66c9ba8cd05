"""What a configuration leaves open, taken from the presets and the outline of its data; and whether the two agree."""

from __future__ import annotations

import math
from dataclasses import fields, replace

from imc.config import presets
from imc.config.config import Config
from imc.config.presets import Numbers
from imc.data import NAMES
from imc.data.outline import Outline
from imc.errors import UserError
from imc.models.further import architecture


def filled(config: Config, data: Outline) -> Config:
    """The configuration with the numbers of its method and data set where it has none.

    The number of clusters stays open where the labels do not tell it.
    """
    config = replace(config, method=config.method or config.default_method)
    preset = _of_images(config, data) if data.columns is None else _of_rows(config, data, data.columns)
    preset["clusters"] = data.classes if data.classes > 1 else None
    given = {entry.name for entry in fields(config) if getattr(config, entry.name) is not None}
    config = replace(config, **{name: value for name, value in preset.items() if name not in given})
    return replace(config, classifier_lr=config.lr) if config.classifier_lr is None else config


def require_fit(config: Config, data: Outline) -> Config:
    """A filled configuration, if it is one for these data.

    Raises:
        UserError: a value that they do not allow, or that nothing tells.
    """
    if config.clusters is None:
        labels = "one class, which is no number to take" if data.classes else "no labels to take the number from"
        raise UserError(f"--clusters must say how many to find: {data.name} has {labels}")
    samples = "images" if data.columns is None else "rows"
    for flag, value in (("--clusters", config.clusters), ("--batch-size", config.batch_size)):
        if value > data.count:
            raise UserError(f"{flag} must be at most {data.count}, the {samples} of {data.name}, got {value}")
    if data.columns is None and config.channels != data.channels:
        raise UserError(f"--channels must be {data.channels}, those of {data.name}, got {config.channels}")
    if data.columns is not None and config.columns != data.columns:
        raise UserError(f"--columns must be {data.columns}, those of {data.name}, got {config.columns}")
    if config.neighbours is not None and config.neighbours >= data.count:
        others = f"{data.count - 1}, the other {samples} of {data.name}"
        raise UserError(f"--neighbours must be at most {others}, got {config.neighbours}")
    return config.validate()


def _of_images(config: Config, data: Outline) -> Numbers:
    if config.train_encoder:
        side = config.image_size or architecture(config.encoder).side
        preset = presets.numbers_further(config.method, side, data.count)
    else:
        preset = presets.numbers(config.method, data.name, data.side, data.count)
    preset["stem"] = "cifar" if data.side < 48 else "cifar-pool"
    preset["channels"], preset["side"] = data.channels, data.side
    preset["batch_size"] = min(preset["batch_size"], data.count)
    if data.name not in NAMES and not config.train_encoder:  # its heads are trained before
        steps = max(1, data.count // (config.batch_size or preset["batch_size"]))
        preset["epochs"] = max(preset["epochs"], math.ceil(presets.LEAST_UPDATES / steps))
    if config.encoder not in (None, preset["encoder"]) and config.encoder == "digits":
        preset |= presets.DIGITS_ENCODER
    if config.augmentation not in (None, preset["augmentation"]) and config.augmentation == "affine":
        preset |= presets.AFFINE
    return preset


def _of_rows(config: Config, data: Outline, columns: tuple[int, ...]) -> Numbers:
    views = config.embedded_views if config.encodes else None
    numbers = presets.numbers_on_features(config.method, data.count, config.scaling or data.scaling)
    return {**numbers, "columns": columns, "views": views}
