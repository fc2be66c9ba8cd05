"""Features made elsewhere: rows of numbers in .npy and .npz files, with the names and labels of the rows."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from imc.data.arrays import class_numbers, load_npz, reason_of
from imc.data.cache import cached, memory_mapped, stamp, tensor_over
from imc.data.dataset import Dataset, Images
from imc.data.labels import read_labels, read_lines
from imc.errors import UserError
from imc.features.options import AUGMENTED
from imc.features.views import split_views
from imc.files.paths import file_of, user_path
from imc.machine.memory import machine_memory
from imc.text import counted, inflected

# Names of the arrays in an .npz: rows to cluster with their labels and names, and rows held out with their labels.
FEATURES = ("features", "embeddings", "x", "z", "x_train", "train_features")
LABELS = ("labels", "y", "y_train", "train_labels")
FILES = ("files", "names")
TEST_FEATURES = ("test_features", "x_test")
TEST_LABELS = ("test_labels", "y_test")
SUFFIXES = (".npy", ".npz")
# What reads the rows of other programs' files, in words.
READ_BY = {
    **dict.fromkeys((".csv", ".tsv", ".txt"), "numpy.loadtxt"),
    **dict.fromkeys((".parquet", ".feather"), "pandas"),
    **dict.fromkeys((".h5ad", ".loom"), "anndata"),
    **dict.fromkeys((".h5", ".hdf5"), "h5py"),
    **dict.fromkeys((".pt", ".pth"), "torch.load"),
    ".safetensors": "safetensors",
    ".mat": "scipy.io.loadmat",
}
BLOCK = 4096  # rows
NAMED_ROWS = 5  # that a refusal lists


def read_features(
    sources: Sequence[str], *, files: str | None = None, labels: str | None = None, views: bool = False
) -> Dataset:
    """The rows of one or several files, side by side, as a data set.

    A single .npy stays on the disk. Several files become one matrix, on the disk too where it would take more than a
    quarter of the memory.

    Args:
        sources: .npy files [M, D], or .npz files with such an array under one of the names of this module.
        files: a text with the name of each row, one a line.
        labels: whole numbers or texts [M] in an .npy, or one a line in a text; a number below 0 is no label.
        views: whether the files may hold stored views [M, V, D], of which the first is the sample's row.

    Returns:
        A data set whose ``images`` are rows [M, D] of the dtype that was stored.

    Raises:
        UserError: what cannot be used, with what is accepted.
    """
    parts = [_read(source, views) for source in sources]
    rows = _side_by_side([(source, part[FEATURES[0]]) for source, part in zip(sources, parts, strict=True)])
    count, first = len(rows), parts[0]
    for source, part in zip(sources, parts, strict=True):
        _require_finite(source, part[FEATURES[0]])
    title = sources[0]
    names = first.get(FILES[0]) if files is None else read_lines(files)
    numbers, test_numbers, classes = _labels(title, first, labels)
    for what, given in ((files or f"{title}: {FILES[0]}", names), (labels or f"{title}: {LABELS[0]}", numbers)):
        if given is not None and len(given) != count:
            raise UserError(f"{what} has {len(given):,} entries, and the features have {count:,} rows")
    name = user_path(title).stem or "features"
    columns = tuple(part[FEATURES[0]].shape[-1] for part in parts)
    listed = None if names is None else tuple(map(str, names))
    first_view, views_of = split_views(rows)
    train = Images(name, first_view, numbers, classes, listed, columns=columns, views=views_of)
    test = _held_out(name, sources, parts, rows, test_numbers, classes)
    held_out = "" if test is None else f" and {len(test.images):,} held out"
    each = "" if views_of is None else f" in {counted(views_of.shape[1], 'view{s}')} each"
    read = f"{counted(count, 'row{s}')} of {counted(rows.shape[-1], 'feature{s}')}{each}"
    note = f"{name}: {read}{held_out} from {', '.join(sources)}"
    return Dataset(name, train, test, None, (), (), note)


def holds_features(source: str) -> bool:
    """Whether a source is a file of rows: an .npy of a matrix, or an .npz that names features."""
    path = user_path(source)
    with contextlib.suppress(Exception):  # what is no file, or damaged, is told by who reads it as what it is to be
        if path.suffix.lower() == ".npy":
            return bool(np.load(path, mmap_mode="r", allow_pickle=False).ndim == 2)
        if path.suffix.lower() == ".npz":
            with np.load(path, allow_pickle=False) as content:
                return bool({"features", "embeddings", "z"} & set(content.files))
    return False


def require_rows(what: str, rows: Any, views: bool = False) -> None:
    """An array of features, with ``views`` perhaps of several a sample.

    Raises:
        UserError: it is none.
    """
    shape, kind = tuple(rows.shape), rows.dtype.kind
    if kind == "O":
        raise _refusal(what, "it holds Python objects, whose loading could run code; save the features as numbers")
    if kind not in "fiub":
        raise _refusal(what, f"it has dtype {rows.dtype}; accepted are real numbers")
    if len(shape) not in ((2, 3) if views else (2,)) or min(shape) < 1:
        accepted = "[rows, columns] or [rows, views, columns]" if views else "[rows, columns]"
        hint = ""
        if len(shape) in (3, 4):
            hint = "; images are given as --data, and maps or tokens of a network are averaged to one row each"
        if len(shape) == 3 and not views:
            hint += f"; the views that imc embed --views stored are taken with --augmentation {AUGMENTED}"
        raise _refusal(what, f"it has shape {list(shape)}; accepted is {accepted}, none 0{hint}")


def _read(source: str, views: bool) -> dict[str, Any]:
    """What a file holds, by the first of each kind's names: rows as a tensor, the others as arrays."""
    path = file_of("--features", source, ".npy and .npz files", ", and images as --data")
    if path.suffix.lower() not in SUFFIXES:
        how = READ_BY.get(path.suffix.lower(), "")
        hint = f"; {how} reads it, and numpy.save writes an .npy" if how else ""
        raise UserError(f"--features cannot use {source!r}: accepted are .npy and .npz files of rows{hint}")
    if path.suffix.lower() == ".npy":
        return {FEATURES[0]: _mapped(source, path, views)}
    kinds = (FEATURES, LABELS, FILES, TEST_FEATURES, TEST_LABELS)
    arrays = load_npz(path, {name for names in kinds for name in names}, "--features")
    found: dict[str, Any] = {}
    for names in kinds:
        present = next((name for name in names if name in arrays), None)
        if present is not None:
            found[names[0]] = arrays[present]
    if FEATURES[0] not in found:
        held = ", ".join(arrays) or "none"
        raise _refusal(source, f"it has no array named {', '.join(FEATURES)}, but {held}")
    for kind in (FEATURES[0], TEST_FEATURES[0]):
        if kind in found:
            require_rows(source, found[kind], views)
            found[kind] = tensor_over(_supported(found[kind]))
    return found


