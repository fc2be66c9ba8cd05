"""Images that an estimator is given as files: one folder, or a list of pictures."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from imc.data.converted import Converted
from imc.data.folders import Skipped, listing, read_pictures
from imc.data.model_images import bits_of_files
from imc.errors import UserError
from imc.features.embedding import embed_images
from imc.features.options import ReadOptions
from imc.files.paths import user_path
from imc.runs.data import kept_encoder
from imc.runs.new_images import is_picture, read_new_images, sources
from imc.text import counted, printable


@dataclass(frozen=True)
class GivenFiles:
    """Pictures, in the order of what the estimator answers.

    Attributes:
        paths: of the files.
        names: of each, relative to the folder where one was given, else as it was given.
        from_folder: whether a folder was given.
    """

    paths: tuple[str, ...]
    names: tuple[str, ...]
    from_folder: bool

    def __len__(self) -> int:
        return len(self.paths)


class Read(NamedTuple):
    """What a run takes of files.

    Attributes:
        samples: uint8 [M, side, side, C], or features float32 [M, D].
        names: [M], of those that could be read.
        skipped: the others.
        pixel_bits: the bits of the pixels of over 8, where there were such.
    """

    samples: Tensor
    names: tuple[str, ...]
    skipped: Skipped
    pixel_bits: int | None


def given_files(given: Any) -> GivenFiles | None:
    """The pictures of a folder by its path, in natural order, or of a sequence of paths; None: it is neither.

    Raises:
        UserError: a path leads to no folder or picture, or a folder to no picture.
    """
    if isinstance(given, str | os.PathLike):
        folder = sources([os.fspath(given)])[0]
        if not folder.is_dir():
            raise UserError(f"{os.fspath(given)!r} is a file; accepted are a folder, a list of pictures, and arrays")
        skipped = Skipped()
        names = [name for name, _ in listing(folder, (".",), skipped)]
        if not names:
            raise UserError(f"{folder} holds no image that can be read; {skipped.details}")
        return GivenFiles(tuple(str(folder / name) for name in names), tuple(map(printable, names)), True)
    entries = _entries(given)
    paths = [entry for entry in entries if isinstance(entry, str | os.PathLike)]
    if not paths:
        return None
    if len(paths) < len(entries):
        other = next(type(entry).__name__ for entry in entries if not isinstance(entry, str | os.PathLike))
        raise UserError(f"a list of pictures must hold paths alone, and this one has {other} too")
    texts = [os.fspath(path) for path in paths]
    for text, path in zip(texts, sources(texts), strict=True):
        if not is_picture(path):
            kind = "a folder" if path.is_dir() else "a file of arrays"
            raise UserError(f"a list of pictures must hold their paths, and {text!r} is {kind}")
    return GivenFiles(tuple(str(user_path(text)) for text in texts), tuple(map(printable, texts)), False)


def read_first(files: GivenFiles, options: ReadOptions, size: int | None) -> Read:
    """What a new run takes.

    Args:
        files: the pictures.
        options: not resolved.
        size: at which pictures are read where the pixels are learned from, see :func:`imc.data.folders.read_folder`.

    Raises:
        UserError: none of them can be read.
    """
    if options.encodes:
        return _embedded(files, options, options.pixel_bits)
    skipped = Skipped()
    found = read_pictures(files.paths, size, options.pixel_bits, skipped)
    return Read(found.images, _named(files, found.files), skipped, found.pixel_bits)


def read_new(files: GivenFiles, options: ReadOptions) -> Read:
    """What a trained run takes; ``options`` are its own, resolved.

    Raises:
        UserError: none of them can be read.
    """
    bits = bits_of_files(options)
    if options.encodes:
        return _embedded(files, options, bits.chosen)
    skipped = Skipped()
    paths = [Path(path) for path in files.paths]
    found = list(
        read_new_images(paths, options, skipped, Converted(options.side, options.channels), bits, encoder=None)
    )
    if not found:
        raise UserError(f"none of the files is an image that can be read; {skipped.details}")
    samples = torch.from_numpy(np.stack([image.pixels for image in found]))
    return Read(samples, _named(files, [printable(image.name) for image in found]), skipped, bits.found)


def _embedded(files: GivenFiles, options: ReadOptions, pixel_bits: int | None) -> Read:
    title = counted(len(files.paths), "picture{s}")
    found = embed_images(title, kept_encoder(options), files=files.paths, pixel_bits=pixel_bits)
    return Read(torch.from_numpy(found.features), _named(files, found.files), found.skipped, found.pixel_bits)


def _named(files: GivenFiles, found: Iterable[str]) -> tuple[str, ...]:
    """The names of those pictures that were read, by their paths, of which some may be the same."""
    names = zip(map(printable, files.paths), files.names, strict=True)
    return tuple(next(name for own, name in names if own == path) for path in found)


def _entries(given: Any) -> list[Any]:
    """The entries of what may be a sequence of paths; empty where it is an array of numbers or of more dimensions."""
    if isinstance(given, list | tuple):
        return list(given)
    if getattr(given, "ndim", None) == 1 and getattr(getattr(given, "dtype", None), "kind", "O") in "OUT":
        return list(given)
    return []
