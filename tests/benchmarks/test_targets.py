"""The lines after the benchmark's tables say what was asked, what was measured, and whether more was possible."""

from __future__ import annotations

import pytest
import targets
from cases import cases
from targets import STEP, TARGETS, Seconds, Target, line, slower_than_eager

TARGET = Target("work a", "forward", "released", 40, STEP)
NAME = "work a V6 forward"


def rows(**seconds: float) -> dict[str, Seconds]:
    return {name: Seconds(median, median / 2) for name, median in seconds.items()}


def test_a_target_that_is_met() -> None:
    text = line(TARGET, {NAME: rows(cpu=1e-3, released=5e-2)}, {STEP: 5e-4})
    assert text == (
        "work a, cpu against released: asked 40 x, measured 50 x (50 ms / 1 ms; "
        "50 x by the fastest rounds), met; floor 0.5 ms"
    )


@pytest.mark.parametrize(("floor", "reachable"), [(5e-4, True), (9e-4, False)])
def test_a_target_that_is_missed_says_whether_the_floor_allows_it(floor: float, reachable: bool) -> None:
    text = line(TARGET, {NAME: rows(cpu=1e-3, released=2e-2 if reachable else 3e-2)}, {STEP: floor})
    assert text is not None
    assert "missed by a factor of" in text
    assert ("out of reach" in text) != reachable


def test_a_missing_rival_is_named() -> None:
    assert "there is no row 'released'" in (line(TARGET, {NAME: rows(cpu=1e-3)}, {}) or "")


def test_another_direction_is_another_table() -> None:
    assert line(TARGET, {"work a V6 forward+backward": rows(cpu=1e-3, released=1.0)}, {}) is None


def test_rows_slower_than_eager_are_listed() -> None:
    groups = {"slow": rows(cpu=2e-3, eager=1e-3), "fast": rows(cpu=1e-3, eager=1e-3)}
    assert list(slower_than_eager(groups)) == ["slow, cpu: 2.00 of eager's time (1 ms)"]


def test_every_target_has_a_floor() -> None:
    known = {(case.name, case.size) for case in cases()}
    assert {target.case for target in TARGETS} <= known


def test_only_what_a_target_compares_is_timed_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "_kept", {})
    monkeypatch.setattr(targets, "TURNS", 0.01)
    group, calls = f"{TARGETS[0].work} V6 {TARGETS[0].direction}", []
    for form in ("cpu", "eager", TARGETS[0].against):
        targets.keep(group, form, lambda form=form: calls.append(form))  # type: ignore[misc]
        targets.keep("work of no target", form, lambda: None)
    timed = targets.timed_in_turns()
    assert {name: set(rows) for name, rows in timed.items()} == {group: {"cpu", TARGETS[0].against}}
    assert calls[:8] == [*["cpu"] * 4, *[TARGETS[0].against] * 4]
