"""JSON objects in files, and files of one object a line."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from imc.errors import UserError
from imc.files.whole import write_file, written


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        UserError: it is not there, or holds none.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged: it holds no JSON object")
    return content


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON object, indented, by way of a temporary file."""
    write_file(path, (json.dumps(content, indent=2) + "\n").encode())


def append_json_line(path: Path, content: dict[str, Any]) -> None:
    """Append a JSON object as one line, on the disk before a checkpoint that counts on it.

    Raises:
        RunError: the disk does not take it.
    """
    with written(path), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(content) + "\n")
        file.flush()
        os.fsync(file.fileno())


def keep_json_lines(path: Path, epochs: int) -> None:
    """Keep the lines of the first ``epochs`` epochs: what was written after a checkpoint is written again."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)[:epochs] if path.exists() else []
    write_file(path, "".join(lines).encode())
