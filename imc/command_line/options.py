"""Options as the fields of a dataclass: one field, one default, one line of help, and the bounds of its value.

A command's flags (:mod:`imc.command_line.arguments`) and the check of values that come from Python both read them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import Field, field, fields
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_origin, get_type_hints

from imc.errors import UserError
from imc.text import shell_word

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Part = TypeVar("Part", bound="DataclassInstance")


def option(
    default: Any,
    group: str,
    help: str,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    choices: tuple[str, ...] = (),
    suggested: tuple[str, ...] = (),
    path: bool = False,
    method: str | tuple[str, ...] = (),
) -> Any:
    """A flag: its default, its group and line in ``--help``, the bounds of its value or the texts accepted, and the
    method, or methods, that alone have it. ``suggested`` are some of the texts that are accepted, and a ``path`` is
    one to a file or a folder: a shell completes them.

    A default of None stands for what is chosen later; the field's type is then that of the choice.
    """
    methods = (method,) if isinstance(method, str) else method
    bounds = {"of at least": at_least, "above": above, "of at most": at_most, "below": below}
    return field(
        default=default,
        metadata={
            "group": group,
            "help": f"{', '.join(methods)}: {help}" if methods else help,
            "method": methods,
            "bounds": {k: v for k, v in bounds.items() if v is not None},
            "choices": choices,
            "suggested": suggested,
            "path": path,
        },
    )


def argument(metavar: str, help: str, *, suggested: tuple[str, ...] = (), optional: bool = False) -> Any:
    """A path without a flag, or one or more where the field is a tuple, or a name in its place. An optional one is None
    where it is left out, others have no default.
    """
    default: dict[str, Any] = {"default": None} if optional else {}
    more = {"bounds": {}, "choices": (), "suggested": suggested, "path": True}
    return field(**default, metadata={"metavar": metavar, "help": help, **more})


def ordered(options: Any) -> list[Field[Any]]:
    """The fields of an options dataclass as help and files give them: first those of its ``ORDER``, if it has one."""
    first = {name: place for place, name in enumerate(getattr(options, "ORDER", ()))}
    return sorted(fields(options), key=lambda entry: first.get(entry.name, len(first)))


def only(options: Any, kind: type[Part]) -> Part:
    """Of options the fields of ``kind`` alone: what is handed to a room that reads no others."""
    return kind(**{entry.name: getattr(options, entry.name) for entry in fields(kind)})


def part(options: Any, kind: type[Part]) -> Part:
    """The same of resolved options, where each field is read.

    Raises:
        TypeError: a field is None that a resolved one is not.
    """
    chosen, hints = only(options, kind), get_type_hints(kind)
    for entry in fields(kind):
        if getattr(chosen, entry.name) is None and type(None) not in get_args(hints[entry.name]):
            raise TypeError(f"{entry.name} is not resolved, and {kind.__name__} needs it")
    return chosen


def read(kind: type[Part], values: Mapping[str, Any]) -> Part:
    """The options of a mapping that may have gone through JSON, where a tuple is a list.

    Raises:
        UserError: a name that is no field: another version wrote it.
    """
    hints = get_type_hints(kind)
    unknown = values.keys() - {entry.name for entry in fields(kind)}
    if unknown:
        raise UserError(f"the configuration has the field {min(unknown)!r}, which this version does not know")
    return kind(
        **{
            name: tuple(value) if get_origin(hints[name]) is tuple and isinstance(value, list) else value
            for name, value in values.items()
        }
    )


def check(options: Any) -> None:
    """Accept the values of an options dataclass.

    Raises:
        UserError: the first value that is not accepted, with what is.
    """
    hints = get_type_hints(type(options))
    for entry in fields(options):
        name, value = flag(entry.name), getattr(options, entry.name)
        choices = entry.metadata["choices"]
        if value is None and entry.default is None:
            continue
        if choices and value not in choices:
            raise UserError(f"{name} {value!r} is not known; accepted are {', '.join(choices)}")
        if "metavar" not in entry.metadata:
            _check(name, value, hints[entry.name], entry.metadata["bounds"])


def flag(name: str) -> str:
    """The command-line flag of a field."""
    return "--" + name.replace("_", "-")


def words(values: Mapping[str, Any]) -> str:
    """The flags that give fields these values, as a line to copy; a field that is None needs none."""
    parts: list[str] = []
    for name, value in values.items():
        if isinstance(value, bool):
            parts.append(flag(name) if value else f"--no-{flag(name)[2:]}")
        elif value is not None:
            several = value if isinstance(value, tuple) else (value,)
            parts += [flag(name), *map(shell_word, map(str, several))]
    return " ".join(parts)


def _check(name: str, value: Any, hint: Any, bounds: dict[str, float]) -> None:
    members = get_args(hint)
    if get_origin(hint) is tuple:
        if not isinstance(value, tuple) or not value:
            raise UserError(f"{name} must be one or more numbers, got {value!r}")
        for member in value:
            _check(name, member, members[0], bounds)
        if Ellipsis not in members and (len(value) != len(members) or value[0] > value[-1]):
            raise UserError(f"{name} must be {len(members)} numbers, the smaller first, got {value}")
        return
    accepted = members or (hint,)
    if float in accepted and isinstance(value, int) and not isinstance(value, bool):
        accepted = (*accepted, int)
    wrong = not isinstance(value, accepted) or (isinstance(value, bool) and bool not in accepted)
    wrong = wrong or (isinstance(value, str) and not is_text(value))
    if wrong or (isinstance(value, (int, float)) and not (math.isfinite(value) and _within(value, bounds))):
        kind = "a number" if float in accepted else "an integer" if int in accepted else "a text that is not empty"
        kind = "True or False" if bool in accepted else kind
        kind = "a text without null characters" if isinstance(value, str) and "\0" in value else kind
        limits = " and ".join(f"{relation} {limit:.10g}" for relation, limit in bounds.items())
        raise UserError(f"{name} must be {kind}{' ' * bool(limits)}{limits}, got {value!r}")


def is_text(value: Any) -> bool:
    """Whether it is text that a command line can hold and a file system can have as a name."""
    return isinstance(value, str) and bool(value.strip()) and "\0" not in value


def _within(value: float, bounds: dict[str, float]) -> bool:
    holds = {
        "of at least": lambda limit: value >= limit,
        "above": lambda limit: value > limit,
        "of at most": lambda limit: value <= limit,
        "below": lambda limit: value < limit,
    }
    return all(holds[relation](limit) for relation, limit in bounds.items())
