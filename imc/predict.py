"""The cluster of every image in a folder, by a trained run. The training data are not needed.

    imc predict runs/birds new-photos                        # writes runs/birds/predictions-new-photos.csv
    imc predict runs/birds new-photos --out birds.csv        # another file
    imc predict runs/birds new-photos --embeddings birds.npy # and the encoder's features
    imc predict runs/birds new-photos --sort-into sorted     # and a copy of each image in a folder per cluster

The CSV has the columns file (relative to the folder), cluster and confidence (the cluster's probability). Images are
decoded as for training and streamed: the folder may be larger than the memory. Files that cannot be read are named,
left out and counted; counted too are images in colour for a run trained on grey ones, grey ones for a run trained on
colour, and those that have to be enlarged. Nothing in the folder is changed, and no file is overwritten unless
``--overwrite`` is given.
"""

from __future__ import annotations

import functools
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray

from imc import arguments, cli
from imc.csv_files import Rows
from imc.data.converted import Converted
from imc.data.folders import Skipped, decode_folder
from imc.data.ignored import mark_output
from imc.data.paths import user_path
from imc.distributed import DEVICES, choose_device
from imc.errors import RunError, UserError
from imc.evaluation import outputs
from imc.options import argument, check, option
from imc.run_folder import LoadedRun, load_run
from imc.run_places import is_run
from imc.terminal import say, show
from imc.text import shell_word, shortened, visible
from imc.whole_files import replacing

BATCH = 256
NAMED_FILES = 20  # unreadable files that are named one by one
COLUMNS = ("file", "cluster", "confidence")


@dataclass(frozen=True)
class Options:
    """The options of ``imc predict``."""

    run: str = argument("RUN", "folder of a trained run")
    folder: str = argument("FOLDER", "folder of images, at any depth")
    out: str | None = option(None, "prediction", "the CSV file; default: RUN/predictions-<name of FOLDER>.csv")
    embeddings: str | None = option(
        None, "prediction", "write the encoder's features to this file, float32 [images, features] as .npy"
    )
    sort_into: str | None = option(None, "prediction", "copy each image to this empty folder, into one per cluster")
    overwrite: bool = option(False, "prediction", "replace the CSV and the .npy file if they exist")
    device: str = option("auto", "machine", "where to run; auto: a GPU where there is one", choices=DEVICES)
    batch_size: int = option(BATCH, "machine", "images at a time", at_least=1)
    amp: bool = option(False, "machine", "compute in bfloat16 where autocast does")


def main(argv: Sequence[str]) -> None:
    """The command: a run and a folder in, a CSV out."""
    options = arguments.parse(Options, argv, program="imc predict", description=__doc__ or "")
    show(report(predict(options)))


def predict(options: Options) -> dict[str, Any]:
    """Write the cluster of every image in a folder.

    Returns:
        ``images``: how many; ``clusters``: how many of them each cluster holds; ``skipped``: how many files were not
        read; ``note``: what was left out, and what is of another kind than the run's images; ``files``: what was
        written.

    Raises:
        UserError: there is no trained run, no image, or the place of an output is taken.
        RunError: an output cannot be written.
    """
    check(options)
    folder, targets = user_path(options.folder), _targets(options)
    if not is_run(Path(options.run)) and is_run(folder):
        swapped = f"imc predict {shell_word(options.folder)} {shell_word(options.run)}"
        raise UserError(f"{options.run} is not the folder of a run, and {folder} is; did you mean {swapped}?")
    run = load_run(Path(options.run), choose_device(options.device))
    skipped, converted = _Skipped(), Converted(run.config.side, run.config.channels)
    images = decode_folder(folder, run.config.side, run.config.channels, skipped, converted)
    try:
        sizes = _write(run, folder, images, targets, options)
    except OSError as error:
        raise RunError(f"cannot write {error.filename or targets['csv']}: {error.strerror}") from None
    total = int(sizes.sum())
    if total == 0:
        raise UserError(f"{folder} holds no image that can be read; {skipped or 'it is empty'}")
    for sentence in converted.sentences:
        print(f"warning: {sentence}", file=sys.stderr)
    return {
        "images": total,
        "clusters": sizes.tolist(),
        "skipped": skipped.count,
        "note": "; ".join(filter(None, [*converted.sentences, str(skipped)])),
        "files": [str(path) for path in targets.values()],
    }


