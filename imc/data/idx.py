"""The IDX files of MNIST and Fashion-MNIST, plain or compressed by gzip."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from imc.data.dataset import Images
from imc.data.files import read_bytes, refusal
from imc.text import counted

UNSIGNED_BYTE = 8
LIMIT = 1 << 28  # bytes; the training images have 47 MB
TRAIN, TEST = "train", "t10k"


def idx_file(folder: Path, split: str, kind: str, dimensions: int) -> Path | None:
    """The file of a split under either of the names in use, ``train-images-idx3-ubyte`` and ``...images.idx3-...``."""
    stems = [f"{split}-{kind}{separator}idx{dimensions}-ubyte" for separator in "-."]
    candidates = [folder / f"{stem}{suffix}" for stem in stems for suffix in ("", ".gz")]
    return next((path for path in candidates if path.is_file()), None)


def read_idx_folder(name: str, folder: Path, class_names: tuple[str, ...]) -> tuple[Images, Images]:
    """The train and the test split: images uint8 [M, H, W, 1].

    Raises:
        UserError: a file is missing or damaged.
    """
    splits = []
    for split in (TRAIN, TEST):
        paths = [idx_file(folder, split, kind, dimensions) for kind, dimensions in (("images", 3), ("labels", 1))]
        if paths[0] is None or paths[1] is None:
            raise refusal(folder, f"it lacks {split}-images-idx3-ubyte or {split}-labels-idx1-ubyte (or their .gz)")
        images, labels = read_idx(paths[0], 3), read_idx(paths[1], 1)
        if len(images) != len(labels) or labels.max() >= len(class_names):
            raise refusal(
                paths[1],
                f"{counted(len(images), 'image{s} need{s|}')} as many labels below {len(class_names)}, "
                f"it has {len(labels):,} up to {labels.max()}",
            )
        splits.append(
            Images(
                name=name,
                images=torch.from_numpy(images.copy()).unsqueeze(-1),
                labels=torch.from_numpy(labels.astype(np.int64)),
                class_names=class_names,
            )
        )
    return splits[0], splits[1]


def read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """The array of bytes in an IDX file of this many dimensions.

    Raises:
        UserError: it is not one, or damaged.
    """
    content = read_bytes(path, LIMIT)
    start = 4 + 4 * dimensions
    if len(content) < start or content[:4] != bytes([0, 0, UNSIGNED_BYTE, dimensions]):
        raise refusal(path, f"it is not an IDX file of unsigned bytes in {dimensions} dimensions")
    shape = struct.unpack(f">{dimensions}I", content[4:start])
    expected = int(np.prod([int(side) for side in shape], dtype=object))
    if expected == 0 or len(content) - start != expected:
        raise refusal(path, f"it is damaged or cut short: it says {expected:,} bytes, and has {len(content) - start:,}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
