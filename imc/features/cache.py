"""Features on disk, found again by the content of what they are features of.

The folder is ``IMC_CACHE``/features, by default ``~/.cache/imc/features``; in it each encoder has a folder, by a digest
of all that decides its features, as have the pictures that pages show. There a process appends to two files of its own:
rows of numbers, and then for each row the digest of its image and a checksum. A process that is killed leaves at most a
part of a row, which nobody reads.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import uuid
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from imc.command_line.environment import folder_of, variable
from imc.data.cache import VARIABLE
from imc.errors import UserError
from imc.files.paths import user_path
from imc.files.whole import replacing

DIGEST = 16  # bytes
KEY = np.dtype([("digest", f"V{DIGEST}"), ("crc32", "<u4")])
FORMAT = 2  # of what an entry holds


def features_folder() -> Path:
    """The folder of all encoders' features; it may not exist yet."""
    text = variable(VARIABLE)
    return folder_of(VARIABLE, "features") if text is None else user_path(text) / "features"


def digest_of(content: bytes) -> bytes:
    """By which content is found again."""
    return hashlib.blake2b(content, digest_size=DIGEST).digest()


class FeatureCache:
    """The rows of one encoder; a context, within which rows can be added.

    Several processes may have it open at once; each finds what the others had added when it began.

    Args:
        identity: all that decides the rows, as JSON can hold it.
        width: numbers in a row.
        dtype: of the numbers.

    Raises:
        UserError: the folder cannot be written.
    """

    def __init__(self, identity: Mapping[str, Any], width: int, dtype: DTypeLike = np.float32) -> None:
        self.width, self.dtype = width, np.dtype(dtype)
        stored = {"format": FORMAT, "width": width, "stored_as": self.dtype.name}
        text = json.dumps({**identity, **stored}, sort_keys=True, indent=2)
        self.folder = features_folder() / hashlib.sha256(text.encode()).hexdigest()[:16]
        self._files: list[_File] = []
        self._numbers: dict[bytes, tuple[int, int]] = {}  # of a file, and of a row in it
        self._open = ExitStack()
        self._own: tuple[IO[bytes], IO[bytes]] | None = None
        with self._usable():
            self.folder.mkdir(parents=True, exist_ok=True)
            with replacing(self.folder / "encoder.json") as file:
                file.write(text + "\n")
            # The newest last: what was found damaged is computed and added anew.
            for path in sorted(self.folder.glob("*.keys"), key=lambda path: path.stat().st_mtime_ns):
                self._read(path)

    def __enter__(self) -> FeatureCache:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # told when a row was added
            self._open.close()

    def find(self, digest: bytes) -> NDArray[Any] | None:
        """The row of this content [width]; None: there is none, or it is damaged. For any thread."""
        file, number = self._numbers.get(digest, (-1, 0))
        if file < 0:
            return None
        row = np.array(self._files[file].rows[number])
        return row if zlib.crc32(row.data) == self._files[file].sums[number] else None

    def add(self, digests: Sequence[bytes], rows: NDArray[Any]) -> None:
        """Keep these rows [n, width], of the cache's dtype, for the processes that begin from now on.

        Raises:
            UserError: the disk does not take them.
        """
        keys = np.zeros(len(rows), KEY)
        keys["digest"] = np.array([np.void(digest) for digest in digests])
        keys["crc32"] = [zlib.crc32(row.data) for row in rows]
        with self._usable():
            if self._own is None:
                stem = self.folder / uuid.uuid4().hex
                self._own = (
                    self._open.enter_context(stem.with_suffix(".rows").open("xb")),
                    self._open.enter_context(stem.with_suffix(".keys").open("xb")),
                )
            for file, content in zip(self._own, (rows, keys), strict=True):  # a key only once its row is there
                file.write(content.tobytes())
                file.flush()

    def _read(self, path: Path) -> None:
        """Take in what a process has added; a row counts once its key is whole."""
        content, rows = path.read_bytes(), path.with_suffix(".rows")
        stored = rows.stat().st_size // (self.dtype.itemsize * self.width) if rows.exists() else 0
        count = min(len(content) // KEY.itemsize, stored)
        if count:
            keys = np.frombuffer(content[: count * KEY.itemsize], KEY)
            for number, digest in enumerate(keys["digest"]):
                self._numbers[digest.tobytes()] = (len(self._files), number)
            mapped = np.memmap(rows, self.dtype, "r", shape=(count, self.width))
            self._files.append(_File(mapped, keys["crc32"]))

    @contextlib.contextmanager
    def _usable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = error.strerror or error
            raise UserError(
                f"the folder of features, {self.folder}, cannot be used: {reason}; set {VARIABLE} to another folder"
            ) from None


class _File(NamedTuple):
    """What one process has added: rows [n, width], and the checksum of each."""

    rows: NDArray[Any]
    sums: NDArray[np.uint32]
