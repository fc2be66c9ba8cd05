"""Scripts by which a shell completes commands, flags, names and paths: made of the options, by shtab."""

from __future__ import annotations

import argparse
import zlib
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from imc.command_line.flags import add_arguments, add_flags
from imc.command_line.help import HELP, HELP_ALL
from imc.errors import UserError

COMPLETION = "--print-completion"
SHELLS = ("bash", "zsh", "fish")


def completion_script(shell: str, program: str, commands: Mapping[str, tuple[str, Any]]) -> str:
    """The text to read into a shell.

    Args:
        shell: one of :data:`SHELLS`.
        program: the name that is completed.
        commands: by name, what each does and the dataclass of its options.

    Raises:
        UserError: the shell is another, or shtab is not installed.
    """
    if shell not in SHELLS:
        raise UserError(f"{COMPLETION} must be {', '.join(SHELLS[:-1])} or {SHELLS[-1]}, got {shell!r}")
    try:
        import shtab
    except ImportError:
        raise UserError(f"{COMPLETION} needs shtab, which is not installed: pip install shtab") from None
    parser = argparse.ArgumentParser(prog=program, add_help=False)
    for flag in ("--help", "--version"):
        parser.add_argument(flag, action="store_true")
    parser.add_argument(COMPLETION, choices=SHELLS)
    parsers = parser.add_subparsers()
    for name, (summary, options) in commands.items():
        command = parsers.add_parser(name, help=summary, add_help=False)
        command.add_argument(*HELP, HELP_ALL, action="store_true", help="what there is")
        add_arguments(command, options)
        add_flags(command, options)
        entries = {entry.name: entry.metadata for entry in fields(options)}
        for action in command._actions:
            if action.dest in entries:
                _complete(action, entries[action.dest], shtab.FILE)
    return shtab.complete(parser, shell)


def _complete(action: argparse.Action, metadata: Mapping[str, Any], a_path: Mapping[str, Any]) -> None:
    """Say what completes the value of an option."""
    names = metadata["choices"] or metadata["suggested"]
    if metadata["path"]:
        action.complete = _name_or_path(names) if names else a_path  # type: ignore[attr-defined]
    elif names:
        action.choices = names


def _name_or_path(names: tuple[str, ...]) -> dict[str, Any]:
    """One of these names, or a path: what shtab has completes either the one or the other."""
    words = " ".join(names)
    function = f"_imc_name_or_file_{zlib.crc32(words.encode())}"
    return {
        "bash": function,
        "zsh": function,
        "fish": f"{words} (__fish_complete_path (commandline -ct))",
        "preamble": {
            "bash": f'{function}() {{\n  compgen -W "{words}" -- "$1"\n  compgen -f -- "$1"\n}}',
            "zsh": f"{function}() {{\n  compadd -- {words}\n  _files\n}}",
        },
    }
