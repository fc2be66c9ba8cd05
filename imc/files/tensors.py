"""The tensors of a file that somebody else wrote, by name, whatever else is in it. Nothing in it is executed.

torch.save        an archive, or a file of torch before 1.6: state dicts at any depth, whole modules, TorchScript
pickle            of torch's tensors or numpy's arrays
.safetensors, .npz
"""

from __future__ import annotations

import functools
import io
import math
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from imc.files.inert_pickle import Name, Object, Reference, read_pickle
from imc.files.pickled_arrays import NUMPY_DTYPES, integers, pickled_array, raw_bytes
from imc.files.torch_archive import ARCHIVE, require_plain

TORCH_MAGIC = 0x1950A86A20F9469CFC6C  # the first of the pickles in a file of torch before 1.6
REPEATED = 1 << 20  # bytes that a tensor may take beyond its storage
DEPTH = 32  # of what is nested; no state dict lies deeper
ACCEPTED = "accepted are what torch.save or pickle wrote, .safetensors and .npz"
# How a pickled module keeps its attributes: no part of a parameter's name.
MODULE_LEVELS = ("_parameters", "_buffers", "_modules")
STORAGES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "UntypedStorage": torch.uint8,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "QInt8Storage": torch.int8,
    "QUInt8Storage": torch.uint8,
    "QInt32Storage": torch.int32,
}
VIEWS = ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2")
# Functions whose first argument is the tensor, or the function that gives it followed by the type and its arguments.
WRAPPERS = (
    *("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state"),
    *("torch._utils._rebuild_device_tensor_from_numpy", "torch.nn.parameter.Parameter"),
)
SUBCLASSES = ("torch._tensor._rebuild_from_type_v2", "torch._tensor._rebuild_from_type")


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a file, read when it is asked for.

    Attributes:
        shape: its sizes.
        numbers: reads it; raises anything where the file is damaged.
    """

    shape: tuple[int, ...]
    numbers: Callable[[], Tensor]

    def read(self) -> Tensor:
        """The tensor in the file's dtype.

        Raises:
            ValueError: the file is damaged.
        """
        try:
            return self.numbers()
        except ValueError:
            raise
        except Exception:
            raise ValueError("it is damaged: a tensor cannot be read") from None


class _Storage(NamedTuple):
    """Numbers in a row, of which tensors are views."""

    dtype: torch.dtype
    read: Callable[[], bytes | memoryview]


_Read = Callable[[str], bytes | memoryview]  # from the key of a storage to its bytes


def read_tensors(path: Path) -> dict[str, StoredTensor]:
    """Every tensor in a file, by the keys that lead to it, such as ``state_dict.module.conv1.weight``.

    Raises:
        ValueError: the file cannot be read; the message is the reason, in a few words.
    """
    try:
        with path.open("rb") as file:
            start = file.read(9)
        if start.startswith(ARCHIVE):
            return _from_archive(path)
        if start[4:] == b"\0\0\0\0{":  # behind the length of the header, of 100 MB at most
            return _from_safetensors(path)
        if start.startswith(b"\x80"):
            return _walk(*_read_pickles(memoryview(path.read_bytes())))
    except ValueError:
        raise
    except OSError as error:
        raise ValueError(error.strerror or "it cannot be opened") from None
    except Exception:  # a damaged file makes the readers raise anything
        raise ValueError(f"it is damaged, or no file of tensors; {ACCEPTED}") from None
    if start.startswith(b"version h"):
        raise ValueError("it is only a pointer of Git LFS; git lfs pull fetches the file")
    raise ValueError(f"it is no file of tensors; {ACCEPTED}")


def _from_safetensors(path: Path) -> dict[str, StoredTensor]:
    file = safe_open(path, "pt")  # type: ignore[no-untyped-call]

    def stored(name: str) -> StoredTensor:
        return StoredTensor(tuple(file.get_slice(name).get_shape()), lambda: file.get_tensor(name))

    return {name: stored(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping


def _from_archive(path: Path) -> dict[str, StoredTensor]:
    archive = zipfile.ZipFile(path)
    names = archive.namelist()
    if any(name.endswith(".npy") for name in names):
        require_plain(archive.infolist(), path)
        with np.load(path, allow_pickle=False) as arrays:
            return {name: _stored_array(arrays[name]) for name in arrays.files}
    pickled = next((name for name in names if name.rpartition("/")[2] == "data.pkl"), None)
    if pickled is None:
        raise ValueError(f"it is an archive without tensors; {ACCEPTED}")
    root = pickled.removesuffix("data.pkl")
    read = [entry for entry in archive.infolist() if entry.filename.startswith((pickled, f"{root}data/"))]
    require_plain(read, path)  # TorchScript compresses its code, which is not read
    if f"{root}byteorder" in names and archive.read(f"{root}byteorder") != b"little":
        raise ValueError("it was written on a big-endian machine")
    content = read_pickle(io.BytesIO(archive.read(pickled)))
    # Kept for the next tensor, since all may be views of one storage.
    return _walk(content, functools.lru_cache(maxsize=1)(lambda key: archive.read(f"{root}data/{key}")))


def _read_pickles(content: memoryview) -> tuple[Any, _Read]:
    """What a file that begins with a pickle holds, and what reads its storages."""
    file = io.BytesIO(content)
    first = read_pickle(file)
    if first != TORCH_MAGIC:
        return first, _no_storage
    _version, machine = read_pickle(file), read_pickle(file)
    if not isinstance(machine, dict) or machine.get("little_endian") is not True:
        raise ValueError("it was written on a big-endian machine")
    references: list[Reference] = []
    tree, keys = read_pickle(file, references), read_pickle(file)
    storages = [reference for reference in references if reference.id[0] == "storage"]  # not a module's source code
    itemsize = {key: dtype.itemsize for key, dtype, _ in map(_storage_id, storages)}
    places: dict[str, memoryview] = {}
    for key in map(str, keys):  # of each storage the number of its elements, then the elements
        start = file.tell() + 8
        count = int.from_bytes(content[start - 8 : start], "little", signed=True)
        places[key] = content[start : start + max(count, 0) * itemsize[key]]
        file.seek(start + len(places[key]))
    return tree, lambda key: places[key]


def _no_storage(key: str) -> bytes:
    raise ValueError("it is damaged: it lacks its numbers")


def _storage_id(reference: Reference) -> tuple[str, torch.dtype, int]:
    """Key, dtype and first element (of an old view of a storage) of a persistent id of torch."""
    kind, storage, key, _device, _count, *view = reference.id
    if kind != "storage" or not isinstance(storage, Name):
        raise ValueError("it is damaged: it refers to what is no storage")
    first = view[0][1] if view and view[0] is not None else 0
    return str(key), STORAGES[storage.text.rpartition(".")[2]], first


def _walk(content: Any, read: _Read) -> dict[str, StoredTensor]:
    """The tensors under a node of a pickle. What is reached by two ways is named by the first."""
    found: dict[str, StoredTensor] = {}
    visited: set[int] = set()
    pending: list[tuple[tuple[str, ...], Any]] = [((), content)]
    while pending:
        names, node = pending.pop()
        tensor = _tensor(node, read) if isinstance(node, Object) else None
        if tensor is not None:
            found[".".join(names)] = tensor
        elif len(names) < DEPTH and isinstance(node, (Object, dict, list, tuple)) and id(node) not in visited:
            visited.add(id(node))
            pending += [
                (names if key in MODULE_LEVELS else (*names, str(key)), child)
                for key, child in reversed(list(_children(node)))
                if isinstance(child, (Object, dict, list, tuple))
            ]
    return found


def _children(node: Object | dict[str | int, Any] | list[Any] | tuple[Any, ...]) -> Iterator[tuple[str | int, Any]]:
    if isinstance(node, dict):
        yield from node.items()
    elif isinstance(node, Object):
        yield from node.items.items()
        states = node.state if isinstance(node.state, tuple) else (node.state,)  # (attributes, slots)
        for state in states:
            if isinstance(state, dict):
                yield from state.items()
        # An ordered dict of Python 2 was built from a list of its pairs.
        pairs = node.arguments[0] if isinstance(node.arguments, tuple) and node.arguments else None
        if isinstance(pairs, list) and all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in pairs):
            yield from ((key, value) for key, value in pairs if isinstance(key, (str, int)))
    else:
        yield from enumerate(node)


def _tensor(node: Object, read: _Read) -> StoredTensor | None:
    """The tensor that a call would have built; None if it would have built something else."""
    name = node.callee.text if isinstance(node.callee, Name) else ""
    arguments = node.arguments if isinstance(node.arguments, tuple) else ()
    if name in VIEWS and len(arguments) >= 4:
        storage, offset, size, stride = arguments[:4]
        return _view(_storage(storage, read), offset, integers(size), integers(stride))
    if name in WRAPPERS and arguments and isinstance(arguments[0], Object):
        return _tensor(arguments[0], read)
    if name in SUBCLASSES and len(arguments) >= 3:
        return _tensor(Object(arguments[0], arguments[2]), read)
    array = pickled_array(node)
    return None if array is None else _stored_array(array)


def _storage(node: Any, read: _Read) -> tuple[_Storage, int]:
    """The storage that a node stands for, and the first of its elements."""
    if isinstance(node, Object) and node.callee == Name("torch.storage._load_from_bytes"):
        # As pickle, not torch.save, keeps a storage: a file of torch in itself.
        node, read = _read_pickles(memoryview(raw_bytes(node.arguments[0])))
    key, dtype, first = _storage_id(node)
    return _Storage(dtype, lambda: read(key)), first


def _view(place: tuple[_Storage, int], offset: Any, size: tuple[int, ...], stride: tuple[int, ...]) -> StoredTensor:
    storage, first = place
    (offset,) = integers((offset,))
    if len(size) != len(stride):
        raise ValueError("it is damaged: a tensor has no shape")

    def numbers() -> Tensor:
        if 0 in size:
            return torch.empty(size, dtype=storage.dtype)
        content, itemsize = storage.read(), storage.dtype.itemsize
        start = first + offset
        end = start + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) + 1
        # One number repeated is no weight, and could be repeated without end.
        if end * itemsize > len(content) or math.prod(size) * itemsize > max(len(content), REPEATED):
            raise ValueError("it is damaged: a tensor is larger than what it is stored in")
        row = torch.frombuffer(bytearray(content[start * itemsize : end * itemsize]), dtype=storage.dtype)
        return row.as_strided(size, stride)

    return StoredTensor(size, numbers)


def _stored_array(array: np.ndarray[Any, Any]) -> StoredTensor:
    def numbers() -> Tensor:
        if array.dtype.str[1:] not in NUMPY_DTYPES:
            raise ValueError(f"an array of {array.dtype} holds no weights")
        return torch.from_numpy(np.array(array, array.dtype.newbyteorder("=")))

    return StoredTensor(array.shape, numbers)