def _mapped(source: str, path: Path, views: bool) -> Tensor:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:
        raise _refusal(source, reason_of(error, "features")) from None
    require_rows(source, array, views)
    try:
        return memory_mapped(path)
    except (TypeError, ValueError):  # a dtype or a byte order that torch lacks
        return tensor_over(_supported(array))


def _supported(array: NDArray[Any]) -> NDArray[Any]:
    """The array in a dtype and byte order that torch has; a copy where it had another."""
    kinds = {"f": (np.float16, np.float32, np.float64), "u": (np.uint8,), "i": (np.int8, np.int16, np.int32, np.int64)}
    if array.dtype.isnative and array.dtype in map(np.dtype, kinds.get(array.dtype.kind, ())):
        return np.ascontiguousarray(array)
    return np.ascontiguousarray(array, np.float64 if array.dtype.itemsize > 4 else np.float32)


def _side_by_side(parts: Sequence[tuple[str, Tensor]]) -> Tensor:
    """The columns of all files."""
    (first, rows), *others = parts
    for source, other in others:
        if len(other) != len(rows):
            raise UserError(f"{first} has {len(rows):,} rows, and {source} has {len(other):,}; rows belong together")
        if other.shape[1:-1] != rows.shape[1:-1]:
            raise UserError(f"{first} is {list(rows.shape)}, and {source} {list(other.shape)}; views belong together")
    if not others:
        return rows
    tensors = [tensor for _, tensor in parts]
    shape = (*rows.shape[:-1], sum(tensor.shape[-1] for tensor in tensors))
    if 4 * math.prod(shape) <= machine_memory() // 4:
        return torch.cat([tensor.float() for tensor in tensors], dim=-1)
    paths = [user_path(source) for source, _ in parts]

    def build() -> tuple[tuple[int, ...], Any, dict[str, Any]]:
        blocks = (
            torch.cat([tensor[start : start + BLOCK].float() for tensor in tensors], dim=-1).numpy()
            for start in range(0, len(rows), BLOCK)
        )
        return shape, blocks, {}

    described = " ".join(f"{path.resolve()} {stamp(path.stat())}" for path in paths)
    return cached(paths[0], f"features beside {len(paths) - 1} others", described, build, np.float32)[0]


