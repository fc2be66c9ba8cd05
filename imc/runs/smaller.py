"""A recipe for less than an hour, where a run on a CPU takes more: by the speed of this machine, as a line to copy."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import Any

import torch

from imc.command_line.options import only, words
from imc.command_line.terminal import silence
from imc.config import Config
from imc.config.presets import DIGITS_ENCODER, FEW_IMAGES, MNIST
from imc.config.resolve import resolve
from imc.data import Dataset
from imc.errors import RunError, UserError
from imc.features.photographs import installed_encoder
from imc.methods import build_model
from imc.methods.options import ModelOptions
from imc.models.frozen import CHANNELS
from imc.models.named import load_encoder
from imc.text import duration
from imc.training.loop import Loop
from imc.training.options import LoopOptions, PlacementOptions
from imc.training.placement import place
from imc.training.ranks import Ranks

LIMIT = 2700.0  # seconds that a recipe may take by its trial: machines vary, and the results are to be written
OF_EMBEDDING = 0.5  # of them for the features alone: their images are to be decoded, and heads trained
TRIED = 3  # updates of a recipe that are timed, after a first one
MOST_EPOCHS = 40
SIDE = 32  # pixels of the images of a small network
EMBEDDED = 16  # images that are timed
# What says which images, how many clusters, and where: it stays as it was asked for.
KEPT = {
    *("data", "features", "files", "labels", "data_root", "download", "pixel_bits", "labels_from_folders", "seed"),
    *("thread_independent", "backend", "clusters", "device", "threads"),
    *("log_every", "tensorboard", "checkpoint_every", "checkpoint_minutes"),
}
OF_PIXELS = KEPT | {"method", "train_on", "image_size"}
LEFT_OUT = {"resume", "print_config", "overwrite", "stop_after_epoch", "weights_sha256"}
# Of presets.FEW_IMAGES those numbers that are not about few images, with the encoder for images of these sizes.
SMALL: dict[str, dict[str, Any]] = {
    method: {
        **{name: value for name, value in numbers.items() if name not in DIGITS_ENCODER and name != "batch_size"},
        "encoder": "digits",
        **{name: MNIST[name] for name in ("widths", "pool_after")},
    }
    for method, numbers in FEW_IMAGES.items()
}


def smaller_recipe(
    asked: Config, given: Collection[str], config: Config, data: Dataset, count: int, seconds: float
) -> str | None:
    """A command that does less of the same within an hour, with the time it takes by a trial; None: none can be tried.

    The trial leaves torch's generators as they were.

    Args:
        asked: what was asked for.
        given: the fields that were named.
        config: what became of it.
        data: the data set.
        count: samples that are trained on.
        seconds: of an update of the run.
    """
    named = {name: getattr(asked, name) for name in given if name not in LEFT_OUT}
    named |= {name: f"{named[name]}-smaller" for name in ("out", "name") if name in named}
    try:
        with silence(), torch.random.fork_rng(devices=()):
            found = next(_recipes(named, config, data, count, seconds), None)
    except (RunError, RuntimeError, UserError):  # what the trial lacks is nothing to end the run for
        return None
    if found is None:
        return "no recipe for this data set takes less than an hour here; fewer images would"
    values, needed = found
    return f"a smaller recipe, about {duration(needed)}: imc train {words(values)}"


def _recipes(
    named: dict[str, Any], config: Config, data: Dataset, count: int, seconds: float
) -> Iterator[tuple[dict[str, Any], float]]:
    """Recipes that fit, with their seconds, the best first."""
    if config.on_features or config.encoder == "digits":
        yield from _with_fewer_epochs(named, config, count, seconds)
        return
    places = {name: named[name] for name in ("out", "name") if name in named}
    encoder = installed_encoder()
    if encoder is not None:
        kept = {name: value for name, value in named.items() if name in KEPT} | places
        splits = (data.train, data.test, data.unlabeled)
        needed = _seconds_of_embedding(encoder) * sum(len(split.images) for split in splits if split is not None)
        if needed < OF_EMBEDDING * LIMIT:
            yield {**kept, "encoder": encoder}, needed
    kept = {name: value for name, value in named.items() if name in OF_PIXELS} | places
    if config.side > SIDE:
        kept["image_size"] = SIDE
    plain = _resolved({**kept, "encoder": "digits"}, config, data, count)
    changed = {name: value for name, value in SMALL[config.method].items() if getattr(plain, name) != value}
    small = {**kept, "encoder": "digits", **changed}
    tried = _resolved(small, config, data, count)
    yield from _with_fewer_epochs(small, tried, count, _seconds_of_update(tried))


def _with_fewer_epochs(
    values: dict[str, Any], config: Config, count: int, seconds: float
) -> Iterator[tuple[dict[str, Any], float]]:
    of_epoch = seconds * (count // config.batch_size)
    epochs = int(min(config.epochs, LIMIT // of_epoch))
    if epochs > 0:
        yield {**values, "epochs": epochs}, epochs * of_epoch


def _resolved(values: dict[str, Any], config: Config, data: Dataset, count: int) -> Config:
    """The configuration of a recipe, on images of which one stands for all."""
    side = values.get("image_size") or config.side
    image = torch.randint(256, (1, side, side, config.channels), generator=torch.Generator().manual_seed(0))
    images = image.to(torch.uint8).expand(count, -1, -1, -1)
    like = replace(data, train=replace(data.train, images=images, files=None), test=None, unlabeled=None)
    wanted = {**values, "epochs": MOST_EPOCHS, "clusters": config.clusters, "image_size": None, "train_on": "train"}
    return resolve(Config.from_dict(wanted), like, torch.device("cpu"))


def _seconds_of_update(config: Config) -> float:
    side = config.side
    images = torch.randint(256, (config.batch_size, side, side, config.channels), dtype=torch.uint8)
    model = build_model(only(config, ModelOptions))
    place(model, only(config, PlacementOptions), torch.device("cpu"), Ranks())
    steps = only(replace(config, bank=False), LoopOptions)
    return Loop(model, [images], steps, Ranks(), signals=False).seconds_of_update(TRIED)


def _seconds_of_embedding(encoder: str) -> float:
    """Of one image, all threads on one batch, which is the slower way."""
    network = load_encoder(encoder)
    images = torch.randint(256, (EMBEDDED, network.side, network.side, CHANNELS), dtype=torch.uint8)
    for _ in range(2):
        start = time.perf_counter()
        network.embed_batch(images)
    return (time.perf_counter() - start) / EMBEDDED
