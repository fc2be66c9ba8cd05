"""Images on disk as one array that is memory-mapped: what is decoded once, and sets larger than the memory.

The folder is ``IMC_CACHE``, by default ``~/.cache/imc/decoded``. An entry is ``<key>-<fingerprint>.npy``, uint8
[M, H, W, C], beside a .json of the same stem that is written last, so that an entry without it counts as absent. A new
fingerprint replaces the older entries of its key.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
import uuid
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.lib import format as npy
from numpy.typing import NDArray
from torch import Tensor

from imc.command_line.environment import folder_of
from imc.errors import UserError
from imc.files.paths import new_folder

VARIABLE = "IMC_CACHE"
ABANDONED = 24 * 3600  # seconds after which a file that was being written belongs to a process that was killed
Batches = Iterator[NDArray[Any]]


def cache_folder() -> Path:
    """The folder of the entries; it may not exist yet."""
    return folder_of(VARIABLE, "decoded")


def cached(
    source: Path,
    variant: str,
    fingerprint: str,
    build: Callable[[], tuple[tuple[int, ...], Batches, dict[str, Any]]],
    dtype: type[np.generic] = np.uint8,
) -> tuple[Tensor, dict[str, Any]]:
    """The entry of this source, variant and fingerprint, built and stored if it is not there.

    Several processes may call it at once; each gets a complete entry, though more than one may build it.

    Args:
        source: file or folder that the images come from.
        variant: what is made of it; each variant has its own entry.
        fingerprint: changes whenever the entry would.
        build: returns the largest shape [M, H, W, C], the images in batches (fewer than M are accepted), and a
            dictionary that JSON can hold, read after the last batch.
        dtype: of the array; the shape is [M, D] where it is not that of images, uint8.

    Returns:
        The images, over a read-only memory map, and the dictionary.

    Raises:
        UserError: the folder cannot be written, or the disk is full.
    """
    folder = cache_folder()
    key = _digest(f"{source.resolve()}\0{variant}")
    stem = f"{key}-{_digest(fingerprint)}"
    with contextlib.suppress(Exception):  # an entry that is damaged, in whatever way, is no entry
        return _read(folder / f"{stem}.npy", folder / f"{stem}.json", dtype)
    shape, batches, content = build()
    temporary = folder / f"{stem}.{uuid.uuid4().hex}.tmp"
    try:
        with new_folder(folder):
            try:
                _write(temporary, shape, batches, np.dtype(dtype))
                os.replace(temporary, folder / f"{stem}.npy")
                temporary.write_text(json.dumps({"content": content, "crc32": _sum(content)}), encoding="utf-8")
                os.replace(temporary, folder / f"{stem}.json")
            finally:
                temporary.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(
            f"--data needs {np.dtype(dtype).itemsize * np.prod(shape) / 1e9:.1f} GB in the folder of decoded images, "
            f"{folder}: {error.strerror or error}; set {VARIABLE} to another folder"
        ) from None
    for other in folder.glob(f"{key}-*"):
        with contextlib.suppress(OSError):  # another process may be first
            abandoned = other.suffix == ".tmp" and time.time() - other.stat().st_mtime > ABANDONED
            if abandoned or (other.suffix in (".npy", ".json") and other.stem != stem):
                other.unlink()
    return memory_mapped(folder / f"{stem}.npy"), content


def stamp(status: os.stat_result) -> str:
    """What differs once a file was changed, even where its size and its date were kept."""
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"


def memory_mapped(path: Path) -> Tensor:
    """The array of an .npy file as a tensor over a memory map; writing to it is an error or changes nothing on disk.

    Raises:
        OSError, ValueError: the file is not there, or damaged.
    """
    try:
        array = np.load(path, mmap_mode="c", allow_pickle=False)
    except OSError:  # a private map larger than the memory is refused by some systems, a read-only one is not
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    return tensor_over(array)


def tensor_over(array: NDArray[Any]) -> Tensor:
    """An array's memory as a tensor, which nobody is to write to where the array is read-only."""
    return torch.from_numpy(array if array.flags.writeable else np.asarray(_Writable(array)))


class _Writable:
    """An array as one that may be written to: torch warns of others, and a filter of warnings is all threads' own."""

    def __init__(self, array: NDArray[Any]) -> None:
        self.array = array  # keeps the memory
        self.__array_interface__ = {**array.__array_interface__, "data": (array.ctypes.data, False)}


def _read(images: Path, described: Path, dtype: type[np.generic]) -> tuple[Tensor, dict[str, Any]]:
    entry, array = json.loads(described.read_text(encoding="utf-8")), memory_mapped(images)
    expected = (torch.uint8, 4) if dtype is np.uint8 else (torch.from_numpy(np.empty(0, dtype)).dtype, 2)
    if _sum(entry["content"]) != entry["crc32"] or (array.dtype, array.dim()) != expected:
        raise ValueError
    return array, entry["content"]


def _sum(content: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(content).encode())


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _write(path: Path, shape: tuple[int, ...], batches: Batches, dtype: np.dtype[Any]) -> None:
    free = shutil.disk_usage(path.parent).free
    if dtype.itemsize * np.prod(shape, dtype=np.float64) > free:
        raise OSError(f"only {free / 1e9:.1f} GB are free")
    # Plain writes: a full disk is then an error, where a write through a memory map would end the process.
    with path.open("wb") as file:
        _write_header(file, shape, dtype)
        start, count = file.tell(), 0
        for batch in batches:
            file.write(np.ascontiguousarray(batch).data)
            count += len(batch)
        file.seek(0)
        _write_header(
            file, (count, *shape[1:]), dtype
        )  # numpy pads headers, so that the length does not depend on the count
        assert file.tell() == start


def _write_header(file: IO[bytes], shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    descriptor = npy.dtype_to_descr(dtype)
    npy.write_array_header_1_0(file, {"descr": descriptor, "fortran_order": False, "shape": shape})