def _require_finite(what: str, rows: Tensor) -> None:
    if reason := unusable_rows(rows):
        raise _refusal(what, reason)


def unusable_rows(rows: Tensor) -> str:
    """Which rows nothing can be computed with, in words; empty where there are none."""
    if not rows.is_floating_point():
        return ""
    wrong: list[int] = []
    total = 0
    for start in range(0, len(rows), BLOCK):
        # float32 is what is computed with: a float64 beyond its range is infinite there.
        bad = (~rows[start : start + BLOCK].float().isfinite().flatten(1).all(dim=1)).nonzero()[:, 0]
        wrong += (bad[: NAMED_ROWS - len(wrong)] + start).tolist()
        total += len(bad)
    if not total:
        return ""
    listed = ", ".join(map(str, wrong)) + (f" and {total - len(wrong):,} more" if total > len(wrong) else "")
    hold = inflected(total, "{holds|hold}")
    return f"row{'s' * (total > 1)} {listed} (from 0) {hold} NaN, infinite or too large numbers"


def _labels(
    title: str, arrays: dict[str, Any], given: str | None
) -> tuple[Tensor | None, Tensor | None, tuple[str, ...]]:
    """The labels of the rows and of those held out, and the names of the classes."""
    entries: list[tuple[str, NDArray[Any]] | None] = []
    path = user_path(title)
    if given is not None:
        path = user_path(given)
        entries.append((LABELS[0], read_labels(given)))
    elif LABELS[0] in arrays:
        entries.append((LABELS[0], arrays[LABELS[0]]))
    if TEST_LABELS[0] in arrays and entries:
        entries.append((TEST_LABELS[0], arrays[TEST_LABELS[0]]))
    classes, numbers = class_numbers(path, entries, "--labels" if given is not None else "--features")
    return numbers.get(LABELS[0]), numbers.get(TEST_LABELS[0]), classes


def _held_out(
    name: str,
    sources: Sequence[str],
    parts: Sequence[dict[str, Any]],
    rows: Tensor,
    labels: Tensor | None,
    classes: tuple[str, ...],
) -> Images | None:
    if not all(TEST_FEATURES[0] in part for part in parts):
        return None
    held_out = _side_by_side([(source, part[TEST_FEATURES[0]]) for source, part in zip(sources, parts, strict=True)])
    if held_out.shape[-1] != rows.shape[-1]:
        raise _refusal(sources[0], f"its rows have {rows.shape[-1]:,} columns, those held out {held_out.shape[-1]:,}")
    _require_finite(sources[0], held_out)
    if labels is not None and len(labels) != len(held_out):
        without = counted(len(held_out), "row{s} {is|are} held out")
        raise _refusal(sources[0], f"{without}, and it has {counted(len(labels), 'label{s}')} for them")
    first_view, stored = split_views(held_out)
    return Images(name, first_view, labels, classes, views=stored)


def _refusal(what: str, reason: str) -> UserError:
    return UserError(f"--features cannot use {what!r}: {reason}")
