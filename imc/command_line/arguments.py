"""Command-line flags from the fields of a dataclass of options (:mod:`imc.command_line.options`)."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Callable, Collection, Sequence
from dataclasses import MISSING, Field, field, fields, make_dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_args, get_origin, get_type_hints

from imc.command_line.options import check, flag, is_text, ordered
from imc.command_line.terminal import show
from imc.errors import UserError
from imc.files.run_places import is_run, newest
from imc.text import inflected, shell_word

REQUIRED = "the following arguments are required: "  # how argparse says it
RUN = "RUN"  # what an argument that is the folder of a run is called in usage and help
Options = TypeVar("Options")
Passed = TypeVar("Passed")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        if (missing := message.removeprefix(REQUIRED)) != message:
            names = missing.split(", ")
            verb = inflected(len(names), "{is|are}")
            message = f"{missing} {verb} missing in: {self.usage}{newest() if RUN in names else ''}"
        raise UserError(f"{message.removeprefix('argument ')} (see {self.prog} --help)")

    def _print_message(self, message: str, file: object = None) -> None:
        show(message.rstrip("\n"))


def parse(options: type[Options], argv: Sequence[str], *, program: str, description: str) -> Options:
    """The options that the flags ask for, each value checked; see :func:`parse_given`."""
    return parse_given(options, argv, program=program, description=description)[0]


def parse_given(
    options: type[Options], argv: Sequence[str], *, program: str, description: str
) -> tuple[Options, frozenset[str]]:
    """The options that the flags ask for, each value checked, and the names of those that were given.

    Args:
        options: a dataclass of :func:`~imc.command_line.options.option` and ``argument`` fields.
        argv: the arguments after the command.
        program, description: for ``--help``.

    Raises:
        UserError: an unknown flag, or a value that is not accepted.
    """
    entries = {entry.name: entry for entry in ordered(options)}
    hints = get_type_hints(options)
    positional = {name: entry for name, entry in entries.items() if "metavar" in entry.metadata}
    parser = _Parser(
        prog=program,
        usage=" ".join([program, *(_usage(entry, hints[name]) for name, entry in positional.items()), "[options]"]),
        description=description,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for name, entry in positional.items():
        nargs: dict[str, Any] = {"nargs": "+"} if get_origin(hints[name]) is tuple else {}
        nargs |= {} if entry.default is MISSING else {"nargs": "?"}
        parser.add_argument(name, metavar=entry.metadata["metavar"], help=entry.metadata["help"], **nargs)
    groups: dict[str, Any] = {}
    for entry in (entry for name, entry in entries.items() if name not in positional):
        group = entry.metadata["group"]
        if group not in groups:
            groups[group] = parser.add_argument_group(group)
        groups[group].add_argument(flag(entry.name), **_settings(entry, hints[entry.name]))
    known, unknown = parser.parse_known_args(argv)
    if unknown:
        parser.error(_unknown(program, unknown[0], list(entries), positional))
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in vars(known).items()
    }
    for name, entry in positional.items():
        given = values[name] if isinstance(values[name], tuple) else (values[name],)
        if values[name] is None:  # an optional one that was left out
            continue
        if not all(map(is_text, given)):
            raise UserError(
                f"{entry.metadata['metavar']} must be a text that is not empty, got {' '.join(map(repr, given))}"
            )
    result = options(**values)
    check(result)
    return result, frozenset(values)


def parse_with(
    own: type[Options], passed_on: type[Passed], argv: Sequence[str], *, without: Collection[str], **texts: str
) -> tuple[Options, Passed]:
    """The options of a command that passes the other flags on to another, as :func:`parse` gives them.

    Args:
        own: a dataclass of the command's own options.
        passed_on: that of the other command; of its fields those that ``own`` has too, or that ``without`` names, are
            no flags and keep their defaults.
    """
    taken = {entry.name for entry in fields(own)} | set(without)  # type: ignore[arg-type]
    members = [
        (entry.name, get_type_hints(source)[entry.name], field(default=entry.default, metadata=entry.metadata))
        for source in (own, passed_on)
        for entry in ordered(source)
        if source is own or entry.name not in taken
    ]
    both = make_dataclass("Options", members, frozen=True, kw_only=True)
    values = vars(parse(both, argv, **texts))
    mine = {entry.name for entry in fields(own)}  # type: ignore[arg-type]
    return (
        own(**{name: value for name, value in values.items() if name in mine}),
        passed_on(**{name: value for name, value in values.items() if name not in mine}),
    )


def _usage(entry: Field[Any], hint: Any) -> str:
    metavar = entry.metadata["metavar"]
    if entry.default is not MISSING:
        return f"[{metavar}]"
    return f"{metavar} [{metavar} ...]" if get_origin(hint) is tuple else metavar


def _settings(entry: Field[Any], hint: Any) -> dict[str, Any]:
    """The keyword arguments of ``add_argument`` for a field of this type."""
    help = entry.metadata["help"].replace("%", "%%")
    if hint is bool and entry.default is None:
        return {"action": argparse.BooleanOptionalAction, "default": argparse.SUPPRESS, "help": help}
    if hint is bool:
        return {"action": "store_true", "default": argparse.SUPPRESS, "help": help}
    members = [member for member in get_args(hint) if member not in (type(None), Ellipsis)] or [hint]
    default = " ".join(map(str, entry.default)) if isinstance(entry.default, tuple) else entry.default
    settings: dict[str, Any] = {
        "default": argparse.SUPPRESS,
        "type": _reader(members[0], several=Ellipsis in get_args(hint)),
        "metavar": "|".join(entry.metadata["choices"]) or {int: "N", float: "X", str: "TEXT"}[members[0]],
        "help": help if default is None else f"{help} (default: {default})",
    }
    if get_origin(hint) is tuple:
        settings["nargs"] = "+" if Ellipsis in get_args(hint) else len(members)
    return settings


def _reader(kind: type, *, several: bool) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        try:
            return kind(text)
        except ValueError:
            expected = "an integer" if kind is int else "a number"
            hint = "; several are set apart by spaces, and what belongs to no flag comes first" if several else ""
            raise argparse.ArgumentTypeError(f"must be {expected}, got {text!r}{hint}") from None

    return read


def _unknown(program: str, argument: str, names: list[str], positional: Collection[str]) -> str:
    if not argument.startswith("-"):
        for name in ("out", "data") if is_run(Path(argument)) else ("data",):
            if name in names and name not in positional:
                return f"unexpected argument {argument!r}; did you mean {program} {flag(name)} {shell_word(argument)}?"
        return f"unexpected argument {argument!r}"
    name = argument.split("=")[0]
    close = difflib.get_close_matches(name, [flag(known) for known in names], n=1)
    return f"unknown flag {name}" + (f"; did you mean {close[0]}?" if close else "")
