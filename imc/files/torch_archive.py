"""What torch.save wrote, read as data."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

FOLDER = 0x10  # of an entry that torch takes for a folder, it leaves the tensor's memory as it is
ARCHIVE = b"PK\x03\x04"  # how what torch.save writes begins, since torch 1.6


def read_torch_file(path: Path) -> Any:
    """What torch.save wrote, on the CPU. Nothing in it is executed, and no more is unpacked than the file is long.

    Raises:
        ValueError: it cannot be read; the message is the reason, in one line.
    """
    try:
        with path.open("rb") as file:  # a path that torch opened itself would have to be UTF-8
            if file.read(len(ARCHIVE)) == ARCHIVE:
                # torch.load does not look at the sums that torch.save leaves: it takes a flipped bit for a parameter.
                with zipfile.ZipFile(path) as content:
                    require_plain(content.infolist(), path)
                    damaged = content.testzip()
                if damaged is not None:
                    raise ValueError(f"{damaged} in it is damaged")
            file.seek(0)
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:  # torch's message is advice for programmers, with a terminal's codes
        raise ValueError(
            "it is damaged, or holds Python objects, which are not read since that could run code"
        ) from None
    except Exception as error:  # a file that is no pickle makes the reader raise anything
        raise ValueError((str(error) or type(error).__name__).splitlines()[0]) from None


def require_plain(entries: Sequence[zipfile.ZipInfo], path: Path) -> None:
    """Entries of an archive are files, and take no more memory than the file is long.

    Raises:
        ValueError: one is compressed or a folder, or they say that they are larger.
    """
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise ValueError("it is compressed, which torch.save and np.savez do not do")
    if any(entry.external_attr & FOLDER for entry in entries):
        raise ValueError("it holds a folder, which torch.save and np.savez do not write")
    if sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise ValueError("it says that it holds more than the file is long")
