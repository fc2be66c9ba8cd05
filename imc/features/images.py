"""The images of a data set one by one, as an encoder takes them: from their files, or from an array."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from imc.data import Dataset, Images, load
from imc.data.decode import UnreadableError
from imc.data.folders import Skipped
from imc.data.resize import resized
from imc.data.undecoded import Undecoded
from imc.text import counted


class SourceImages:
    """The rows of all splits, the train split's first.

    Attributes:
        name: of the data set.
        splits: the split of that name.
        note: what was read, in words; of a data set also what was left out.
        skipped: of files by their paths, those that were left out.

    Args:
        source, root, labels_from_folders, download, pixel_bits: see :func:`imc.data.load`.
        side: at which they are used, pixels.
        interpolation: how they become that size.
        files: paths of images, which are read instead of a data set; the source is then their name.
    """

    def __init__(
        self,
        source: str,
        *,
        side: int,
        interpolation: str,
        root: Path | None = None,
        labels_from_folders: bool = False,
        download: bool = False,
        pixel_bits: int | None = None,
        files: Sequence[str] | None = None,
    ) -> None:
        self.side, self.interpolation = side, interpolation
        self._files, self.skipped = Undecoded(side, pixel_bits), Skipped()
        data = (
            load(
                source,
                root=root,
                labels_from_folders=labels_from_folders,
                download=download,
                pixel_bits=pixel_bits,
                read=self._files,
            )
            if files is None
            else self._given(source, files)
        )
        small = self._files.small
        enlarged = counted(small, "image{s} {is|are} smaller than the encoder's, and enlarged")
        self.name, self.note = data.name, "; ".join([data.note, *([enlarged] if small else [])])
        splits = {"train": data.train, "test": data.test, "unlabeled": data.unlabeled}
        self.splits = {name: images for name, images in splits.items() if images is not None}
        self._starts = list(itertools.accumulate((len(images.images) for images in self.splits.values()), initial=0))

    def _given(self, name: str, files: Sequence[str]) -> Dataset:
        found = self._files.read(Path(), files, self.skipped)
        train = Images(name, found.images, None, (), found.files, found.pixel_bits)
        return Dataset(name, train, None, None, (), (), "")

    @property
    def pixel_bits(self) -> int | None:
        """The bits of the pixels of over 8, where there are such."""
        return self.splits["train"].pixel_bits

    def __len__(self) -> int:
        return self._starts[-1]

    @property
    def in_files(self) -> bool:
        """Whether the images are decoded from files, one each."""
        return bool(self._files.names)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The name of each label value."""
        return self.splits["train"].class_names

    def place(self, row: int) -> tuple[str, Images, int]:
        """The split of a row, its images, and the row's number among them."""
        number = bisect.bisect_right(self._starts, row) - 1
        name = list(self.splits)[number]
        return name, self.splits[name], row - self._starts[number]

    def file(self, row: int) -> str:
        """The path of an image relative to the folder; of one in an array its split and number."""
        split, images, number = self.place(row)
        return f"{split}[{number}]" if images.files is None else images.files[number]

    def content(self, row: int) -> bytes:
        """All that decides an image but for its size.

        Raises:
            UnreadableError: its file cannot be read.
        """
        _, images, number = self.place(row)
        if _is_decoded(images):
            pixels = images.images[number]
            return f"pixels {tuple(pixels.shape)} ".encode() + pixels.contiguous().numpy().tobytes()
        try:
            return self._files.content(int(images.images[number]))
        except OSError:
            raise UnreadableError("cannot be opened") from None

    def square(self, row: int, side: int) -> Tensor:
        """The centre of an image: uint8 [side, side, C], C 1 or 3.

        Raises:
            UnreadableError: it cannot be decoded.
        """
        _, images, number = self.place(row)
        if _is_decoded(images):
            return resized(images.images[number : number + 1], side, self.interpolation)[0]
        return torch.tensor(self._files.decode(int(images.images[number]), side, self.interpolation))

    def label(self, row: int) -> int:
        """Below 0 for an image without one."""
        _, images, number = self.place(row)
        return -1 if images.labels is None else int(images.labels[number])


def _is_decoded(images: Images) -> bool:
    return images.images.dim() == 4
