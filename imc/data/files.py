"""Reading whole files that may be damaged or hostile: bounded sizes, and one sentence for what is refused."""

from __future__ import annotations

import gzip
import io
import tarfile
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import IO, cast

from imc.data.ignored import is_hidden
from imc.errors import UserError

SUFFIX_GZIP = ".gz"


def refusal(path: Path, reason: str, flag: str = "--data") -> UserError:
    """The error that names a file, given by ``flag``, and why it cannot be used."""
    return UserError(f"{flag} cannot use {str(path)!r}: {reason}")


def read_bytes(path: Path, limit: int) -> bytes:
    """The content of a file, decompressed if its name ends in .gz.

    Raises:
        UserError: it cannot be read, is damaged, or holds more than ``limit`` bytes, decompressed.
    """
    if not path.is_file():
        raise refusal(path, "it is not a file")
    try:
        with gzip.open(path) if path.suffix == SUFFIX_GZIP else path.open("rb") as file:
            content = file.read(limit + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise refusal(path, _reason(error)) from None
    if len(content) > limit:
        raise refusal(path, f"it holds more than the {limit:,} bytes that such a file can have")
    return content


def read_members(archive: Path, names: Collection[str], limit: int) -> dict[str, bytes]:
    """The content of those files of a .tar.gz whose last name is one of ``names``, by that name.

    Nothing is written, and reading stops at the last of the names.

    Raises:
        UserError: the archive is damaged, or decompresses to more than ``limit`` bytes.
    """
    found: dict[str, bytes] = {}
    left = limit
    try:
        with (
            gzip.open(archive) as raw,
            tarfile.open(fileobj=cast(IO[bytes], _Bounded(raw, limit)), mode="r|") as tar,
        ):
            for member in tar:
                name = member.name.rpartition("/")[2]
                if name not in names or not member.isfile() or _in_hidden_folder(member.name):
                    continue
                left -= member.size  # of a sparse file the archive holds less
                if left < 0:
                    raise _TooLargeError
                content = tar.extractfile(member)
                assert content is not None
                found[name] = content.read()
                if len(found[name]) != member.size:
                    raise EOFError
                if len(found) == len(names):
                    break
    except _TooLargeError:
        raise refusal(archive, f"it holds more than the {limit:,} bytes that such an archive can have") from None
    except Exception as error:  # whatever odd headers make tarfile raise
        raise refusal(archive, _reason(error)) from None
    return found


def _in_hidden_folder(name: str) -> bool:
    return any(is_hidden(part) for part in name.split("/") if part not in (".", ".."))


def lines(content: bytes) -> tuple[str, ...]:
    """The lines of a text that are not empty."""
    return tuple(line.strip() for line in content.decode("utf-8", "backslashreplace").splitlines() if line.strip())


def is_unicode(text: str) -> bool:
    """Whether a text can be written: it holds no half of a pair of UTF-16."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _reason(error: Exception) -> str:
    if isinstance(error, EOFError | tarfile.ReadError):
        return "it is damaged or cut short"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"it is damaged ({(str(error) or type(error).__name__).splitlines()[0]})"


class _TooLargeError(Exception):
    pass


class _Bounded(io.RawIOBase):
    """A stream that refuses to give more than ``limit`` bytes, whatever an archive's header asks it for."""

    def __init__(self, stream: gzip.GzipFile, limit: int) -> None:
        self.stream = stream
        self.left = limit

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        content = self.stream.read(min(size, self.left + 1) if size >= 0 else self.left + 1)
        self.left -= len(content)
        if self.left < 0:
            raise _TooLargeError
        return content
