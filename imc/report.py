"""One page about a run, to look at and to work with: its clusters and images, names for them, the map, the training.

    imc report runs/birds                      # writes runs/birds/report.html
    imc report runs/birds --data other-birds   # the same run on other images
    imc report runs/birds --thumbnails 96      # with smaller pictures

Every cluster opens to all its images; doubtful images and those that are nearly the same are listed; clusters can be
named, merged and marked as no group, and ``imc label`` applies what was decided. The page stands alone: it can be
mailed, and opens without a network, on a phone too. Of more images than one page holds it is a folder,
runs/birds/report with index.html. Labels are shown where the data set has them; nothing needs them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from imc import cli
from imc.command_line import arguments
from imc.command_line.options import argument, check, option
from imc.command_line.terminal import Stages, say, show, warn
from imc.data import NAMES, Dataset
from imc.data.ignored import OUTPUT_MARK, mark_output
from imc.data.model_images import bits_of_files, fit_for_model
from imc.data.originals import original_files
from imc.errors import UserError
from imc.files.paths import user_path
from imc.files.whole import remove, replacing_folder
from imc.machine.device import DEVICES, choose_device
from imc.machine.torch_state import turn
from imc.pages.contents import Contents, collect
from imc.pages.run_page import INDEX, RunPage
from imc.pages.thumbnails import DEFAULT_SIDES, LOOKED_AT, Pictures, Sheet, expected_bytes, make_sheets
from imc.runs.data import clustered, other_data, run_data
from imc.runs.model import load_run
from imc.runs.names import Names, given_names
from imc.scores.evaluation import Outputs, outputs
from imc.text import counted, visible

PAGE, FOLDER = "report.html", "report"
PARTS = ("map and neighbours", "thumbnails", "evidence", "page")  # as the progress bar calls them
IMAGES_OF_A_PAGE, BYTES_OF_A_PAGE = 5000, 24_000_000  # of one that can be mailed; more make a folder
BATCH = 128  # more take memory, and no less time on a CPU
LEAST_SIDE, MOST_SIDE = 16, 1024  # of a thumbnail


@dataclass(frozen=True)
class Options:
    """The options of ``imc report``."""

    run: str = argument("RUN", "folder of a trained run")
    data: str | None = option(
        None, "report", "data set to show; default: what the run was trained on", suggested=NAMES, path=True
    )
    labels_from_folders: bool = option(False, "report", "take the names of a folder's sub-folders as labels")
    thumbnails: int | None = option(
        None,
        "report",
        f"longer side of a picture on the page, pixels; default: {DEFAULT_SIDES[0]}, of many images less",
        at_least=LEAST_SIDE,
        at_most=MOST_SIDE,
    )
    device: str = option("auto", "machine", "where to run; auto: a GPU where there is one", choices=DEVICES)
    batch_size: int = option(BATCH, "machine", "images at a time; the result does not depend on it", at_least=1)


def main(argv: Sequence[str]) -> None:
    """The command: a run in, a page out."""
    show(visible(str(report(arguments.parse(Options, argv, program="imc report", description=__doc__ or "")))))


@turn()
def report(options: Options, data: Dataset | None = None, encoder: nn.Module | None = None) -> Path:
    """Write the page of a run into its folder; what was there before stays until the new one is whole.

    Args:
        options: those of the command.
        data: the data set to use instead of loading it.
        encoder: the module given to :func:`imc.train.train`, for a run with one.

    Returns:
        The page: report.html, or of many images report/index.html.

    Raises:
        UserError: the folder holds no trained run, its data set is not there, or the place of the page is taken.
    """
    check(options)
    folder = user_path(options.run)
    run = load_run(folder, choose_device(options.device), encoder)
    originals = None
    if data is None:
        data = other_data(folder, run.config, options.data, options.labels_from_folders)
        images = clustered(run.config, data)
        root = None if run.config.data_root is None else user_path(run.config.data_root)
        originals = original_files(options.data or run.config.data, images.files, root)
        if originals is not None and not any(path.is_file() for path in originals[:LOOKED_AT]):
            originals = None  # names of rows that are none of files, or a folder that is gone
    else:
        data = fit_for_model(run.config, run_data(run.config, data))
        images = clustered(run.config, data)
    pictures = Pictures(images, originals, bits_of_files(run.config))
    side = thumbnail_side(options.thumbnails, len(images.images), pictures.longest)
    in_folder = not fits_one_page(len(images.images), side)
    if in_folder:
        if (folder / FOLDER).exists() and not _is_own(folder / FOLDER):
            raise UserError(f"{folder / FOLDER} holds what imc report did not write; move it elsewhere")
        size = expected_bytes(len(images.images), side) / 1e6
        say(f"{counted(len(images.images), 'image{s}')}: a folder of pages, {folder / FOLDER}, of about {size:,.0f} MB")
    result = outputs(run, images.images, batch_size=options.batch_size)
    with Stages("report", PARTS) as stages:
        contents = collect(images, result, run.config.seed)
        stages.next()
        page = RunPage(folder, run, data.note, contents, _names(folder, result), originals, side)
        if in_folder:
            with replacing_folder(folder / FOLDER) as place:
                mark_output(place)
                page.write_folder(place, _sheets(pictures, contents, side), stages)
            remove(folder / PAGE)
            return folder / FOLDER / INDEX
        page.write(folder / PAGE, _sheets(pictures, contents, side), stages)
        if _is_own(folder / FOLDER):
            remove(folder / FOLDER)
    return folder / PAGE


def _is_own(folder: Path) -> bool:
    """Whether an earlier report wrote this folder."""
    return (folder / OUTPUT_MARK).exists()


def thumbnail_side(asked: int | None, count: int, longest: int) -> int:
    """The side of a thumbnail: what is asked for, else the largest with which one page holds all; never more than the
    pictures have.
    """
    fitting = (side for side in DEFAULT_SIDES if fits_one_page(count, min(side, longest)))
    return min(asked or next(fitting, DEFAULT_SIDES[-1]), max(longest, 1))


def fits_one_page(count: int, side: int) -> bool:
    """Whether so many images with thumbnails of this side make a single page."""
    return count <= IMAGES_OF_A_PAGE and expected_bytes(count, side) <= BYTES_OF_A_PAGE


def _sheets(pictures: Pictures, contents: Contents, side: int) -> Iterator[Sheet]:
    return make_sheets(pictures, contents.order.tolist(), contents.sizes.tolist(), side) if pictures else iter(())


def _names(folder: Path, result: Outputs) -> Names:
    total = result.probabilities.shape[1]
    try:
        return given_names(folder, total) or Names(total)
    except UserError as error:
        warn(f"names are left out: {error}")
        return Names(total)


if __name__ == "__main__":
    sys.exit(cli.main(["report", *sys.argv[1:]]))
