"""Data sets that are folders of images: a user's own, Imagenette, Tiny-ImageNet."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from imc.data.dataset import Images
from imc.data.files import lines, read_bytes, refusal
from imc.data.folders import FolderImages, natural_order, read_folder

TRAIN = "train"
HELD_OUT = ("test", "val", "valid", "validation")  # the first that is there is the test split
TEXT_LIMIT = 1 << 26  # bytes; Tiny-ImageNet's words.txt has 2.7 MB
IMAGENETTE = {
    "n01440764": "tench",
    "n02102040": "English springer",
    "n02979186": "cassette player",
    "n03000684": "chain saw",
    "n03028079": "church",
    "n03394916": "French horn",
    "n03417042": "garbage truck",
    "n03425413": "gas pump",
    "n03445777": "golf ball",
    "n03888257": "parachute",
}


def read_own_folder(
    name: str, folder: Path, image_size: int | None, labels_from_folders: bool
) -> tuple[Images, Images | None, str]:
    """A user's folder: its train and test split, and what was found and skipped.

    A folder that holds nothing but sub-folders ``train`` and ``test`` (or ``val``, ``valid``, ``validation``) is split
    as they say. The label of an image, if asked for, is the first sub-folder on its path.

    Raises:
        UserError: no image can be read, or an image that needs a label lies in no sub-folder.
    """
    test = _held_out(folder)
    found = read_folder(folder, image_size, within=(".",) if test is None else (TRAIN, test))
    splits = [found] if test is None else _parts(folder, found, test)
    prefixes = ("",) if test is None else (TRAIN + os.sep, test + os.sep)
    labels: Callable[[str], str] | None = _first_folder(folder) if labels_from_folders else None
    train, *rest = _label(name, splits, prefixes, labels, {})
    note = "; ".join(filter(None, [found.sizes, str(found.skipped)]))
    return train, rest[0] if rest else None, note


def read_imagenette(name: str, folder: Path, image_size: int | None) -> tuple[Images, Images, None, str]:
    """Imagenette of any resolution: ``train`` and ``val``, each with ten sub-folders.

    Raises:
        UserError: a split holds no image that can be read.
    """
    found = read_folder(folder, image_size, within=(TRAIN, "val"))
    splits = _parts(folder, found, "val")
    train, test = _label(name, splits, (TRAIN + os.sep, "val" + os.sep), _first_folder(folder), IMAGENETTE)
    return train, test, None, "; ".join(filter(None, [found.sizes, str(found.skipped)]))


def read_tiny_imagenet(name: str, folder: Path, image_size: int | None) -> tuple[Images, Images, None, str]:
    """Tiny-ImageNet: ``train/<class>/images/``, and ``val/images/`` with its annotations as the test split.

    Raises:
        UserError: a split holds no image that can be read, or the annotations lack an image.
    """
    annotations = folder / "val" / "val_annotations.txt"
    classes = {
        row.split("\t")[0]: row.split("\t")[1] for row in lines(read_bytes(annotations, TEXT_LIMIT)) if "\t" in row
    }
    words = {}
    if (folder / "words.txt").is_file():
        rows = (row.split("\t") for row in lines(read_bytes(folder / "words.txt", TEXT_LIMIT)))
        words = {row[0]: row[1].split(",")[0] for row in rows if len(row) == 2}
    found = read_folder(folder, image_size, within=(TRAIN, "val"))
    in_folder = _first_folder(folder)

    def label(path: str) -> str:
        if path.startswith(TRAIN + os.sep):
            return in_folder(path.partition(os.sep)[2])
        try:
            return classes[path.rpartition(os.sep)[2]]
        except KeyError:
            raise refusal(annotations, f"it lacks {path}") from None

    splits = _parts(folder, found, "val")
    train, test = _label(name, splits, ("", ""), label, words)
    return train, test, None, found.sizes


def _held_out(folder: Path) -> str | None:
    """The sub-folder of the test split, where the folder holds ``train``, such a one, and no other."""
    folders = {entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")}
    if TRAIN not in folders or folders - {TRAIN, *HELD_OUT}:
        return None
    return next((name for name in HELD_OUT if name in folders), None)


def _parts(folder: Path, found: FolderImages, test: str) -> list[FolderImages]:
    """The images of the sub-folder ``train`` and of the one named ``test``; those of each lie one after another."""
    parts = []
    for part in (TRAIN, test):
        chosen = [index for index, path in enumerate(found.files) if path.startswith(part + os.sep)]
        if not chosen:
            raise refusal(folder / part, f"it holds no image that can be read; {found.skipped}")
        start, stop = chosen[0], chosen[-1] + 1
        assert len(chosen) == stop - start
        parts.append(FolderImages(found.images[start:stop], found.files[start:stop], found.sizes, found.skipped))
    return parts


def _first_folder(folder: Path) -> Callable[[str], str]:
    def label(path: str) -> str:
        first, separator, _ = path.partition(os.sep)
        if not separator:
            raise refusal(folder, f"--labels-from-folders needs every image in a sub-folder, {path!r} is in none")
        return first

    return label


def _label(
    name: str,
    splits: Sequence[FolderImages],
    prefixes: Sequence[str],
    label: Callable[[str], str] | None,
    titles: Mapping[str, str],
) -> list[Images]:
    """The splits with their labels; ``titles`` names classes better than their folders do."""
    if label is None:
        return [Images(name, split.images, None, (), split.files) for split in splits]
    labels = [
        [label(path.removeprefix(prefix)) for path in split.files]
        for split, prefix in zip(splits, prefixes, strict=True)
    ]
    classes = sorted({entry for split in labels for entry in split}, key=natural_order)
    number = {entry: index for index, entry in enumerate(classes)}
    class_names = tuple(titles.get(entry, entry) for entry in classes)
    return [
        Images(name, split.images, torch.tensor([number[entry] for entry in own]), class_names, split.files)
        for split, own in zip(splits, labels, strict=True)
    ]
