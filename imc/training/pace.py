"""How long an update takes, told once while the run is young."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

UPDATES = 10  # after which it is told
PATIENCE = 30.0  # seconds, after which it is told though fewer were made


class Pace:
    """Times the first updates of a run. The very first, which sets much up, counts only where it takes long.

    Args:
        device: on which they are made.
        tell: called once with the seconds of an update.
    """

    def __init__(self, device: torch.device, tell: Callable[[float], None]) -> None:
        self.device, self.tell = device, tell
        self._made, self._told = 0, False
        self._start = self._now()

    def update(self) -> None:
        """An update was made. Waits for the device twice in a run."""
        if self._told:
            return
        self._made += 1
        if self._made >= UPDATES or time.perf_counter() - self._start > PATIENCE:
            self._told = True
            self.tell((self._now() - self._start) / max(1, self._made - 1))
        elif self._made == 1:
            self._start = self._now()

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()
