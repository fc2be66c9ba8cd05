"""Processes that tests start."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator, Sequence
from typing import Any


@contextlib.contextmanager
def running(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[Any]]:
    """A process that is killed where the block ends before it does: a test that fails leaves none behind."""
    with subprocess.Popen(command, **options) as process:
        try:
            yield process
        finally:
            process.kill()
