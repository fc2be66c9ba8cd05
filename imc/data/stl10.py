"""STL-10 as its publisher ships it: .bin files of 96x96 images, unpacked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from imc.data.cache import cached, stamp
from imc.data.dataset import Images
from imc.data.files import lines, read_bytes, refusal
from imc.text import counted

SIDE = 96
PIXELS = 3 * SIDE * SIDE  # of one image: red, green, blue plane, each column by column
CLASSES = 10
CHUNK = 1000  # images turned at a time
LIMIT = 1 << 20  # bytes of a file of labels or names
UNLABELED = "unlabeled_X.bin"


def read_stl10(name: str, folder: Path) -> tuple[Images, Images, Images | None]:
    """The train, test and unlabeled split. The images lie in the cache, turned to rows, over a memory map.

    Raises:
        UserError: a file is missing or damaged, or the cache cannot be written.
    """
    class_names = lines(read_bytes(folder / "class_names.txt", LIMIT))
    if len(class_names) != CLASSES:
        named = counted(len(class_names), "class{es}")
        raise refusal(folder / "class_names.txt", f"it names {named} where there are {CLASSES}")
    splits = []
    for split in ("train", "test"):
        images = _read_images(folder / f"{split}_X.bin")
        labels = np.frombuffer(read_bytes(folder / f"{split}_y.bin", LIMIT), np.uint8)
        if len(labels) != len(images) or labels.min() < 1 or labels.max() > CLASSES:
            raise refusal(folder / f"{split}_y.bin", f"it is not {counted(len(images), 'label{s}')} 1..{CLASSES}")
        splits.append(Images(name, images, torch.from_numpy(labels.astype(np.int64) - 1), class_names))
    unlabeled = None
    if (folder / UNLABELED).exists():
        unlabeled = Images(name, _read_images(folder / UNLABELED), None, class_names)
    return splits[0], splits[1], unlabeled


def _read_images(path: Path) -> Tensor:
    if not path.is_file():
        raise refusal(path, "it is not there")
    status = path.stat()
    if status.st_size == 0 or status.st_size % PIXELS:
        found = counted(status.st_size, "byte{s}")
        raise refusal(path, f"it is damaged or cut short: it has {found}, its images {PIXELS:,}")
    count = status.st_size // PIXELS

    def batches() -> Iterator[NDArray[np.uint8]]:
        with path.open("rb") as file:
            for _ in range(0, count, CHUNK):
                planes = np.frombuffer(file.read(CHUNK * PIXELS), np.uint8)
                yield planes.reshape(-1, 3, SIDE, SIDE).transpose(0, 3, 2, 1)

    def build() -> tuple[tuple[int, ...], Iterator[NDArray[np.uint8]], dict[str, Any]]:
        return (count, SIDE, SIDE, 3), batches(), {}

    return cached(path, "stl10", stamp(status), build)[0]
