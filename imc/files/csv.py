"""CSV files: in UTF-8 whatever the locale, and data, no formulas, also to a spreadsheet."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from imc.text import printable

FORMULA = ("=", "+", "-", "@")  # what begins with one of these, a spreadsheet computes


class Rows:
    """Rows of numbers and of paths; every text in them is a path.

    A path that a spreadsheet would take for a formula is written with ``./`` in front, which is the same path. Control
    characters stay: rows are data, from which a program finds the file, and what shows them to a person escapes them.

    Args:
        file: open, of UTF-8 and without translation of line ends (:func:`imc.files.whole.replacing`).
        columns: their names.
    """

    def __init__(self, file: IO[str], columns: Sequence[str]) -> None:
        self.plain = csv.writer(file, lineterminator="\n")
        self.quoted = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL)
        self.plain.writerow(columns)

    def add(self, *values: Any) -> None:
        """Write a row."""
        row = [_path(value) if isinstance(value, str) else value for value in values]
        # A carriage return ends a row for those who read it; Python quotes it since 3.13 only.
        (self.quoted if any("\r" in str(value) for value in row) else self.plain).writerow(row)


def _path(text: str) -> str:
    text = printable(text)
    return f"./{text}" if text.startswith(FORMULA) else text


def path_of(text: str) -> str:
    """The path that :class:`Rows` wrote as this text."""
    return text[2:] if text.startswith("./") and text[2:].startswith(FORMULA) else text


def read_rows(path: Path) -> Iterator[dict[str, str]]:
    """The rows of a CSV file by the names of its columns.

    Raises:
        OSError, ValueError, csv.Error: it cannot be read.
    """
    with path.open(newline="", encoding="utf-8-sig") as file:  # a spreadsheet that saved it left a mark at its start
        yield from csv.DictReader(file)
