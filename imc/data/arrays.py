"""Images in an .npy or .npz file of numpy, read without pickles."""

from __future__ import annotations

import functools
import operator
import zipfile
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from imc.data.cache import memory_mapped
from imc.data.dataset import Images
from imc.data.files import is_unicode, refusal
from imc.data.pixel_bits import PixelBits, Range, as_bytes
from imc.errors import UserError
from imc.machine.memory import machine_memory
from imc.text import counted

# Names of the arrays in an .npz: images and labels to cluster, images and labels held out.
TRAIN_IMAGES = ("images", "x", "x_train", "train_images")
TRAIN_LABELS = ("labels", "y", "y_train", "train_labels")
TEST_IMAGES = ("test_images", "x_test")
TEST_LABELS = ("test_labels", "y_test")
CHANNELS = (1, 3)
ACCEPTED = "fractions 0..1 and whole numbers 0..65535"
CHUNK = 1024  # images converted at a time


def read_npy(name: str, path: Path, pixel_bits: int | None = None) -> tuple[Images, None, str]:
    """The images of an .npy file, without labels, and how their values were taken, in words.

    What is uint8 [M, H, W, C] already stays on the disk. For ``pixel_bits`` see :mod:`imc.data.pixel_bits`.

    Raises:
        UserError: it is damaged, needs a pickle, or holds no images.
    """
    try:
        images = memory_mapped(path)
    except (TypeError, ValueError):
        images = None  # a dtype that torch lacks, a byte order, or damage: what numpy says about it decides
    except Exception as error:
        raise refusal(path, reason_of(error)) from None
    if images is not None and images.dtype == torch.uint8 and _is_channels_last(tuple(images.shape)):
        return Images(name, images, None, ()), None, ""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:
        raise refusal(path, reason_of(error)) from None
    (converted,), bits, note = _convert(path, [("the array", array)], pixel_bits)
    return Images(name, converted, None, (), pixel_bits=bits), None, note


def read_npz(name: str, path: Path, pixel_bits: int | None = None) -> tuple[Images, Images | None, str]:
    """The images of an .npz file, with their labels if it has any, and the held-out images, if it has any.

    Third comes how their values were taken, in words. For ``pixel_bits`` see :mod:`imc.data.pixel_bits`.

    Raises:
        UserError: it is damaged, needs a pickle, holds no images, or more than fits into the memory.
    """
    arrays = load_npz(path, {*TRAIN_IMAGES, *TRAIN_LABELS, *TEST_IMAGES, *TEST_LABELS})
    images = _first(arrays, TRAIN_IMAGES)
    if images is None:
        found = ", ".join(arrays) or "none"
        raise refusal(path, f"it has no array named {' or '.join(TRAIN_IMAGES)}, but {found}")
    pairs = [(images, _first(arrays, TRAIN_LABELS)), (_first(arrays, TEST_IMAGES), _first(arrays, TEST_LABELS))]
    classes, numbers = class_numbers(path, [labels for images, labels in pairs if images is not None])
    tensors, bits, note = _convert(path, [images for images, _ in pairs if images is not None], pixel_bits)
    splits: list[Images | None] = []
    for images, labels in pairs:
        if images is None:
            splits.append(None)
            continue
        key, tensor = images[0], tensors[len(splits)]
        if labels is not None and len(labels[1]) != len(tensor):
            has = f"{key} has {counted(len(tensor), 'image{s}')}, {labels[0]} has {counted(len(labels[1]), 'label{s}')}"
            raise refusal(path, has)
        own = None if labels is None else numbers[labels[0]]
        splits.append(Images(name, tensor, own, classes, pixel_bits=bits))
    train, test = splits
    assert train is not None
    if test is not None and test.images.shape[1:] != train.images.shape[1:]:
        shapes = [f"{tuple(split.images.shape[1:])}" for split in (train, test)]
        raise refusal(path, f"its images of train and test differ in shape: {' and '.join(shapes)}")
    return train, test, note


Named = tuple[str, NDArray[Any]]


def load_npz(path: Path, wanted: Collection[str], flag: str = "--data") -> dict[str, NDArray[Any]]:
    """The arrays of an .npz, read without pickles; of those whose names are not ``wanted`` the names alone.

    Raises:
        UserError: it is damaged, needs a pickle, or holds more than half the memory; named as a value of ``flag``.
    """
    memory = machine_memory()
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = {entry.filename.removesuffix(".npy"): entry.file_size for entry in archive.infolist()}
        total = sum(size for key, size in sizes.items() if key in wanted)
        if total > memory // 2:
            raise refusal(
                path,
                f"its arrays take {total / 1e9:,.1f} GB, more than half the memory here ({memory / 1e9:,.1f} GB); "
                "an .npy file is read from the disk",
                flag,
            )
        with np.load(path, allow_pickle=False) as content:
            arrays = {key: content[key] for key in sizes if key in wanted}
    except UserError:
        raise
    except Exception as error:
        raise refusal(path, reason_of(error, "arrays"), flag) from None
    unread = {key: np.empty(0) for key in sizes if key not in wanted}
    return {key: array for key, array in {**arrays, **unread}.items() if isinstance(array, np.ndarray)}


def _first(arrays: dict[str, NDArray[Any]], names: tuple[str, ...]) -> Named | None:
    return next(((name, arrays[name]) for name in names if name in arrays), None)


