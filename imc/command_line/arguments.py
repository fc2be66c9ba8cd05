"""The options of a command from its command line: a dataclass in, its values out (:mod:`imc.command_line.options`)."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import field, fields, make_dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_type_hints

from imc.command_line.flags import add_arguments, add_flags, arguments_of, flags_of, groups_of, usage
from imc.command_line.help import HELP, HELP_ALL, first_of, help_text
from imc.command_line.options import check, flag, is_text, ordered
from imc.command_line.terminal import show
from imc.errors import UserError
from imc.files.run_places import is_run, newest
from imc.text import inflected, shell_word

REQUIRED = "the following arguments are required: "  # how argparse says it
RUN = "RUN"  # what an argument that is the folder of a run is called in usage and help
Options = TypeVar("Options")
Passed = TypeVar("Passed")
# From given values to those that the other fields would get, and what these depend on, in words.
Here = Callable[[dict[str, Any]], tuple[Mapping[str, Any], str]]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        if (missing := message.removeprefix(REQUIRED)) != message:
            names = missing.split(", ")
            verb = inflected(len(names), "{is|are}")
            message = f"{missing} {verb} missing in: {self.usage}{newest() if RUN in names else ''}"
        raise UserError(f"{message.removeprefix('argument ')} (see {self.prog} --help)")


def parse(
    options: type[Options], argv: Sequence[str], *, program: str, description: str, here: Here | None = None
) -> Options:
    """The options that the flags ask for, each value checked; see :func:`parse_given`."""
    return parse_given(options, argv, program=program, description=description, here=here)[0]


def parse_given(
    options: type[Options], argv: Sequence[str], *, program: str, description: str, here: Here | None = None
) -> tuple[Options, frozenset[str]]:
    """The options that the flags ask for, each value checked, and the names of those that were given.

    ``--help`` and ``--help-all`` print what they ask for, and end the program.

    Args:
        options: a dataclass of :func:`~imc.command_line.options.option` and ``argument`` fields; its ``FIRST``, where
            it has one, are those of ``--help``, by the title of their group.
        argv: the arguments after the command.
        program, description: for ``--help``.
        here: told the values that stand beside ``--help``, says those that help is to show.

    Raises:
        UserError: an unknown flag, or a value that is not accepted.
    """
    end = argv.index("--") if "--" in argv else len(argv)
    asked = {*HELP, HELP_ALL}.intersection(argv[:end])
    if asked:
        others = [word for place, word in enumerate(argv) if place >= end or word not in asked]
        told: tuple[Mapping[str, Any], str] = ({}, "")
        if here is not None:
            try:
                told = here(_values(options, others, program, required=False))
            except UserError as error:
                told = {}, f"What this line would get is not shown: {error}"
        show(help_text(options, program, description, *told, whole=HELP_ALL in asked))
        raise SystemExit(0)
    values = _values(options, argv, program)
    for entry in arguments_of(options):
        value = values[entry.name]
        if value is None:  # an optional one that was left out
            continue
        given = value if isinstance(value, tuple) else (value,)
        if not all(map(is_text, given)):
            raise UserError(
                f"{entry.metadata['metavar']} must be a text that is not empty, got {' '.join(map(repr, given))}"
            )
    result = options(**values)
    check(result)
    return result, frozenset(values)


def joined(own: type, passed_on: type, *, without: Collection[str]) -> type:
    """The options of a command that passes the other flags on to another, as one dataclass.

    Args:
        own: a dataclass of the command's own options.
        passed_on: that of the other command; of its fields those that ``own`` has too, or that ``without`` names, are
            no flags and keep their defaults.
    """
    mine = {entry.name: entry for entry in ordered(own)}
    others = {entry.name: entry for entry in ordered(passed_on) if entry.name not in {*mine, *without}}
    members = [
        (name, get_type_hints(source)[name], field(default=entry.default, metadata=entry.metadata))
        for source, entries in ((own, mine), (passed_on, others))
        for name, entry in entries.items()
    ]
    first = {title: [name for name in names if name in others] for title, names in (first_of(passed_on) or {}).items()}
    return make_dataclass(
        "Options", members, namespace={"FIRST": {**groups_of(own), **first}}, frozen=True, kw_only=True
    )


def parse_with(
    own: type[Options],
    passed_on: type[Passed],
    argv: Sequence[str],
    *,
    without: Collection[str],
    here: Here | None = None,
    **texts: str,
) -> tuple[Options, Passed]:
    """The options of such a command, as :func:`parse` gives them: its own, and those that it passes on.

    Args:
        own, passed_on, without: see :func:`joined`.
        here: as for :func:`parse_given`, of the other command; it is told the data set too.
    """
    mine = {entry.name for entry in fields(own)}  # type: ignore[arg-type]

    def of_passed(given: dict[str, Any]) -> tuple[Mapping[str, Any], str]:
        assert here is not None
        found, about = here({name: value for name, value in given.items() if name not in mine or name == "data"})
        return {name: value for name, value in found.items() if name not in mine}, about

    values = vars(parse(joined(own, passed_on, without=without), argv, here=here and of_passed, **texts))
    return (
        own(**{name: value for name, value in values.items() if name in mine}),
        passed_on(**{name: value for name, value in values.items() if name not in mine}),
    )


def _values(options: Any, argv: Sequence[str], program: str, *, required: bool = True) -> dict[str, Any]:
    """What a line gives, by field."""
    parser = _Parser(prog=program, usage=usage(options, program), allow_abbrev=False, add_help=False)
    add_arguments(parser, options, required=required)
    add_flags(parser, options)
    known, unknown = parser.parse_known_args(argv)
    if unknown:
        parser.error(_unknown(program, unknown[0], list(flags_of(options))))
    return {name: tuple(value) if isinstance(value, list) else value for name, value in vars(known).items()}


def _unknown(program: str, argument: str, names: list[str]) -> str:
    if not argument.startswith("-"):
        for name in ("out", "data") if is_run(Path(argument)) else ("data",):
            if name in names:
                return f"unexpected argument {argument!r}; did you mean {program} {flag(name)} {shell_word(argument)}?"
        return f"unexpected argument {argument!r}"
    name = argument.split("=")[0]
    close = difflib.get_close_matches(name, [*map(flag, names), *HELP, HELP_ALL], n=1)
    return f"unknown flag {name}" + (f"; did you mean {close[0]}?" if close else "")
