"""Files that are whole or not there, whatever ends the program that writes them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from imc.text import shortened


@contextlib.contextmanager
def replacing(path: Path, *, binary: bool = False) -> Iterator[IO[Any]]:
    """A new file, of UTF-8 whatever the locale or of bytes, that takes its name once it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(shortened(path.name, ".tmp"))
    try:
        with temporary.open("wb") if binary else temporary.open("w", newline="", encoding="utf-8") as file:
            yield file
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
