"""What --resume continues: the run in a folder, with what it may be told anew."""

from __future__ import annotations

import difflib
import os
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from imc.command_line.options import flag
from imc.config import Config
from imc.data import absolute, is_folder
from imc.data.fingerprint import difference, read_record
from imc.errors import UserError
from imc.files.paths import meant
from imc.files.run_places import CHECKPOINT, CONFIG, MODEL, is_run, newest
from imc.runs.data import require_there, sourced
from imc.runs.folder import read_config, run_folder
from imc.training.checkpoint import read_checkpoint

# What a resumed run may be told anew: how long, where and how fast it runs, not what it computes.
FREE = {
    *("features", "files", "labels", "weights"),  # of which the rows are compared once they are read
    *("out", "name", "resume", "overwrite", "print_config", "data_root", "download", "epochs", "stop_after_epoch"),
    *("device", "threads", "backend", "amp", "channels_last", "device_data", "compile", "cuda_graph", "rank_timeout"),
    *("log_every", "tensorboard", "checkpoint_every", "checkpoint_minutes"),
}


@dataclass(frozen=True)
class Begun:
    """A run that goes on.

    Attributes:
        config: its own, with what was told anew; ``data`` may lead to another place with the same images.
        checkpoint: where it goes on from; None: it was stopped before its first, and starts from its beginning.
        images: the fingerprint of its images, or None where an earlier version began it.
    """

    config: Config
    checkpoint: dict[str, Any] | None
    images: dict[str, Any] | None

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return run_folder(self.config)

    def require_same_images(self, found: dict[str, Any]) -> str:
        """What is to be said of images found where the run's are to be.

        Raises:
            UserError: they are not those that the run began with.
        """
        if self.images is None:
            return f"{self.folder} does not record its images, so whether they have changed since it began is not known"
        if changed := difference(self.images, found):
            instead = f", or start another run, as with --init {self.folder}" if (self.folder / MODEL).exists() else ""
            raise UserError(
                f"--resume needs the images that {self.folder} began with, and those of {self.config.data} have "
                f"changed: {changed}; put back what they were, give --data where that is now{instead}"
            )
        if self.images["labels"] != found["labels"]:
            return "the labels have changed since the run began; training reads none, its report takes the new ones"
        return ""


def begun(asked: Config, given: Collection[str] | None = None, *, has_data: bool = False) -> Begun | None:
    """The run that ``asked``, with ``resume``, continues.

    Args:
        asked: what was asked for now.
        given: the fields that were named, also if at their default; None: those that differ from it.
        has_data: the images are at hand, and not to be found by ``data``.

    Returns:
        None where there is no run yet and the data were named, so that one may be started.

    Raises:
        UserError: there is no run, or another value was asked for than it was started with.
    """
    folder, given = run_folder(asked), asked.given().keys() if given is None else given
    if not (is_run(folder) or os.path.exists(folder / CHECKPOINT)):
        if "data" in given or has_data:
            return None
        raise UserError(_no_run(folder))
    checkpoint = read_checkpoint(folder)
    saved = read_config(folder).to_dict() if checkpoint is None else checkpoint["config"]
    config = resumed_config(asked, saved, given)
    if not has_data:
        require_there(config.data, folder)
    return Begun(replace(config, out=str(folder)).validate(), checkpoint, read_record(folder))


def resumed_config(asked: Config, saved: dict[str, Any], given: Collection[str]) -> Config:
    """A run's configuration with what a resumed run may be told anew. Other data are compared once they are read.

    Raises:
        UserError: another value was asked for than the run was started with.
    """
    config = Config.from_dict(saved)
    for name in given:
        value = getattr(asked, name)
        if name not in FREE and name != "data" and value != getattr(config, name):
            raise UserError(
                f"{flag(name)} was {getattr(config, name)} when the run began, got {value}; leave it out (--resume "
                "takes anew --epochs, --data for the same images at another place, and how the run computes, not what)"
            )
    changed = {name: getattr(asked, name) for name in given if name in FREE}
    if "data" in given and config.features is not None:
        changed["features"] = (asked.data,)
    elif "data" in given:
        changed["data"] = absolute(asked.data)
        changed["labels_from_folders"] = config.labels_from_folders and is_folder(asked.data)
    if "features" in changed:
        changed["data"] = changed["features"][0]
    return sourced(Config.from_dict({**saved, "stop_after_epoch": None, **changed}))


def _no_run(folder: Path) -> str:
    hint = ""
    if not folder.exists():
        state, close = "is not there", meant(str(folder))
        if close is None and folder.parent.is_dir():
            runs = {path.name: path for path in folder.parent.iterdir() if is_run(path)}
            close = next((str(runs[name]) for name in difflib.get_close_matches(folder.name, runs, n=1)), None)
        hint = f"; did you mean {close}?" if close is not None and is_run(Path(close)) else newest()
    else:
        state = f"is not the folder of a run: it holds no {CONFIG}" if folder.is_dir() else "is not a folder"
    return f"--resume cannot continue {folder}, which {state}; to start a run there, say on which --data{hint}"
