"""Several runs of one data set by one command: trained one after another, and kept once they are done."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import adjusted_rand_score

from imc.command_line.options import flag
from imc.command_line.terminal import say
from imc.config import Config
from imc.data import Dataset
from imc.data.fingerprint import difference, read_record
from imc.errors import RunError, StoppedError, UserError
from imc.files.json import read_json
from imc.files.run_places import CHECKPOINT, LABELS, RESULT
from imc.machine.launchers import world_size
from imc.runs.data import fingerprint_of, run_data, sourced
from imc.runs.files import read_clusters
from imc.runs.folder import read_config
from imc.train import plan, train

# Fields of a run that a command for several sets itself, or that make no sense for it.
SET_HERE = ("data", "name", "out", "seed", "overwrite", "resume", "print_config", "stop_after_epoch")
# What does not change what a run computes, or may change from start to start.
ANY = {*SET_HERE, "data_root", "download", "backend"} - {"seed"}
ANY_GROUPS = {"speed", "output"}


def load_once(config: Config) -> tuple[Config, Dataset]:
    """The data set of all runs, and their configuration with the features or the encoder that it calls for.

    Raises:
        UserError: it is not there, or cannot be read; or this is one of several processes.
    """
    if world_size() > 1:
        raise UserError("this command starts its runs one after another in one process; use torchrun with imc train")
    config = sourced(config)
    data = run_data(config)
    if data.note:
        say(data.note)
    return config, replace(data, note="")


def train_each(configs: Sequence[Config], data: Dataset) -> list[dict[str, Any]]:
    """Train what is not trained yet; a run that was interrupted goes on from its checkpoint.

    Args:
        configs: of the runs, each with its folder; with ``overwrite`` what is there is replaced.
        data: of all of them.

    Returns:
        What each result.json holds.

    Raises:
        UserError: a folder holds a run with another configuration.
        RunError: a run failed; those before it are kept.
        StoppedError: a signal; what is done is kept.
    """
    kept = [_kept(config, data) for config in configs]
    results = []
    for number, (config, result) in enumerate(zip(configs, kept, strict=True), start=1):
        say(f"run {number} of {len(configs)}: {config.out}{' is done' if result else ''}")
        if result is None:
            unfinished = (Path(str(config.out)) / CHECKPOINT).exists() and not config.overwrite
            try:
                result = train(replace(config, resume=unfinished), data)
            except RunError as error:
                raise RunError(f"{config.out}: {error}") from None
            except StoppedError:
                raise StoppedError("stopped; the same command goes on from here, without --overwrite") from None
            assert result is not None
        results.append(result)
    return results


def _kept(config: Config, data: Dataset) -> dict[str, Any] | None:
    """The result that the folder holds already, if it is this configuration's."""
    folder = Path(str(config.out))
    if config.overwrite or not (folder / RESULT).exists():
        return None
    saved, record = read_config(folder), read_record(folder)
    if record is not None and (changed := difference(record, fingerprint_of(saved, data))):
        raise UserError(
            f"{folder} holds a run on other images than those of {config.data}: {changed}; give another --out, or pass "
            "--overwrite"
        )
    asked = plan(config, data)
    for entry in fields(Config):
        value = getattr(asked, entry.name)
        same = entry.name in ANY or entry.metadata["group"] in ANY_GROUPS
        # None: found while the model is built.
        if not same and value is not None and value != getattr(saved, entry.name):
            had = getattr(saved, entry.name)
            raise UserError(
                f"{folder} holds a run with {flag(entry.name)} {had}, and {value} was asked for; "
                "give another --out, or pass --overwrite"
            )
    return read_json(folder / RESULT)


def clusters_of(folder: Path | str) -> NDArray[np.int64]:
    """The cluster of each image [M] that a run reported."""
    return read_clusters(Path(folder) / LABELS)


def agreement(clusterings: Sequence[NDArray[np.int64]]) -> float | None:
    """The mean adjusted Rand index over all pairs of clusterings [M]: 1 for equal ones, about 0 for unrelated ones.

    None for fewer than two.
    """
    pairs = list(itertools.combinations(clusterings, 2))
    return float(np.mean([adjusted_rand_score(*pair) for pair in pairs])) if pairs else None
