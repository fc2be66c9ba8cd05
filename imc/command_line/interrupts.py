"""Ctrl-C: the first one lets a command tidy up, a second one ends it at once, with the exit code of shells."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Iterator
from types import FrameType

INTERRUPTED = 128 + signal.SIGINT  # what shells use
GRACE = 1.0  # seconds that a second Ctrl-C leaves for tidying up


@contextlib.contextmanager
def second_interrupt_ends() -> Iterator[None]:
    """Raise KeyboardInterrupt at the first Ctrl-C; at the second end the process, a second later if need be.

    Python hears a signal between two of its own instructions only, and one operation on a large batch can take a
    minute: so a thread waits for the second one. Where Ctrl-C is ignored (nohup) or handled (a notebook), it stays so.
    A process that was interrupted ignores all further ones.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return

    def first(_number: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, lambda *_: None)
        raise KeyboardInterrupt

    receiver, sender = socket.socketpair()
    sender.setblocking(False)
    pressed, ended = threading.Event(), threading.Event()
    watcher = threading.Thread(target=_watch, args=(receiver, pressed, ended), daemon=True)
    before = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGINT, first)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        signal.set_wakeup_fd(before)
        sender.close()
        watcher.join()
        receiver.close()
        # Interrupted, the process is to end: a further Ctrl-C would be a traceback while Python tears itself down.
        signal.signal(signal.SIGINT, signal.SIG_IGN if pressed.is_set() else signal.default_int_handler)


def _watch(receiver: socket.socket, pressed: threading.Event, ended: threading.Event) -> None:
    """Read the numbers of the signals that Python's own handler passes on."""
    count = 0
    while content := receiver.recv(1):
        if content[0] == signal.SIGINT:
            count += 1
            pressed.set()
        if count == 2 and not ended.wait(GRACE):
            os._exit(INTERRUPTED)
