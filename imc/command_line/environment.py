"""What the environment says: variables. One that is empty or blank counts as not set."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from imc.errors import UserError
from imc.files.paths import user_path


def variable(name: str) -> str | None:
    """The text of an environment variable; None where it is not set, empty or blank."""
    return os.environ.get(name, "").strip() or None


def number(name: str, default: int, *, at_least: int = 0, at_most: int | None = None) -> int:
    """The integer of an environment variable.

    Raises:
        UserError: it is none, or beyond the bounds.
    """
    text = variable(name)
    if text is None:
        return default
    try:
        value = int(text)
    except ValueError:
        value = at_least - 1
    if value < at_least or (at_most is not None and value > at_most):
        bounds = f"of at least {at_least}" if at_most is None else f"from {at_least} to {at_most}"
        raise UserError(f"the environment variable {name} must be an integer {bounds}, got {text!r}")
    return value


@contextlib.contextmanager
def unset(prefix: str) -> Iterator[None]:
    """Inside, no variable has a name that begins so: for the import of a library that would read them."""
    hidden = {name: value for name, value in os.environ.items() if name.startswith(prefix)}
    for name in hidden:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(hidden)


def folder_of(name: str, *default: str) -> Path:
    """The folder that an environment variable names, or else one in ``~/.cache/imc``.

    Raises:
        UserError: it is not set, and the user has no home.
    """
    text = variable(name)
    if text is not None:
        return user_path(text)
    home = user_path("~")
    if not home.is_absolute():  # a container's user without an entry among the users
        raise UserError(f"there is no home to keep data in; set the environment variable {name} to a folder")
    return home.joinpath(".cache", "imc", *default)
