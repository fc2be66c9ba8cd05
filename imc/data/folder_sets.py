"""Data sets that are folders of images: a user's own, Imagenette, Tiny-ImageNet."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from imc.data.dataset import Images
from imc.data.files import lines, read_bytes, refusal
from imc.data.folders import FolderImages, Reader, has_image_suffix, natural_order
from imc.data.ignored import is_hidden
from imc.data.splits import find_splits, splits_below
from imc.text import counted, printable

TRAIN = "train"
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
    name: str, folder: Path, read: Reader, labels_from_folders: bool
) -> tuple[Images, Images | None, str]:
    """A user's folder: its train and test split, and what was found, split and skipped, in words.

    A folder with a sub-folder ``train`` and one named ``test`` or ``val``, and the like, is split so, whatever else
    lies beside them (:func:`imc.data.splits.find_splits`). The label of an image, if asked for, is the first sub-folder
    on its path.

    Raises:
        UserError: no image can be read, the splits are not clear, or an image that needs a label lies in no sub-folder.
    """
    parts, said = find_splits(folder, _sub_folders(folder), sum(has_image_suffix(name) for name in _visible(folder)))
    found = read(folder, parts or (".",))
    splits = _parts(folder, found, parts) if parts else [found]
    said += [] if parts else splits_below(found.files)
    prefixes = [part + os.sep for part in parts] or [""]
    labels: Callable[[str], str] | None = _first_folder(folder) if labels_from_folders else None
    train, *rest = _label(name, splits, prefixes, labels, {})
    if labels is not None:
        _require_classes(folder, prefixes[0], train)
        said += _doubtful_classes([folder / part for part in parts] or [folder], [train, *rest])
    note = "; ".join(filter(None, [found.sizes, *said, str(found.skipped)]))
    return train, rest[0] if rest else None, note


def read_imagenette(name: str, folder: Path, read: Reader) -> tuple[Images, Images, None, str]:
    """Imagenette of any resolution: ``train`` and ``val``, each with ten sub-folders.

    Raises:
        UserError: a split holds no image that can be read.
    """
    found = read(folder, (TRAIN, "val"))
    splits = _parts(folder, found, (TRAIN, "val"))
    train, test = _label(name, splits, (TRAIN + os.sep, "val" + os.sep), _first_folder(folder), IMAGENETTE)
    return train, test, None, "; ".join(filter(None, [found.sizes, str(found.skipped)]))


def read_tiny_imagenet(name: str, folder: Path, read: Reader) -> tuple[Images, Images, None, str]:
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
    found = read(folder, (TRAIN, "val"))
    in_folder = _first_folder(folder)

    def label(path: str) -> str:
        if path.startswith(TRAIN + os.sep):
            return in_folder(path.partition(os.sep)[2])
        try:
            return classes[path.rpartition(os.sep)[2]]
        except KeyError:
            raise refusal(annotations, f"it lacks {path}") from None

    splits = _parts(folder, found, (TRAIN, "val"))
    train, test = _label(name, splits, ("", ""), label, words)
    return train, test, None, found.sizes


def _parts(folder: Path, found: FolderImages, parts: Sequence[str]) -> list[FolderImages]:
    """The images of each of these sub-folders; those of each lie one after another."""
    splits = []
    for part in parts:
        chosen = [index for index, path in enumerate(found.files) if path.startswith(part + os.sep)]
        if not chosen:
            raise refusal(folder / part, f"it holds no image that can be read; {found.skipped.details}")
        start, stop = chosen[0], chosen[-1] + 1
        assert len(chosen) == stop - start
        splits.append(replace(found, images=found.images[start:stop], files=found.files[start:stop]))
    return splits


def _require_classes(folder: Path, prefix: str, train: Images) -> None:
    """One class that has sub-folders is a folder around the classes, such as an archive makes."""
    deep = train.files is not None and all(path.removeprefix(prefix).count(os.sep) > 1 for path in train.files)
    if len(train.class_names) == 1 and deep:
        only = train.class_names[0]
        raise refusal(folder, f"--labels-from-folders finds one class, {only!r}; give the folder of the classes")


def _doubtful_classes(folders: Sequence[Path], splits: Sequence[Images]) -> list[str]:
    """What to say of classes that may not be meant: without images, in one split only, or alike but for their case."""
    names, said = splits[0].class_names, []
    present = [{names[index] for index in set(split.labels.tolist())} for split in splits if split.labels is not None]
    empty = sorted({printable(name) for folder in folders for name in _sub_folders(folder)} - set(names))
    alike: dict[str, list[str]] = {}
    for entry in names:
        alike.setdefault(unicodedata.normalize("NFKC", entry).casefold(), []).append(entry)
    pairs = [" and ".join(map(repr, group)) for group in alike.values() if len(group) > 1]
    single = sorted(set.union(*present) - set.intersection(*present)) if len(present) > 1 else []
    for text, found in (
        ("folder{s} without images, which {is no class|are no classes}", list(map(repr, empty))),
        ("group{s} of classes that differ by case or spelling alone", pairs),
        ("class{es} in one split only", list(map(repr, single))),
    ):
        if found:
            said.append(f"{counted(len(found), text)} (such as {found[0]})")
    return said


def _visible(folder: Path) -> list[str]:
    try:
        return [name for name in os.listdir(folder) if not is_hidden(name)]
    except OSError as error:
        raise refusal(folder, error.strerror or str(error)) from None


def _sub_folders(folder: Path) -> list[str]:
    return sorted((name for name in _visible(folder) if (folder / name).is_dir()), key=natural_order)


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
        return [Images(name, split.images, None, (), split.files, split.pixel_bits) for split in splits]
    labels = [
        [label(path.removeprefix(prefix)) for path in split.files]
        for split, prefix in zip(splits, prefixes, strict=True)
    ]
    classes = sorted({entry for split in labels for entry in split}, key=natural_order)
    number = {entry: index for index, entry in enumerate(classes)}
    class_names = tuple(titles.get(entry, entry) for entry in classes)
    return [
        Images(
            name,
            split.images,
            torch.tensor([number[entry] for entry in own]),
            class_names,
            split.files,
            split.pixel_bits,
        )
        for split, own in zip(splits, labels, strict=True)
    ]
