"""The images that `imc predict` is given: folders, pictures and arrays, one after another as a run takes them."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from imc.data.arrays import read_npy
from imc.data.converted import Converted
from imc.data.dataset import Dataset
from imc.data.folders import Skipped, decode_files, decode_folder
from imc.data.model_images import fit_for_model
from imc.data.options import SampleOptions
from imc.data.pixel_bits import PixelBits
from imc.errors import UserError
from imc.features.files import holds_features, read_features
from imc.features.options import ReadOptions
from imc.files.paths import meant, user_path
from imc.models.frozen import CHANNELS, FrozenEncoder
from imc.text import counted

ENCODED = 16  # images at a time through an encoder that is kept: on a CPU the maps of more leave its caches
FOLDER, PICTURE, ARRAY = "folder", "picture", "array"


@dataclass(frozen=True)
class NewImage:
    """One image.

    Attributes:
        name: in the CSV: relative to the folder where one is all that was given, else as it was given; of an array its
            name and the row.
        pixels: uint8 [side, side, C]; of an array [H, W, C], the shorter of both the side; of features a row [D].
        path: the file; None: a row of an array.
        place: where a copy of the file goes below a folder of its cluster.
    """

    name: str
    pixels: NDArray[Any]
    path: Path | None = None
    place: str = ""


def sources(given: Sequence[str]) -> list[Path]:
    """The folders and files that a user names.

    Raises:
        UserError: one is not there.
    """
    paths = [user_path(text) for text in given]
    for text, path in zip(given, paths, strict=True):
        if not (os.path.isdir(path) or os.path.isfile(path)):
            close = meant(text)
            hint = f"; did you mean {close}?" if close else ""
            there = "is no folder and no file" if os.path.exists(path) else "is not there"
            raise UserError(f"{text!r} {there}; accepted are folders, pictures, .npy files and features{hint}")
    return paths


def is_picture(path: Path) -> bool:
    """Whether a source is one image."""
    return _kind(path) == PICTURE


def holds_arrays(paths: Sequence[Path]) -> bool:
    """Whether some of the images are no files."""
    return any(_kind(path) == ARRAY for path in paths)


def title(paths: Sequence[Path]) -> str:
    """A name for what is predicted: of a folder its own, of a file its own without the suffix."""
    first = paths[0].resolve().name if paths[0].is_dir() else paths[0].stem
    return (first or "images") + (f"-and-{len(paths) - 1}-more" if len(paths) > 1 else "")


def read_new_images(
    paths: Sequence[Path],
    options: ReadOptions,
    skipped: Skipped,
    converted: Converted,
    bits: PixelBits,
    encoder: FrozenEncoder | None = None,
) -> Iterator[NewImage]:
    """The images of all the sources, in their order, a bounded number of those in files in memory.

    Args:
        paths: of :func:`sources`.
        options: of the run, resolved.
        skipped: takes the files that cannot be read.
        converted: takes the kinds of the images in files.
        bits: what scales pixels of over 8 bits in files; meets their largest value.
        encoder: that of a run on its features: the samples are those, of arrays of rows the rows.

    Raises:
        UserError: a folder that is a run, or an array that is none of images, or of other channels than the run's.
    """
    if encoder is not None:
        for features, group in itertools.groupby(paths, lambda path: holds_features(str(path))):
            if features:
                yield from _features(list(group), options)
            else:
                into = (encoder.side, CHANNELS, skipped, converted, bits, encoder.interpolation)
                yield from _encoded(_images(list(group), options, into, alone=len(paths) == 1), encoder)
        return
    if options.columns is not None:
        yield from _features(paths, options)
        return
    yield from _images(
        paths, options, (options.side, options.channels, skipped, converted, bits), alone=len(paths) == 1
    )


def _encoded(images: Iterator[NewImage], encoder: FrozenEncoder) -> Iterator[NewImage]:
    """The features of images, in batches of those of one shape that follow one another."""
    for _, alike in itertools.groupby(images, lambda image: image.pixels.shape):
        while batch := list(itertools.islice(alike, ENCODED)):
            rows = encoder.embed_batch(torch.from_numpy(np.stack([image.pixels for image in batch]))).numpy()
            for image, row in zip(batch, rows, strict=True):
                yield replace(image, pixels=row)


def _images(paths: Sequence[Path], options: SampleOptions, into: tuple[Any, ...], *, alone: bool) -> Iterator[NewImage]:
    """The images of sources, decoded by these arguments; ``alone``: names are relative to the only folder."""
    for kind, group in itertools.groupby(paths, _kind):
        if kind == PICTURE:  # those that follow one another together, so that they are decoded in threads
            for name, pixels in decode_files(Path(), [str(path) for path in group], *into):
                yield NewImage(name, pixels, Path(name), Path(name).name)
            continue
        for path in group:
            if kind == ARRAY:
                yield from _rows(path, options)
                continue
            for name, pixels in decode_folder(path, *into):
                place = name if alone else os.path.join(path.resolve().name, name)
                yield NewImage(name if alone else str(path / name), pixels, path / name, place)


def _features(paths: Sequence[Path], options: ReadOptions) -> Iterator[NewImage]:
    """The rows of files of features; those of a run on several, side by side, are of as many again."""
    for path in paths:
        if _kind(path) != ARRAY:
            raise UserError(f"{path} is no file of features, which the run was trained on; accepted are .npy and .npz")
    width = len(options.columns)
    if len(paths) % width:
        raise UserError(
            f"the run was trained on {counted(width, 'file{s}')} of features side by side, and {len(paths)} are given"
        )
    for first in range(0, len(paths), width):
        files = [str(path) for path in paths[first : first + width]]
        data = fit_for_model(options, read_features(files, views=options.are_augmented))
        for row, values in enumerate(data.train.images):
            known = data.train.files
            name = f"{paths[first]}[{row}]" if known is None else known[row]
            yield NewImage(name, values.float().numpy())


def _kind(path: Path) -> str:
    return FOLDER if path.is_dir() else ARRAY if path.suffix.lower() in (".npy", ".npz") else PICTURE


def _rows(path: Path, options: SampleOptions) -> Iterator[NewImage]:
    if path.suffix.lower() == ".npz":
        raise UserError(f"{path} cannot be used: a run on images takes .npy files, one on features .npz too")
    images, _, note = read_npy(str(path), path, options.pixel_bits)
    data = Dataset(str(path), images, test=None, unlabeled=None, mean=(), std=(), note=note)
    fitting = data if options.columns is not None else fit_for_model(options, data)
    for row, pixels in enumerate(fitting.train.images):
        yield NewImage(f"{path}[{row}]", pixels.numpy())
