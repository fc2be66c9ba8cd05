"""Text that a user chose (names of classes, files, folders and runs), as each place that shows or stores it takes it;
and numbers of things in words.

visible       a terminal, a figure, a page: control characters and marks that turn the writing direction are escaped
printable     data in UTF-8: what is not UTF-8 in a file's name is escaped, all else is kept
shell_word    a command to copy
shortened     a part of a file's name
folder_name   a folder's name

counted       a number and what it counts
inflected     the same words without the number
duration      seconds
"""

from __future__ import annotations

import re
import shlex
import unicodedata
from pathlib import Path

JOINERS = "\u200c\u200d"  # invisible, but letters of several scripts and emoji are made with them
LONGEST_NAME = 255  # bytes of one file's name, on nearly every file system
FORMS = re.compile(r"\{([^{}|]*)(?:\|([^{}|]*))?\}")


def printable(name: str) -> str:
    """A file's name as text that UTF-8 can hold: bytes, and halves of UTF-16 pairs, that are none are escaped."""
    return _bytes(name).decode("utf-8", "backslashreplace")


def visible(text: str) -> str:
    """One line of text in which a reader sees every character, and no terminal, font or browser obeys one."""
    return "".join(
        character
        if character.isprintable() or character in JOINERS or unicodedata.category(character) == "Zs"
        else character.encode("unicode_escape").decode()
        for character in printable(text)
    )


def shell_word(path: Path | str) -> str:
    """A path as one word of a command for bash or zsh, which takes none for a flag."""
    text = str(path)
    if text.startswith("-"):
        text = f"./{text}"
    if visible(text) == text:
        return shlex.quote(text)
    # Escapes that the shell undoes, byte by byte: what it gets is the path, and what the terminal gets is harmless.
    bytes_ = (chr(byte) if 0x20 <= byte < 0x7F else f"\\x{byte:02x}" for byte in _bytes(text))
    return "$'" + "".join({"\\": "\\\\", "'": "\\'"}.get(byte, byte) for byte in bytes_) + "'"


def shortened(name: str, ending: str) -> str:
    """A file's name and an ending for it, the name cut so that both fit into the length that file systems take."""
    while len(_bytes(name)) > max(1, LONGEST_NAME - len(_bytes(ending))):
        name = name[:-1]
    return name + ending


def folder_name(name: str) -> str:
    """A name as that of a folder, of any file system: what a path would obey is replaced."""
    text = re.sub(r'[\\/:*?"<>|\x00-\x1f\x7f]', "_", printable(name)).strip(" ")
    text = re.sub(r"^\.+|[. ]+$", "_", text) or "_"
    return shortened(text, "-999").removesuffix("-999")


def counted(count: int, words: str) -> str:
    """A number and what it counts, in the words' form for it.

    Args:
        count: how many.
        words: with both forms in braces, that of one first, or the ending of several alone: "update{s} {is|are} few"
            becomes "1 update is few" and "2,000 updates are few".
    """
    return f"{count:,} {inflected(count, words)}"


def inflected(count: int, words: str) -> str:
    """The words that :func:`counted` puts behind a number."""

    def form(match: re.Match[str]) -> str:
        one, several = match.groups()
        return ("" if count == 1 else one) if several is None else one if count == 1 else several

    return FORMS.sub(form, words)


def duration(seconds: float) -> str:
    """Seconds in the unit that a reader would choose, with a digit behind the point up to 9.9: "8.5 s", "23 days"."""
    for unit, size in (("days", 86400.0), ("h", 3600.0), ("min", 60.0), ("s", 1.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}" if seconds < 9.95 * size else f"{seconds / size:,.0f} {unit}"
    return f"{seconds:.2g} s" if seconds >= 0.1 else f"{1000 * seconds:.2g} ms"


def _bytes(text: str) -> bytes:
    """What a file system on which names are UTF-8 has for a name that Python read from it."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # halves of UTF-16 pairs, which come from files of data
        return text.encode("utf-8", "backslashreplace")
