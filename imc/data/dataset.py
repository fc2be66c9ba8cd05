"""What a data set is: images in memory or over a memory map, with or without labels, in splits."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Images:
    """Images of one size. Training never reads the labels; only the report at the end does.

    Attributes:
        name: the name of the data set.
        images: uint8 [M, H, W, C], C 1 or 3; may lie over a memory map, and is not to be written to.
        labels: int64 [M], below 0 for an image without one; None where there are none.
        class_names: the name of each label value; empty without labels.
        files: the path of each image relative to the folder, where the images are files. What is not UTF-8 in a name
            is escaped, so that it can be written anywhere.
        pixel_bits: the bits by which pixels of over 8 bits became bytes (:mod:`imc.data.pixel_bits`); None: there were
            none.
    """

    name: str
    images: Tensor
    labels: Tensor | None
    class_names: tuple[str, ...]
    files: tuple[str, ...] | None = None
    pixel_bits: int | None = None


@dataclass(frozen=True)
class Dataset:
    """The splits of a data set and what normalises them.

    Attributes:
        name: the name it was loaded by; of a path its last part, without the suffix of a file.
        train: what is clustered.
        test: the held-out split, or None.
        unlabeled: further images for the encoder alone (STL-10), or None.
        mean, std: of each channel, pixels in 0..1: the published values of a named set, else measured on ``train``.
        note: one line for the log: counts, sizes, and what was skipped and why.
    """

    name: str
    train: Images
    test: Images | None
    unlabeled: Images | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    note: str