def class_numbers(
    path: Path, labels: Sequence[Named | None], flag: str = "--data"
) -> tuple[tuple[str, ...], dict[str, Tensor]]:
    """The class names of all splits together, and the numbers of each array of labels; a number below 0 is no label.

    Raises:
        UserError: they are no labels; ``path`` is named as a value of ``flag``.
    """
    present = [entry for entry in labels if entry is not None]
    flat: dict[str, NDArray[Any]] = {}
    for key, array in present:
        values = array.reshape(-1) if array.ndim == 2 and array.shape[1] == 1 else array
        if values.ndim != 1 or values.dtype.kind not in "iuU" or not len(values):
            raise refusal(
                path, f"{key} must be whole numbers or texts [M], got {array.dtype} {list(array.shape)}", flag
            )
        flat[key] = values
    if len({values.dtype.kind == "U" for values in flat.values()}) > 1:
        raise refusal(path, f"{' and '.join(flat)} must both be numbers or both be texts", flag)
    if not flat:
        return (), {}
    values, numbers = np.unique(np.concatenate(list(flat.values())), return_inverse=True)
    unlabelled = 0 if values.dtype.kind == "U" else int((values < 0).sum())
    values, numbers = values[unlabelled:], np.maximum(numbers - unlabelled, -1)
    ends = np.cumsum([len(array) for array in flat.values()])[:-1]
    split = np.split(numbers.astype(np.int64), ends)
    try:
        names = tuple(map(str, values))
    except (ValueError, SystemError):  # beyond the last character
        names = ("\udfff",)
    if not all(map(is_unicode, names)):
        raise refusal(path, f"{' and '.join(flat)} hold texts that are not Unicode", flag)
    return names, {key: torch.from_numpy(part) for key, part in zip(flat, split, strict=True)}


def _is_channels_last(shape: tuple[int, ...]) -> bool:
    return len(shape) == 4 and shape[3] in CHANNELS and min(shape) > 0


def _convert(path: Path, arrays: list[Named], pixel_bits: int | None) -> tuple[list[Tensor], int | None, str]:
    """Accepted arrays of images, each as uint8 [M, H, W, C], by one range for all; the bits of their values, if they
    have over 8; and how the values were taken, in words."""
    laid_out = {key: _channels_last(path, key, array) for key, array in arrays}
    spans = {key: _range(array) for key, array in laid_out.items() if array.dtype.kind in "iuf"}
    fractions = all(spans[key].fractions for key, array in laid_out.items() if array.dtype.kind == "f")
    bits, stored = PixelBits(pixel_bits), {}
    for key, array in laid_out.items():
        if array.dtype.kind == "b" or (array.dtype.kind == "f" and fractions):
            stored[key] = 1
            continue
        if not spans[key].numbers:
            kind = "whole numbers" if spans[key].whole else "fractions"
            raise refusal(path, f"{key} has {kind} {spans[key].low}..{spans[key].high}; accepted are {ACCEPTED}")
        if array.dtype != np.uint8:
            bits.meet(int(spans[key].high))
        stored[key] = 8 if array.dtype == np.uint8 else 16
    white = {1: 1, 8: 255, 16: (1 << bits.bits) - 1}
    tensors = [_as_bytes(array, white[stored[key]]) for key, array in laid_out.items()]
    return tensors, bits.found, str(bits) if bits.bits > 8 or not fractions else ""


def _as_bytes(array: NDArray[Any], white: int) -> Tensor:
    images = np.empty(array.shape, np.uint8)
    for start in range(0, len(array), CHUNK):
        part = array[start : start + CHUNK]
        images[start : start + CHUNK] = as_bytes(part.astype(np.float64 if white == 1 else np.uint16), white)
    return torch.from_numpy(images)


def _channels_last(path: Path, key: str, array: NDArray[Any]) -> NDArray[Any]:
    """An array of images of an accepted shape and kind as [M, H, W, C]."""
    shape = array.shape
    grey = len(shape) == 3 and min(shape) > 0
    channels_first = len(shape) == 4 and not _is_channels_last(shape) and shape[1] in CHANNELS and min(shape) > 0
    if not (grey or channels_first or _is_channels_last(shape)):
        raise refusal(
            path,
            f"{key} has shape {list(shape)}; accepted are [M, H, W], [M, H, W, C] and [M, C, H, W], C 1 or 3, none 0",
        )
    if array.dtype.kind not in "buif":
        raise refusal(path, f"{key} has dtype {array.dtype}; accepted are {ACCEPTED}")
    if grey:
        return array[..., None]
    return np.moveaxis(array, 1, 3) if channels_first else array


def _range(array: NDArray[Any]) -> Range:
    """Of all the values, read in parts."""
    parts = (Range.of(array[start : start + CHUNK]) for start in range(0, len(array), CHUNK))
    return functools.reduce(operator.or_, parts)


def reason_of(error: Exception, content: str = "images") -> str:
    """Why numpy could not read a file of ``content``, in words."""
    text = str(error)
    if "pickled" in text:  # numpy takes whatever is no array for a pickle
        return "it is no file that numpy wrote"
    if "allow_pickle" in text or "Python objects" in text:
        return f"it holds Python objects, whose loading could run code; save the {content} as numbers"
    if isinstance(error, MemoryError):
        return "it says that it holds more than fits into the memory"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return "it is damaged or cut short"
