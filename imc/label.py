"""Apply the names that were given to a run's clusters on its page, and hand the named images over to other programs.

    imc label runs/birds names.json                       # runs/birds/labels.csv gets the column name
    imc label runs/birds names.json --sort-into sorted    # and a copy of each image in a folder per name
    imc label runs/birds names.json --sort-into sorted --link    # symbolic links instead of copies
    imc label runs/birds --to parquet                     # the names that the run has, for another program
    imc label runs/birds --to coco-classification --out birds.json

names.json is what ``Download names`` on the page of ``imc report`` gives; the run keeps it, and ``imc predict``, ``imc
report`` and ``imc export`` use it from then on. Clusters without a name are called cluster 3 and the like; images of
those that are marked wrong have none. Formats: csv and parquet tables; label-studio, tasks with predictions, beside its
interface; fiftyone, a FiftyOneImageClassificationDataset; imagefolder, a folder per name; coco-classification. The
images themselves stay as they are.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from imc import cli
from imc.command_line import arguments
from imc.command_line.options import argument, check, option
from imc.command_line.terminal import show
from imc.data.originals import original_files
from imc.data.sorting import require_new
from imc.errors import RunError, UserError
from imc.files.json import write_json
from imc.files.paths import user_path
from imc.files.run_places import LABELS, NAMES
from imc.handover.coco import write_coco
from imc.handover.fiftyone import write_fiftyone
from imc.handover.image_folders import write_folders
from imc.handover.label_studio import document_root, write_label_studio
from imc.handover.labelled import FILE, Labelled, named, read_labelled
from imc.handover.tables import require_parquet, write_csv, write_parquet
from imc.runs.folder import read_config
from imc.runs.names import Names, given_names, read_names
from imc.text import counted, inflected, shell_word, visible

FOLDERS = "imagefolder"
Writer = Callable[[Path, Sequence[Labelled], Sequence[str]], None]
# Of each format its default place in the folder of the run, and what writes it.
FORMATS: dict[str, tuple[str, Writer | None]] = {
    "csv": (LABELS, write_csv),
    "parquet": ("labels.parquet", write_parquet),
    "label-studio": ("labels-label-studio.json", write_label_studio),
    "fiftyone": ("labels-fiftyone.json", write_fiftyone),
    FOLDERS: ("labels-imagefolder", None),
    "coco-classification": ("labels-coco.json", write_coco),
}
TABLES = ("csv", "parquet")  # which need no files of images


@dataclass(frozen=True)
class Options:
    """The options of ``imc label``."""

    run: str = argument("RUN", "folder of a trained run")
    names: str | None = argument("NAMES", "names.json, which the page gave; default: those it has", optional=True)
    to: str | None = option(None, "hand over", "write the named images for another program", choices=tuple(FORMATS))
    out: str | None = option(
        None, "hand over", "the file, or folder, of --to; default: RUN/labels... by the format", path=True
    )
    sort_into: str | None = option(
        None, "hand over", "copy each image to this empty folder, into one per name", path=True
    )
    link: bool = option(False, "hand over", "make symbolic links to the images, no copies")
    data: str | None = option(
        None, "hand over", "where the images of the run lie now; default: where they were", path=True
    )
    overwrite: bool = option(False, "hand over", "replace the file of --to if it exists")


def main(argv: Sequence[str]) -> None:
    """The command: a run and names in, labels out."""
    show(report(label(arguments.parse(Options, argv, program="imc label", description=__doc__ or ""))))


def label(options: Options) -> dict[str, Any]:
    """Apply names to the images of a run.

    Returns:
        ``images``: how many; ``classes``: how many of them have each name; ``unnamed``: how many have none; ``files``:
        what was written; ``note``: what else another program has to be told.

    Raises:
        UserError: there is no run, the names are not for it, or the place of an output is taken.
        RunError: an output cannot be written.
    """
    check(options)
    if options.out is not None and options.to is None:
        raise UserError(f"--out is the place of what --to writes; give --to, one of {', '.join(FORMATS)}")
    if options.link and options.to != FOLDERS and options.sort_into is None:
        raise UserError(f"--link is for --sort-into and --to {FOLDERS}")
    if options.names is None and options.to is None and options.sort_into is None:
        raise UserError("nothing to do: give names.json, which the page of imc report gives, --to or --sort-into")
    folder = user_path(options.run)
    config = read_config(folder)
    source = folder / NAMES if options.names is None else user_path(options.names)
    total = config.clusters or 0
    names = given_names(folder, total) if options.names is None else read_names(source, folder, total)
    images = named(read_labelled(folder / LABELS), names or Names(total), source)
    if not images:
        raise UserError(f"{folder / LABELS} holds no image")
    classes = [name for name in (names or Names(total)).classes if any(image.name == name for image in images)]
    if options.to not in (None, *TABLES) or options.sort_into is not None:
        what = f"--to {options.to}" if options.sort_into is None else "--sort-into"
        images = _with_files(images, options.data or config.data, config.data_root, what)
    elif options.to == "parquet" and FILE in images[0].columns:
        images = _located(images, options.data or config.data, config.data_root)
    targets = _targets(options, folder, user_path(options.data or config.data))
    try:
        if options.names is not None and names is not None:
            write_csv(folder / LABELS, images, classes)
            write_json(folder / NAMES, names.to_json())
        for kind, path in targets.items():
            if kind in (FOLDERS, "sorted"):
                write_folders(path, images, link=options.link, unnamed=kind == "sorted")
            else:
                writer = FORMATS[kind][1]
                assert writer is not None
                writer(path, images, classes)
    except OSError as error:
        raise RunError(f"cannot write {error.filename or folder}: {error.strerror}") from None
    written = [folder / LABELS, folder / NAMES] if options.names is not None else []
    counts = Counter(image.name for image in images)
    return {
        "images": len(images),
        "classes": {name: counts[name] for name in classes},
        "unnamed": counts[None],
        "files": [str(path) for path in dict.fromkeys([*written, *targets.values()])],
        "note": _note(options, images),
    }


def report(result: dict[str, Any]) -> str:
    """What was labelled, as text."""
    lines = [f"{visible(name)}: {counted(count, 'image{s}')}" for name, count in result["classes"].items()]
    if result["unnamed"]:
        lines.append(f"without a name: {counted(result['unnamed'], 'image{s}')}")
    return "\n".join([*lines, *filter(None, [result["note"]]), *map(visible, result["files"])])


def _located(images: Sequence[Labelled], source: str, root: str | None) -> list[Labelled]:
    """The images with the paths of their files, where they are some."""
    files = [image.file for image in images] if FILE in images[0].columns else None
    paths = original_files(source, files, None if root is None else user_path(root))
    return list(images) if paths is None else [replace(i, path=path) for i, path in zip(images, paths, strict=True)]


def _with_files(images: Sequence[Labelled], source: str, root: str | None, what: str) -> list[Labelled]:
    """The same, all of which are there.

    Raises:
        UserError: they are no files, or no longer where they were.
    """
    found = _located(images, source, root)
    missing = [image for image in found if image.path is None or not image.path.is_file()]
    if missing and missing[0].path is None:
        accepted = " and ".join(TABLES)
        raise UserError(f"{what} is for images in files, and those of the run are none; accepted are {accepted}")
    if missing:
        gone = f"{len(missing):,} of {counted(len(images), 'image{s}')} {inflected(len(missing), '{is|are}')}"
        raise UserError(f"{gone} no longer in {source}, such as {missing[0].file}; give --data, where they are")
    return found


def _targets(options: Options, folder: Path, images: Path) -> dict[str, Path]:
    """Where the outputs go, each checked to be free."""
    targets = {}
    if options.to == "parquet":
        require_parquet()
    if options.to is not None:
        path = folder / FORMATS[options.to][0] if options.out is None else user_path(options.out)
        if options.to == FOLDERS:
            require_new(path, "--to imagefolder", [images] if images.is_dir() else [])
        elif path != folder / LABELS and (path.is_dir() or (path.exists() and not options.overwrite)):
            raise UserError(f"{path} exists already; give another --out, or pass --overwrite to replace a file")
        targets[options.to] = path
    if options.sort_into is not None:
        targets["sorted"] = user_path(options.sort_into)
        require_new(targets["sorted"], "--sort-into", [images] if images.is_dir() else [])
    return targets


def _note(options: Options, images: Sequence[Labelled]) -> str:
    if options.to != "label-studio":
        return ""
    settings = "LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT"
    return f"for Label Studio: {settings}={shell_word(document_root(images))}"


if __name__ == "__main__":
    sys.exit(cli.main(["label", *sys.argv[1:]]))
