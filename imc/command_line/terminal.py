"""What a command shows: its result on standard output; progress and remarks on standard error.

A character that a terminal's encoding lacks is escaped. Progress that nobody reads any more (`imc train 2>&1 | head`)
stops no work.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any, TextIO

from imc.command_line.environment import unset
from imc.text import visible

with unset("TQDM_"):  # which replace what progress() leaves at its default, also by what is no number or no format
    from tqdm import tqdm

REDRAW, LOG = 0.5, 15.0  # seconds between two states of a bar: on a terminal, and in a log, where each is a line
DELAY = 2.0  # seconds before a bar appears: what is done sooner needs none


_warned: ContextVar[list[str] | None] = ContextVar("imc_warned", default=None)


def show(text: str) -> None:
    """Print lines of a command's result.

    Raises:
        OSError: nobody takes them (BrokenPipeError), or a full disk does not.
    """
    if sys.stdout is None:  # closed before the start
        return
    try:
        sys.stdout.write(_encodable("\n".join(map(visible, text.split("\n"))), sys.stdout) + "\n")
        sys.stdout.flush()
    except OSError:
        _abandon(sys.stdout)
        raise


def say(text: str) -> None:
    """Print one line on standard error, above the progress bar if there is one."""
    if _warned.get() is not None:
        return
    screen = _Screen(sys.stderr)
    if screen.isatty():
        tqdm.write(visible(text), file=screen)
    else:  # a log, where tqdm would repeat the bar
        screen.write(visible(text))
        screen.flush()


def warn(text: str) -> None:
    """The same for a warning."""
    warned = _warned.get()
    if warned is None:
        say(f"warning: {text}")
    else:
        warned.append(text)


@contextlib.contextmanager
def silence() -> Iterator[list[str]]:
    """Inside, this thread prints nothing on standard error; what it warns of is in the list."""
    warned: list[str] = []
    token = _warned.set(warned)
    try:
        yield warned
    finally:
        _warned.reset(token)


def progress(total: int, what: str, unit: str, *, done: int = 0, delay: float = DELAY, shown: bool = True) -> tqdm[Any]:
    """A progress bar on standard error, with the time left; in a log a line now and then.

    Args:
        total: number of units.
        what: the work, a word or two.
        unit: of the total.
        done: how many units were done before.
        delay: seconds before it appears.
        shown: False: nothing appears.
    """
    screen = _Screen(sys.stderr)
    interval = REDRAW if screen.isatty() else LOG
    return tqdm(
        total=total,
        initial=done,
        desc=what,
        unit=unit,
        mininterval=interval,
        maxinterval=interval,
        delay=delay,
        disable=not shown or _warned.get() is not None,
        file=screen,
        # A terminal that does not know its size (under script, in a container) would get empty bars.
        **({"dynamic_ncols": True} if all(screen.size()) else {"ncols": screen.size()[0] or 80}),
    )


class Stages:
    """A progress bar over the named parts of a command, for work that has no smaller units to count.

    Args:
        what: the command.
        names: of the parts, in their order.
    """

    def __init__(self, what: str, names: tuple[str, ...]) -> None:
        self.names = iter(names)
        self.bar = progress(len(names), what, "part", delay=0 if _Screen(sys.stderr).isatty() else LOG)

    def __enter__(self) -> Stages:
        self._name()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def next(self) -> None:
        """A part is done; the next one begins."""
        self.bar.update()
        self._name()

    def _name(self) -> None:
        self.bar.set_postfix_str(next(self.names, ""), refresh=self.bar.delay == 0)


class _Screen:
    """A text stream that takes every character, and on which a bar that is no terminal's is a line for each state."""

    def __init__(self, stream: TextIO | None) -> None:
        self.stream = stream

    def __eq__(self, other: object) -> bool:  # tqdm asks, so that it can write above its bars
        return isinstance(other, _Screen) and other.stream is self.stream

    def __hash__(self) -> int:
        return id(self.stream)

    @property
    def encoding(self) -> str | None:
        return getattr(self.stream, "encoding", None)

    def isatty(self) -> bool:
        try:
            return self.stream is not None and self.stream.isatty()
        except (AttributeError, ValueError):  # a stream of one's own that has no such method, or a closed one
            return False

    def size(self) -> tuple[int, int]:
        """Columns and lines of a terminal; 0 of what it does not know."""
        try:
            return os.get_terminal_size(self.fileno())
        except (AttributeError, OSError, ValueError):
            return 0, 0

    def fileno(self) -> int:
        return -1 if self.stream is None else self.stream.fileno()

    def write(self, text: str) -> None:
        if not self.isatty():
            text = text.replace("\r", "").rstrip()
            text += "\n" * bool(text)
        if self.stream is not None and text:
            try:
                self.stream.write(_encodable(text, self.stream))
            except OSError:
                _abandon(self.stream)
            except ValueError:  # closed
                pass

    def flush(self) -> None:
        if self.stream is not None:
            try:
                self.stream.flush()
            except OSError:
                _abandon(self.stream)
            except ValueError:
                pass


def _encodable(text: str, stream: TextIO) -> str:
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _abandon(stream: TextIO) -> None:
    """Let a stream that failed swallow what it holds, so that Python does not try again at its end."""
    with contextlib.suppress(OSError, ValueError):
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, stream.fileno())
        os.close(devnull)