def report(result: dict[str, Any]) -> str:
    """What was predicted, as text."""
    sizes = result["clusters"]
    lines = [f"{result['images']:,} images in {sum(size > 0 for size in sizes)} of {len(sizes)} clusters"]
    if result["note"]:
        lines.append(visible(result["note"]))
    return "\n".join([*lines, *map(visible, result["files"])])


class _Skipped(Skipped):
    """Names the files that cannot be read as they are met."""

    def add(self, name: str, reason: str, count: int = 1) -> None:
        super().add(name, reason, count)
        if self.count <= NAMED_FILES:
            say(f"skipped {name}: {reason}")
        elif self.count == NAMED_FILES + 1:
            say("skipped more, which are counted at the end")


def _targets(options: Options) -> dict[str, Path]:
    """Where the outputs go, each checked to be free."""
    folder = user_path(options.folder)
    if not folder.is_dir():
        raise UserError(f"{options.folder!r} is not a folder of images")
    default = Path(options.run) / shortened(f"predictions-{folder.resolve().name or 'images'}", ".csv")
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
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise UserError(f"--sort-into must be a new or an empty folder, and {target} is not")
        if target.resolve().is_relative_to(folder.resolve()):
            raise UserError(f"--sort-into must lie outside of {folder}, whose images it would add to")
    return targets


def _write(
    run: LoadedRun,
    folder: Path,
    images: Iterator[tuple[str, NDArray[np.uint8]]],
    targets: dict[str, Path],
    options: Options,
) -> NDArray[np.int64]:
    """Predict and write batch by batch; how many images each cluster holds. Without an image nothing is written."""
    sizes = np.zeros(0, np.int64)
    with ExitStack() as stack:
        table: Rows | None = None
        rows: _Matrix | None = None
        while batch := list(islice(images, options.batch_size)):
            pixels = torch.from_numpy(np.stack([image for _, image in batch]))
            result = outputs(run, pixels, batch_size=options.batch_size, amp=options.amp)
            if table is None:
                sizes = np.zeros(result.probabilities.shape[1], np.int64)
                table = Rows(stack.enter_context(replacing(targets["csv"])), COLUMNS)
                if "sorted" in targets:
                    targets["sorted"].mkdir(parents=True, exist_ok=True)
                    stack.push(functools.partial(_empty_after_failure, targets["sorted"]))
                    mark_output(targets["sorted"])
                if "embeddings" in targets:
                    rows = _Matrix(stack.enter_context(replacing(targets["embeddings"], binary=True)))
                    stack.callback(rows.finish)
            if rows is not None:
                rows.append(result.features.numpy())
            sizes += np.bincount(result.clusters, minlength=len(sizes))
            for (name, _), cluster, confidence in zip(batch, result.clusters, result.confidence, strict=True):
                table.add(name, cluster, f"{confidence:.6f}")
                if "sorted" in targets:
                    copy = targets["sorted"] / f"{cluster:0{len(str(len(sizes) - 1))}}" / name
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(folder / name, copy)
    return sizes


def _empty_after_failure(folder: Path, failure: type[BaseException] | None, *_: object) -> None:
    """Leave a folder that was empty as it was."""
    for path in folder.iterdir() if failure is not None else ():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


class _Matrix:
    """An .npy file that grows: numpy leaves room in the header for the final number of rows."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.count = self.width = 0

    def append(self, rows: NDArray[np.float32]) -> None:
        if not self.count:
            self.width = rows.shape[1]
            self._write_header()
        self.count += len(rows)
        self.file.write(np.ascontiguousarray(rows, np.float32).tobytes())

    def finish(self) -> None:
        self.file.seek(0)
        self._write_header()

    def _write_header(self) -> None:
        description = {"descr": "<f4", "fortran_order": False, "shape": (self.count, self.width)}
        np.lib.format.write_array_header_1_0(self.file, description)


if __name__ == "__main__":
    sys.exit(cli.main(["predict", *sys.argv[1:]]))
