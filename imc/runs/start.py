"""How a run starts: on which images and in which folder, anew or where an earlier one stopped.

In a job of several processes the first one alone reads first and writes; the others are told what it found.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, NamedTuple

from torch import Tensor

from imc.command_line.terminal import warn
from imc.config import Config, StartOptions
from imc.data import Dataset, Images
from imc.errors import UserError
from imc.features.source import write_neighbours
from imc.files.json import write_json
from imc.files.run_places import CONFIG, DATA
from imc.runs.data import clustered, fingerprint_of, require_apart, run_data, trained_parts
from imc.runs.folder import open_run_folder, require_free, run_folder
from imc.runs.resume import Begun, begun
from imc.training.loop import Record
from imc.training.ranks import Ranks


class Opened(NamedTuple):
    """A data set that was read.

    Attributes:
        data: the data set.
        record: the fingerprint of its images, where a run goes on on them, in the first process.
    """

    data: Dataset
    record: dict[str, Any] | None


class Trained(NamedTuple):
    """The images that a run trains on.

    Attributes:
        parts: uint8 [M, H, W, C] each: the clustered split, then further ones; or rows [M, D].
        clustered: those whose clusters are reported.
        views: of rows, stored views [M, V, D] of those that are clustered.
        record: their fingerprint, in the first process.
        note: what was read.
    """

    parts: list[Tensor]
    clustered: Images
    views: Tensor | None
    record: dict[str, Any] | None
    note: str


def run_to_continue(config: Config, given: Collection[str] | None, *, has_data: bool) -> Begun | None:
    """The run that goes on; None for a new one, whose folder can be had.

    Raises:
        UserError: there is nothing to go on from, or the folder is taken.
    """
    run = begun(config, given, has_data=has_data) if config.resume else None
    if run is None:
        require_free(config)
    return run


def open_data(options: StartOptions, data: Dataset | Images | None, run: Begun | None, processes: Ranks) -> Opened:
    """The data set; the first process alone may write to the disk. Where a run goes on, the same images are required.

    Raises:
        UserError: in all processes, where the first one cannot read it, or the images are others.
    """
    dataset, record, failure = None, None, None
    if processes.first:
        try:
            dataset = run_data(options, data)
            if run is not None:
                record = fingerprint_of(options, dataset)
                if remark := run.require_same_images(record):
                    warn(remark)
            elif options.resume:
                warn(f"{run_folder(options)} holds no run to continue: a new one starts")
        except UserError as error:
            failure = str(error)
    failure = processes.share(failure)
    if failure is not None:
        raise UserError(failure)
    return Opened(run_data(options, data) if dataset is None else dataset, record)


def choose_images(options: StartOptions, source: str, opened: Opened, processes: Ranks) -> Trained:
    """Of a data set the images that are trained on, none of which lies where the run writes.

    Args:
        options: resolved.
        source: what the data set was called.
        opened: the data set.
        processes: of the run.
    """
    require_apart(run_folder(options), source, opened.data)
    parts, shown, record = trained_parts(options, opened.data), clustered(options, opened.data), opened.record
    if record is None and processes.first:
        record = fingerprint_of(options, opened.data)
    return Trained(parts, shown, shown.views if options.are_augmented else None, record, opened.data.note)


def begin(
    config: Config, overwrite: bool, run: Begun | None, images: Trained, neighbours: Tensor | None, processes: Ranks
) -> Record:
    """Make the run's folder and describe the run in it, by the first process.

    Args:
        config: resolved.
        overwrite: whether a result in the folder is replaced.
        run: the one that goes on.
        images: that it trains on.
        neighbours: of its rows, where those are its views.
        processes: of the run.

    Raises:
        UserError: in all processes, where the first one cannot make the folder.
    """
    placed, failure = config, None
    if processes.first:
        try:
            new = open_run_folder(replace(config, overwrite=overwrite))
            with new if run is None else nullcontext(run.folder) as folder:
                placed = replace(config, name=config.name or folder.name, out=str(folder))
                assert images.record is not None
                write_json(folder / DATA, images.record)
                write_json(folder / CONFIG, placed.to_dict())
                if neighbours is not None:
                    write_neighbours(folder, neighbours)
        except UserError as error:
            failure = str(error)
    placed, failure = processes.share((placed, failure))
    if failure is not None:
        raise UserError(failure)
    return Record(run_folder(placed), placed.to_dict())
