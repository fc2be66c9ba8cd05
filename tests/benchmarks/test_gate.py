"""The regression gate compares ratios to eager, so that a slower machine passes and a slower kernel does not."""

from __future__ import annotations

from gate import ratios, regressions


def run(cpu: float, eager: float) -> dict:
    entries = [("sinkhorn", "cpu", cpu), ("sinkhorn", "eager", eager), ("alone", "cpu", cpu)]
    return {"benchmarks": [{"group": g, "name": n, "stats": {"min": t}} for g, n, t in entries]}


def test_a_slower_machine_passes() -> None:
    assert regressions(ratios(run(3e-3, 12e-3)), ratios(run(1e-3, 4e-3))) == []


def test_a_slower_kernel_does_not() -> None:
    (line,) = regressions(ratios(run(2e-3, 4e-3)), ratios(run(1e-3, 4e-3)))
    assert line == "sinkhorn, cpu: 0.500 of eager's time, was 0.250"


def test_a_row_that_vanished_is_named() -> None:
    assert regressions({}, ratios(run(1e-3, 4e-3))) == ["sinkhorn, cpu: not in this run"]
