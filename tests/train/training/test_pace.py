"""The time of an update is told once, early, and of a slow run before ten updates."""

from __future__ import annotations

import pytest
import torch

from imc.training import pace
from imc.training.pace import PATIENCE, UPDATES, Pace


@pytest.mark.parametrize(
    ("first", "each", "told_after"),
    [(3.0, 0.5, UPDATES), (3.0, 0.001, UPDATES), (3.0, PATIENCE / 2.5, 4), (2 * PATIENCE, 50.0, 1)],
)
def test_it_is_told_once(monkeypatch: pytest.MonkeyPatch, first: float, each: float, told_after: int) -> None:
    now = 100.0
    monkeypatch.setattr(pace.time, "perf_counter", lambda: now)
    told: list[tuple[int, float]] = []
    made = 0
    timed = Pace(torch.device("cpu"), lambda seconds: told.append((made, seconds)))
    for made in range(1, 30):
        now += first if made == 1 else each
        timed.update()
    assert told == [(told_after, pytest.approx(first if told_after == 1 else each))]
