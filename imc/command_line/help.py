"""What ``--help`` and ``--help-all`` print: the options used first, or all, with the values that they would get."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from imc.command_line.flags import add_arguments, add_flags, flags_of, usage

HELP, HELP_ALL = ("-h", "--help"), "--help-all"


def first_of(options: Any) -> Mapping[str, Sequence[str]] | None:
    """The fields that ``--help`` gives, by the title of their group; None: all."""
    return getattr(options, "FIRST", None)


def help_text(options: Any, program: str, description: str, here: Mapping[str, Any], about: str, *, whole: bool) -> str:
    """The help of a command.

    Args:
        options: a dataclass of options; its ``FIRST`` are given, where it has one and not the ``whole`` is asked for.
        program: as which it is called.
        description: what it does; without the ``whole``, its first paragraph and its examples.
        here: the values that fields without a default would get.
        about: what these depend on.
        whole: whether all options are asked for.
    """
    first = None if whole else first_of(options)
    if first is not None:
        description = "\n\n".join(description.strip().split("\n\n")[:2])
    parser = argparse.ArgumentParser(
        prog=program,
        usage=usage(options, program),
        description="\n\n".join(filter(None, [description.strip(), about])),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
    )
    add_arguments(parser, options)
    add_flags(parser, options, first, here)
    group = parser.add_argument_group("help")
    if first is None:
        group.add_argument(*HELP, HELP_ALL, action="store_true", help="this text")
    else:
        group.add_argument(*HELP, action="store_true", help="this text")
        group.add_argument(HELP_ALL, action="store_true", help=f"all {len(flags_of(options))} options")
    return parser.format_help().rstrip("\n")
