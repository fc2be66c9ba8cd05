"""What a run is about to do, in words: before its first update, and the time that it takes once that is known."""

from __future__ import annotations

from collections.abc import Callable

from imc.command_line.terminal import say
from imc.config import Config
from imc.data import Dataset
from imc.text import counted, duration

HOUR = 3600.0
MEASUREMENTS = (
    ", taken for measurements, not what a network gives (on three of four such tables k-means was better by 2 to 10 "
    "points of ACC, and without labels nothing here tells which is)"
)
# What is to be known before hours of work; docs/embeddings.md has the measurement.
FURTHER = " (measured on 500 photographs of kinds it knew: ACC 0.936 as before, no better than keeping it)"


def announced(config: Config, data: Dataset, count: int, steps: int, made: int) -> str:
    """The plan of a run: data, encoder, method and updates.

    Args:
        config: resolved.
        data: its data set.
        count: samples that it trains on.
        steps: updates of an epoch.
        made: updates that were made before, by a run that goes on.
    """
    total = config.epochs * steps
    samples = counted(count, f"{data.train.sample}{{s}}")
    epochs = f"{counted(config.epochs, 'epoch{s}')} of {counted(steps, 'update{s}')} of {config.batch_size:,}"
    done = f", of which {made:,} are made" if made else ""
    return (
        f"plan: {config.method} finds {config.clusters:,} clusters in {samples} of {data.name}; {_encoder(config)}; "
        f"{epochs}, {counted(total, 'update{s}')} in all{done}, on {config.device}, "
        f"{counted(config.threads, 'thread{s}')}"
    )


def _encoder(config: Config) -> str:
    if config.features is not None:
        return "features as they are given" + (MEASUREMENTS if config.scaling != "length" else "")
    if config.encodes:
        return f"encoder {config.encoder} is kept, its features are clustered"
    if config.train_encoder:
        how = f"is trained further, at {config.large_size} pixels, and its heads with it"
        return f"encoder {config.encoder} {how}{FURTHER}"
    named = "an encoder of your own" if config.encoder == "custom" else f"encoder {config.encoder}"
    if config.freeze_encoder:
        return f"{named} is kept as --init {config.init} has it"
    return f"{named} is trained from {'nothing' if config.init is None else f'--init {config.init}'}"


def teller(updates: Callable[[], int], smaller: Callable[[float], str | None]) -> Callable[[float], None]:
    """What is told the seconds of an update, and says the time that a run will take.

    Args:
        updates: that are still to come.
        smaller: a recipe for less than an hour, asked where the run takes more, by the seconds of an update.
    """

    def tell(seconds: float) -> None:
        left = updates() * seconds
        if left <= 0:
            return
        say(f"time: about {duration(left)} for {counted(updates(), 'update{s}')} to come, {duration(seconds)} each")
        recipe = smaller(seconds) if left > HOUR else None
        if recipe is not None:
            say(recipe)

    return tell
