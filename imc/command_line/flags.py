"""The arguments of a command line from the fields of a dataclass of options, for argparse."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field
from typing import Any, get_args, get_origin, get_type_hints

from imc.command_line.options import flag, ordered


def add_arguments(parser: argparse.ArgumentParser, options: Any, *, required: bool = True) -> None:
    """Add those without a flag, such as DATA.

    Args:
        options: a dataclass of :func:`~imc.command_line.options.option` and ``argument`` fields.
        required: False: a line without them is read too.
    """
    hints = get_type_hints(options)
    for entry in arguments_of(options):
        several = get_origin(hints[entry.name]) is tuple
        how: dict[str, Any] = {"nargs": "+" if several else None if entry.default is MISSING else "?"}
        if not required:
            how = {"nargs": "*" if several else "?", "default": argparse.SUPPRESS}
        parser.add_argument(entry.name, metavar=entry.metadata["metavar"], help=_help(entry), **how)


def add_flags(
    parser: argparse.ArgumentParser,
    options: Any,
    groups: Mapping[str, Sequence[str]] | None = None,
    here: Mapping[str, Any] | None = None,
) -> None:
    """Add the flags.

    Args:
        options: as above.
        groups: the fields to add, by the title under which help gives them; default: all by their own groups.
        here: the value that a field without a default would get.
    """
    hints, entries = get_type_hints(options), flags_of(options)
    for title, names in (groups or groups_of(options)).items():
        group = parser.add_argument_group(title)
        for name in names:
            settings = _settings(entries[name], hints[name], (here or {}).get(name))
            group.add_argument(flag(name), **settings)


def arguments_of(options: Any) -> list[Field[Any]]:
    """The fields that have no flag."""
    return [entry for entry in ordered(options) if "metavar" in entry.metadata]


def flags_of(options: Any) -> dict[str, Field[Any]]:
    """The fields that have one, by name."""
    return {entry.name: entry for entry in ordered(options) if "metavar" not in entry.metadata}


def groups_of(options: Any) -> dict[str, list[str]]:
    """Their names, by their groups."""
    groups: dict[str, list[str]] = {}
    for name, entry in flags_of(options).items():
        groups.setdefault(entry.metadata["group"], []).append(name)
    return groups


def usage(options: Any, program: str) -> str:
    """How a command is called."""
    hints = get_type_hints(options)
    words = []
    for entry in arguments_of(options):
        metavar = entry.metadata["metavar"]
        several = get_origin(hints[entry.name]) is tuple
        word = f"{metavar} [{metavar} ...]" if several else metavar
        words.append(word if entry.default is MISSING else f"[{metavar}]")
    return " ".join([program, *words, "[options]"])


def _settings(entry: Field[Any], hint: Any, here: Any) -> dict[str, Any]:
    """The keyword arguments of ``add_argument`` for a field of this type."""
    text = {"default": argparse.SUPPRESS, "help": _help(entry, here)}
    if hint in (bool, bool | None) and entry.default is None:
        return {"action": argparse.BooleanOptionalAction, **text}
    if hint is bool:
        return {"action": "store_true", **text}
    members = [member for member in get_args(hint) if member not in (type(None), Ellipsis)] or [hint]
    settings = {
        **text,
        "type": _reader(members[0], several=Ellipsis in get_args(hint)),
        "metavar": "|".join(entry.metadata["choices"]) or _kind(entry, members[0]),
    }
    if get_origin(hint) is tuple:
        settings["nargs"] = "+" if Ellipsis in get_args(hint) else len(members)
    return settings


def _kind(entry: Field[Any], kind: type) -> str:
    return "PATH" if entry.metadata["path"] else {int: "N", float: "X", str: "TEXT"}[kind]


def _help(entry: Field[Any], here: Any = None) -> str:
    """Its line of help, with its default, or in the absence of one with the value that it would get."""
    default = entry.default if "metavar" not in entry.metadata else None
    said = "" if default is None or default is False else f" (default: {_shown(default)})"
    said = f" (here: {_shown(here, entry.name)})" if default is None and here is not None else said
    return (entry.metadata["help"] + said).replace("%", "%%")


def _shown(value: Any, name: str = "") -> str:
    """A value as it is typed."""
    if isinstance(value, bool):
        return flag(name if value else f"no_{name}")
    if isinstance(value, tuple):
        return " ".join(map(_shown, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _reader(kind: type, *, several: bool) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        try:
            return kind(text)
        except ValueError:
            expected = "an integer" if kind is int else "a number"
            hint = "; several are set apart by spaces, and what belongs to no flag comes first" if several else ""
            raise argparse.ArgumentTypeError(f"must be {expected}, got {text!r}{hint}") from None

    return read
