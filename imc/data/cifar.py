"""CIFAR-10 and CIFAR-100 as their publisher ships them: python or binary version, archive or unpacked folder."""

from __future__ import annotations

import pickletools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from imc.data.dataset import Images
from imc.data.files import SUFFIX_GZIP, is_unicode, lines, read_bytes, read_members, refusal
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
    images = pixels.to_numpy() if isinstance(pixels, _Array) else None
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


def unpickle(path: Path, content: bytes) -> dict[str, Any]:
    """The dictionary in a pickle, without executing it: numbers, texts, lists, dictionaries, arrays of bytes.

    ``pickletools`` splits the pickle into its instructions; the few that the published files use are carried out here
    on plain values. There is no import and no call, so a pickle that asks for one is refused.

    Args:
        path: named in errors.
        content: the bytes of the pickle.

    Raises:
        UserError: it is damaged, or holds anything else.
    """
    try:
        result = _Machine().run(content)
    except Exception as error:  # whatever an arbitrary sequence of bytes makes pickletools or the machine raise
        raise refusal(path, f"it is damaged, or not a pickle of CIFAR's layout ({error})") from None
    if not isinstance(result, dict):
        raise refusal(path, "it is not a pickle of CIFAR's layout (it holds no dictionary)")
    return result


_CALLABLE = ("numpy.core.multiarray _reconstruct", "numpy._core.multiarray _reconstruct", "numpy dtype")
_NAMES = (*_CALLABLE, "numpy ndarray")


@dataclass(frozen=True)
class _Name:
    """A class or function that a pickle names. Only a name: nothing is imported."""

    text: str


class _Array:
    """Stands for a numpy array or dtype under construction."""

    def __init__(self, arguments: tuple[Any, ...]) -> None:
        self.arguments = arguments
        self.state: Any = None

    def to_numpy(self) -> NDArray[np.uint8] | None:
        """The array of bytes, or None if it is anything else or its size is wrong."""
        if not isinstance(self.state, tuple) or len(self.state) != 5:
            return None
        _, shape, dtype, fortran, raw = self.state
        if not isinstance(dtype, _Array) or dtype.arguments[:1] != ("u1",) or fortran or not isinstance(raw, str):
            return None
        if not isinstance(shape, tuple) or len(shape) != 2 or not all(type(side) is int and side > 0 for side in shape):
            return None
        content = raw.encode("latin1", "ignore")  # a text of other characters becomes too short
        return np.frombuffer(content, np.uint8).reshape(shape) if len(content) == shape[0] * shape[1] else None


class _Machine:
    """Carries out the instructions of a pickle that the published files use."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self, content: bytes) -> Any:
        argument: Any
        for instruction, argument, _ in pickletools.genops(content):
            name = instruction.name
            if name == "STOP":
                break
            if name in ("SHORT_BINSTRING", "BINSTRING", "BINUNICODE", "BININT", "BININT1", "BININT2"):
                self.stack.append(argument)
            elif name in ("BINPUT", "LONG_BINPUT"):
                self.memo[argument] = self.stack[-1]
            elif name in ("BINGET", "LONG_BINGET"):
                self.stack.append(self.memo[argument])
            elif name != "PROTO":
                self._step(name, argument)
        return self.stack.pop()

    def _step(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name == "MARK":
            self.marks.append(len(stack))
        elif name in ("NONE", "NEWFALSE", "EMPTY_LIST", "EMPTY_DICT"):
            stack.append({"NONE": None, "NEWFALSE": False, "EMPTY_LIST": [], "EMPTY_DICT": {}}[name])
        elif name in ("APPEND", "APPENDS"):
            items = [stack.pop()] if name == "APPEND" else self._since_mark()
            self._top(list).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = [stack.pop(-2), stack.pop()] if name == "SETITEM" else self._since_mark()
            if not all(type(key) is str for key in items[::2]):  # to hash what is nested deeply ends the process
                raise ValueError("it has keys that are no texts")
            self._top(dict).update(zip(items[::2], items[1::2], strict=True))
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(name[-1])
            stack[-count:] = [tuple(stack[-count:])]
        elif name == "TUPLE":
            stack.append(tuple(self._since_mark()))
        elif name == "GLOBAL":
            if argument not in _NAMES:
                raise ValueError(f"it names {argument!r}, which is refused")
            stack.append(_Name(argument))
        elif name == "REDUCE":
            arguments, function = stack.pop(), stack.pop()
            if not isinstance(function, _Name) or function.text not in _CALLABLE or not isinstance(arguments, tuple):
                raise ValueError("it calls what is not an array of numpy")
            stack.append(_Array(arguments))
        elif name == "BUILD":
            state = stack.pop()
            self._top(_Array).state = state
        else:
            raise ValueError(f"it has the instruction {name}")

    def _since_mark(self) -> list[Any]:
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def _top(self, kind: type) -> Any:
        if not isinstance(self.stack[-1], kind):
            raise ValueError(f"an instruction lacks its {kind.__name__}")
        return self.stack[-1]
