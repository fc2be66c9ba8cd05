"""The cluster of every image in a folder, of pictures or of an array, by a trained run, without its training data.

    imc predict runs/birds new-photos                        # writes runs/birds/predictions-new-photos.csv
    imc predict runs/birds robin.jpg wren.heic               # prints the clusters of these pictures too
    imc predict runs/birds birds.npy                         # images [M, H, W] or [M, H, W, C], or features [M, D]
    imc predict runs/birds new-photos --out birds.csv        # another file
    imc predict runs/birds new-photos --embeddings birds.npy # and the encoder's features
    imc predict runs/birds new-photos --sort-into sorted     # and a copy of each image in a folder per cluster

The CSV has the columns file (relative to the folder), cluster and confidence (the cluster's probability); of a run on
features unsure, 1 where that is below 0.7; where the clusters have names (``imc label``) it has the column name, and so
are the folders of ``--sort-into`` called. Images are decoded as for training and streamed: the folder may be larger
than the memory. Files that cannot be read are named, left out and counted; counted too are images in colour for a run
trained on grey ones, grey ones for a run trained on colour, and those that have to be enlarged. Nothing in the folder
is changed, and no file is overwritten unless ``--overwrite`` is given.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from imc import cli
from imc.command_line import arguments
from imc.command_line.options import argument, check, option
from imc.command_line.terminal import say, show, warn
from imc.data.converted import Converted
from imc.data.folders import Skipped
from imc.data.model_images import bits_of_files
from imc.data.sorting import filling, folders_of, put, require_new
from imc.errors import RunError, UserError
from imc.files.csv import Rows
from imc.files.npy import GrowingArray
from imc.files.paths import user_path
from imc.files.run_places import is_run
from imc.files.whole import replacing
from imc.machine.device import DEVICES, choose_device
from imc.machine.torch_state import turn
from imc.models.frozen import CHANNELS
from imc.runs.data import kept_encoder
from imc.runs.model import LoadedRun, load_run
from imc.runs.names import Names, given_names
from imc.runs.new_images import NewImage, holds_arrays, is_picture, read_new_images, sources, title
from imc.scores.evaluation import UNSURE, outputs
from imc.text import counted, inflected, shell_word, shortened, visible

BATCH = 256
PRINTED = 20  # pictures whose clusters are printed
NAMED_FILES = 20  # unreadable files that are named one by one
COLUMNS = ("file", "cluster", "confidence")


@dataclass(frozen=True)
class Options:
    """The options of ``imc predict``."""

    run: str = argument("RUN", "folder of a trained run")
    images: tuple[str, ...] = argument("IMAGES", "folders of images, at any depth; pictures; .npy files; features")
    out: str | None = option(
        None, "prediction", "the CSV file; default: RUN/predictions-<name of IMAGES>.csv", path=True
    )
    embeddings: str | None = option(
        None, "prediction", "write the encoder's features to this file, float32 [images, features] as .npy", path=True
    )
    sort_into: str | None = option(
        None, "prediction", "copy each image to this empty folder, into one per cluster", path=True
    )
    overwrite: bool = option(False, "prediction", "replace the CSV and the .npy file if they exist")
    device: str = option("auto", "machine", "where to run; auto: a GPU where there is one", choices=DEVICES)
    batch_size: int = option(BATCH, "machine", "images at a time", at_least=1)
    amp: str = option(
        "auto",
        "machine",
        "bfloat16 autocast of the encoder; auto: of a run trained so, where the device has instructions for it",
        choices=("auto", "bf16", "off"),
    )


def main(argv: Sequence[str]) -> None:
    """The command: a run and a folder in, a CSV out."""
    options = arguments.parse(Options, argv, program="imc predict", description=__doc__ or "")
    show(report(predict(options)))


@turn()
def predict(options: Options) -> dict[str, Any]:
    """Write the cluster of every image.

    Returns:
        ``images``: how many; ``clusters``: how many of them each cluster holds; ``skipped``: how many files were not
        read; ``note``: what was left out, and what is of another kind than the run's images; ``files``: what was
        written; ``pictures``: name, cluster and confidence of each, where pictures alone were given, a few of them.

    Raises:
        UserError: there is no trained run, no image, or the place of an output is taken.
        RunError: an output cannot be written.
    """
    check(options)
    paths = sources(options.images)
    if not is_run(user_path(options.run)) and is_run(paths[0]):
        swapped = f"imc predict {shell_word(options.images[0])} {shell_word(options.run)}"
        raise UserError(f"{options.run} is not the folder of a run, and {paths[0]} is; did you mean {swapped}?")
    targets = _targets(options, paths)
    run = load_run(user_path(options.run), choose_device(options.device))
    encoder = kept_encoder(run.config) if run.config.encodes else None
    names = given_names(user_path(options.run), run.config.clusters)
    skipped = _Skipped()
    converted = Converted(*((run.config.side, run.config.channels) if encoder is None else (encoder.side, CHANNELS)))
    bits = bits_of_files(run.config)
    images = read_new_images(paths, run.config, skipped, converted, bits, encoder)
    pictures: list[tuple[str, int, float]] | None = (
        [] if len(paths) <= PRINTED and all(map(is_picture, paths)) else None
    )
    try:
        sizes = _write(run, images, targets, options, pictures, names)
    except OSError as error:
        raise RunError(f"cannot write {error.filename or targets['csv']}: {error.strerror}") from None
    total = int(sizes.sum())
    if total == 0:
        raise UserError(_nothing(options.images, paths, skipped))
    for sentence in converted.sentences:
        warn(sentence)
    return {
        "images": total,
        "clusters": sizes.tolist(),
        "skipped": skipped.count,
        "note": "; ".join(filter(None, [*converted.sentences, str(bits), str(skipped)])),
        "files": [str(path) for path in targets.values()],
        "pictures": pictures or [],
    }


def report(result: dict[str, Any]) -> str:
    """What was predicted, as text."""
    sizes = result["clusters"]
    lines = [f"{visible(name)}: cluster {cluster}, confidence {sure:.3f}" for name, cluster, sure in result["pictures"]]
    if not lines:
        images = counted(result["images"], "image{s}")
        lines = [f"{images} in {sum(size > 0 for size in sizes)} of {len(sizes)} clusters"]
    if result["note"]:
        lines.append(visible(result["note"]))
    return "\n".join([*lines, *map(visible, result["files"])])


class _Skipped(Skipped):
    """Names the files that cannot be read as they are met."""

    def add(self, name: str, reason: str, count: int = 1) -> None:
        super().add(name, reason, count)
        if self.count <= NAMED_FILES:
            say(f"skipped {name}: {inflected(1, reason)}")
        elif self.count == NAMED_FILES + 1:
            say("skipped more, which are counted at the end")


def _nothing(given: Sequence[str], paths: Sequence[Path], skipped: Skipped) -> str:
    if len(paths) == 1 and not paths[0].is_dir():
        return f"{given[0]} cannot be read: {inflected(1, next(iter(skipped.reasons)))}"
    return f"{', '.join(given)} holds no image that can be read; {skipped.details}"


def _targets(options: Options, paths: Sequence[Path]) -> dict[str, Path]:
    """Where the outputs go, each checked to be free."""
    default = user_path(options.run) / shortened(f"predictions-{title(paths)}", ".csv")
    targets = {"csv": default if options.out is None else user_path(options.out)}
    if options.embeddings is not None:
        targets["embeddings"] = user_path(options.embeddings)
        if targets["embeddings"].suffix != ".npy":
            raise UserError(f"--embeddings must be a file that ends in .npy, got {options.embeddings!r}")
    for name, path in targets.items():
        flag = "--out" if name == "csv" else "--embeddings"
        if path.is_dir() or (path.exists() and not options.overwrite):
            raise UserError(f"{path} exists already; give another {flag}, or pass --overwrite to replace a file")
    if options.sort_into is not None:
        target = targets["sorted"] = user_path(options.sort_into)
        require_new(target, "--sort-into", list(filter(Path.is_dir, paths)))
        if holds_arrays(paths):
            raise UserError("--sort-into copies files; of an .npy it cannot")
    return targets


def _write(
    run: LoadedRun,
    images: Iterator[NewImage],
    targets: dict[str, Path],
    options: Options,
    pictures: list[tuple[str, int, float]] | None,
    names: Names | None,
) -> NDArray[np.int64]:
    """Predict and write batch by batch; how many images each cluster holds. Without an image nothing is written.

    ``pictures`` takes name, cluster and confidence of each; ``names`` are those of the clusters, where it has some.
    """
    sizes = np.zeros(0, np.int64)
    named, folders = (() if names is None else ("name",)), list[str]()
    doubted = ("unsure",) if run.config.columns is not None else ()
    with ExitStack() as stack:
        table: Rows | None = None
        rows: GrowingArray | None = None
        for batch in _batches(images, options.batch_size):
            pixels = torch.from_numpy(np.stack([image.pixels for image in batch]))
            result = outputs(run, pixels, batch_size=options.batch_size, amp=options.amp)
            if table is None:
                sizes = np.zeros(result.probabilities.shape[1], np.int64)
                table = Rows(stack.enter_context(replacing(targets["csv"])), (*COLUMNS, *doubted, *named))
                folders = _folders(names, len(sizes))
                if "sorted" in targets:
                    stack.enter_context(filling(targets["sorted"]))
                if "embeddings" in targets:
                    rows = GrowingArray(stack.enter_context(replacing(targets["embeddings"], binary=True)))
                    stack.callback(rows.finish)
            if rows is not None:
                rows.append(result.features.numpy())
            sizes += np.bincount(result.clusters, minlength=len(sizes))
            for image, cluster, confidence in zip(batch, result.clusters, result.confidence, strict=True):
                name = () if names is None else (names.name(int(cluster)) or "",)
                unsure = (int(confidence < UNSURE),) if doubted else ()
                table.add(image.name, cluster, f"{confidence:.6f}", *unsure, *name)
                if pictures is not None:
                    pictures.append((image.name, int(cluster), float(confidence)))
                if "sorted" in targets and image.path is not None:
                    put(image.path, targets["sorted"] / folders[cluster] / image.place)
    return sizes


def _folders(names: Names | None, clusters: int) -> list[str]:
    """The folder for each cluster's images."""
    if names is None:
        return [f"{cluster:0{len(str(clusters - 1))}}" for cluster in range(clusters)]
    folders = folders_of(names.all)
    return [folders[name] for name in names.all]


def _batches(images: Iterator[NewImage], size: int) -> Iterator[list[NewImage]]:
    """Up to ``size`` images of one shape that follow one another."""
    for _, alike in groupby(images, lambda image: image.pixels.shape):
        while batch := list(islice(alike, size)):
            yield batch


if __name__ == "__main__":
    sys.exit(cli.main(["predict", *sys.argv[1:]]))
