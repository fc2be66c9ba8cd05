"""Command-line flags from the fields of :class:`imc.config.Config`."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Callable, Sequence
from dataclasses import Field, fields
from typing import Any, NoReturn, get_args, get_type_hints

from imc.config import Config, flag
from imc.errors import UserError


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message.removeprefix('argument ')} (see {self.prog} --help)")


def parse(argv: Sequence[str], *, program: str, description: str) -> Config:
    """The configuration that the flags ask for, validated.

    Raises:
        UserError: an unknown flag, or a value that is not accepted.
    """
    parser = _Parser(
        prog=program,
        usage=f"{program} [options]",
        description=description,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    groups: dict[str, Any] = {}
    hints = get_type_hints(Config)
    for entry in fields(Config):
        group = entry.metadata["group"]
        if group not in groups:
            groups[group] = parser.add_argument_group(group)
        groups[group].add_argument(flag(entry.name), **_settings(entry, hints[entry.name]))
    known, unknown = parser.parse_known_args(argv)
    if unknown:
        parser.error(_unknown(unknown[0]))
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in vars(known).items()
    }
    return Config(**values).validate()


def _settings(entry: Field[Any], hint: Any) -> dict[str, Any]:
    """The keyword arguments of ``add_argument`` for a field of this type."""
    help = entry.metadata["help"].replace("%", "%%")
    if hint is bool:
        return {"action": "store_true", "help": help}
    members = [member for member in get_args(hint) if member is not type(None)] or [hint]
    default = " ".join(map(str, entry.default)) if isinstance(entry.default, tuple) else entry.default
    settings: dict[str, Any] = {
        "default": entry.default,
        "type": _reader(members[0]),
        "metavar": {int: "N", float: "X", str: "TEXT"}[members[0]],
        "help": help if default is None else f"{help} (default: {default})",
    }
    if isinstance(entry.default, tuple):
        settings["nargs"] = "+" if Ellipsis in members else len(members)
    return settings


def _reader(kind: type) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        try:
            return kind(text)
        except ValueError:
            expected = "an integer" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"must be {expected}, got {text!r}") from None

    return read


def _unknown(argument: str) -> str:
    if not argument.startswith("-"):
        return f"unexpected argument {argument!r}"
    name = argument.split("=")[0]
    close = difflib.get_close_matches(name, [flag(entry.name) for entry in fields(Config)], n=1)
    return f"unknown flag {name}" + (f"; did you mean {close[0]}?" if close else "")
