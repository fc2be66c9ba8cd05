"""CIFAR-10 and CIFAR-100 as their publisher ships them: python or binary version, archive or unpacked folder."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from imc.data.dataset import Images
from imc.data.files import SUFFIX_GZIP, is_unicode, lines, read_bytes, read_members, refusal
from imc.files.inert_pickle import read_pickle
from imc.files.pickled_arrays import pickled_array
from imc.text import counted

SIDE = 32
PIXELS = 3 * SIDE * SIDE  # of one image: red, green, blue plane
LIMIT = 1 << 28  # bytes; the largest file, CIFAR-100's train, has 155 MB
ARCHIVE_LIMIT = 1 << 29


@dataclass(frozen=True)
class Labels:
    """Where a set's labels lie: the key in a pickle, the byte in a record of the binary version, the class names."""

    key: str
    byte: int
    record_bytes: int
    names_key: str
    names_file: str
    classes: int


CIFAR10 = Labels("labels", 0, 1, "label_names", "batches.meta.txt", 10)
CIFAR20 = Labels("coarse_labels", 0, 2, "coarse_label_names", "coarse_label_names.txt", 20)
CIFAR100 = Labels("fine_labels", 1, 2, "fine_label_names", "fine_label_names.txt", 100)
FILES_10 = ([f"data_batch_{batch}" for batch in range(1, 6)], ["test_batch"], "batches.meta")
FILES_100 = (["train"], ["test"], "meta")


def read_cifar(name: str, place: Path, labels: Labels) -> tuple[Images, Images]:
    """The train and the test split.

    Args:
        name: the name of the data set.
        place: the folder or the .tar.gz.
        labels: which set, and which of its labels.

    Raises:
        UserError: a file is missing or damaged.
    """
    train, test, meta = FILES_10 if labels is CIFAR10 else FILES_100
    binary = (place / f"{train[0]}.bin").is_file() or "binary" in place.name
    if binary:
        train, test, meta = [f"{file}.bin" for file in train], [f"{file}.bin" for file in test], labels.names_file
    contents = _contents(place, [*train, *test, meta])
    classes = lines(contents[meta]) if binary else tuple(_pickled_names(place / meta, contents[meta], labels))
    if len(classes) != labels.classes:
        raise refusal(place / meta, f"it names {counted(len(classes), 'class{es}')} where there are {labels.classes}")
    read = _read_records if binary else _read_pickle
    splits = []
    for files in (train, test):
        images, numbers = zip(*(read(place / file, contents.pop(file), labels) for file in files), strict=True)
        planes = torch.from_numpy(np.concatenate(images)).view(-1, 3, SIDE, SIDE)
        splits.append(
            Images(
                name=name,
                images=planes.permute(0, 2, 3, 1).contiguous(),
                labels=torch.from_numpy(np.concatenate(numbers).astype(np.int64)),
                class_names=classes,
            )
        )
    return splits[0], splits[1]


def _contents(place: Path, names: list[str]) -> dict[str, bytes]:
    if place.suffix == SUFFIX_GZIP:
        contents = read_members(place, names, ARCHIVE_LIMIT)
    else:
        contents = {file: read_bytes(place / file, LIMIT) for file in names if (place / file).exists()}
    missing = [file for file in names if file not in contents]
    if missing:
        raise refusal(place, f"it lacks {', '.join(missing)}")
    return contents


def _read_records(path: Path, content: bytes, labels: Labels) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    size = labels.record_bytes + PIXELS
    if not content or len(content) % size:
        found = counted(len(content), "byte{s}")
        raise refusal(path, f"it is damaged or cut short: it has {found}, its records {size:,}")
    records = np.frombuffer(content, np.uint8).reshape(-1, size)
    numbers = records[:, labels.byte]
    _check_range(path, numbers, labels.classes)
    return records[:, labels.record_bytes :], numbers


def _read_pickle(path: Path, content: bytes, labels: Labels) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    entries = unpickle(path, content)
    numbers, pixels = entries.get(labels.key), entries.get("data")
    if not isinstance(numbers, list) or not all(type(number) is int for number in numbers):
        raise refusal(path, f"it has no list of {labels.key}")
    images = _bytes_of(pixels)
    if images is None or images.shape != (len(numbers), PIXELS) or not numbers:
        needed = counted(len(numbers), "image{s}")
        raise refusal(path, f"its data are not {needed} of {PIXELS:,} bytes, one for each label")
    _check_range(path, numbers, labels.classes)
    return images, np.array(numbers, np.int64)


def _pickled_names(path: Path, content: bytes, labels: Labels) -> list[str]:
    names = unpickle(path, content).get(labels.names_key)
    if not isinstance(names, list) or not all(isinstance(entry, str) and is_unicode(entry) for entry in names):
        raise refusal(path, f"it has no list of {labels.names_key}")
    return names


def _check_range(path: Path, numbers: NDArray[np.uint8] | list[int], classes: int) -> None:
    if min(numbers) < 0 or max(numbers) >= classes:
        raise refusal(path, f"it has labels {min(numbers)}..{max(numbers)}, and there are classes 0..{classes - 1}")


def unpickle(path: Path, content: bytes) -> dict[Any, Any]:
    """The dictionary in a pickle, read as data.

    Args:
        path: named in errors.
        content: the bytes of the pickle.

    Raises:
        UserError: it is damaged, or holds something else.
    """
    try:
        result = read_pickle(io.BytesIO(content))
    except ValueError:
        raise refusal(path, "it is damaged, or not a pickle of CIFAR's layout") from None
    if not isinstance(result, dict):
        raise refusal(path, "it is not a pickle of CIFAR's layout (it holds no dictionary)")
    return result


def _bytes_of(node: Any) -> NDArray[np.uint8] | None:
    """The array of bytes that a node of a pickle stands for; None where it is none."""
    try:
        array = pickled_array(node)
    except Exception:  # damaged in whatever way
        return None
    return array if array is not None and array.dtype == np.uint8 else None
