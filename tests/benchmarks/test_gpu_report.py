"""The report of a device, run on the CPU at tiny sizes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import gpu_report
import measure
import plot
import pytest
import torch

from imc_kernels import backends


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as patch:
        options = ["--tiny", "--no-compile", "--device", "cpu", "--seconds", "0.01", "--out", str(out)]
        patch.setattr(sys, "argv", ["gpu_report.py", *options])
        gpu_report.main()
    return out


def test_every_form_of_every_case_has_a_time(folder: Path) -> None:
    report = json.loads((folder / "report.json").read_text())
    serving = set(backends.serving("cpu", torch.float32))
    for row in report["cases"]:
        assert serving <= set(row["forms"]), row["case"]
        for name, timing in row["forms"].items():
            assert timing["failure"] is None, (row["case"], name, timing["failure"])
            assert timing["microseconds"] > 0
        assert row["floor_microseconds"] > 0


def test_the_tables_and_charts_are_written(folder: Path) -> None:
    text = (folder / "report.md").read_text()
    assert "| eager | " in text
    assert torch.__version__ in text
    for chart in ("speedup.png", "roofline.png"):
        assert (folder / chart).stat().st_size > 10_000


def test_a_form_that_fails_is_a_row_and_not_the_end() -> None:
    def broken(x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("out of luck\nat length")

    timings = measure.measure({"good": torch.relu, "bad": broken}, [(torch.rand(4),)], seconds=0.01)
    assert timings["good"].microseconds is not None
    assert timings["bad"].failure == "RuntimeError: out of luck"


def test_a_form_that_computes_something_else_is_found() -> None:
    case = gpu_report.tiny_cases()[2]
    wrong = case.__class__(**{**case.__dict__, "rivals": {"batched": torch.ones_like}})
    inputs = case.inputs(0, torch.device("cpu"))
    assert gpu_report.disagreement(case, "batched", inputs) is None
    assert gpu_report.disagreement(wrong, "batched", inputs) > 0.02


def test_charts_of_pytest_benchmark(tmp_path: Path) -> None:
    entries = [
        {"group": "sinkhorn", "name": name, "stats": {"median": median}}
        for name, median in (("cpu", 1e-4), ("eager", 4e-4))
    ]
    assert plot.speedups_of_pytest({"benchmarks": entries}) == {"sinkhorn": {"cpu": 4.0, "eager": 1.0}}
    assert [path.name for path in plot.draw({"benchmarks": entries}, tmp_path)] == ["speedup.png"]
