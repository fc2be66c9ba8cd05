"""What a data set is: images in memory or over a memory map, with or without labels, in splits."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Images:
    """Images of one size, or features of samples. Training never reads the labels; the report at the end does.

    Attributes:
        name: the name of the data set.
        images: uint8 [M, H, W, C], C 1 or 3, or features [M, D] of any real dtype, a row a sample; may lie over a
            memory map, and is not to be written to.
        labels: int64 [M], below 0 for an image without one; None where there are none.
        class_names: the name of each label value; empty without labels.
        files: the path of each image relative to the folder, where the images are files. What is not UTF-8 in a name
            is escaped, so that it can be written anywhere.
        pixel_bits: the bits by which pixels of over 8 bits became bytes (:mod:`imc.data.pixel_bits`); None: there were
            none.
        pictures: of features, the images that they are of, uint8 [M, H, W, C], where they are known.
        columns: of features, how many columns each of the files has whose rows lie side by side; empty: one.
        views: of features, stored views [M, V, D] of the samples, of which ``images`` are the first; None: there are
            none.
    """

    name: str
    images: Tensor
    labels: Tensor | None
    class_names: tuple[str, ...]
    files: tuple[str, ...] | None = None
    pixel_bits: int | None = None
    pictures: Tensor | None = None
    columns: tuple[int, ...] = ()
    views: Tensor | None = None

    @property
    def are_features(self) -> bool:
        """Whether the samples are rows of features."""
        return self.images.dim() == 2

    @property
    def sample(self) -> str:
        """What one of them is called."""
        return "row" if self.are_features else "image"

    @property
    def shown(self) -> Tensor | None:
        """What pages show of the samples, uint8 [M, H, W, C]; None for features of what is not known."""
        return self.pictures if self.are_features else self.images


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
