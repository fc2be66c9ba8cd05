"""The first minutes on a GPU: what ends early, fails or is not allowed leaves the rest."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import gpu_quick
import pytest
from gpu_quick import Part, run_all


def python(name: str, code: str, limit: float = 60) -> Part:
    return Part(name, [sys.executable, "-c", code], limit)


def test_a_part_that_fails_or_takes_too_long_does_not_keep_the_next(tmp_path: Path) -> None:
    parts = [
        python("good", "import os; print('value', 6 * 7)"),
        python("bad", "print('before'); raise SystemExit(3)"),
        python("slow", "import time; print('begun', flush=True); time.sleep(600)", limit=1),
        Part("forbidden", ["nothing"], 60, left_out="the device does not allow it"),
        Part("last", [sys.executable, "-c", "import os; print(os.environ['SEEN'])"], 60, {"SEEN": "to the end"}),
    ]
    assert not run_all(parts, tmp_path, budget=120)
    how = dict(line.split(": ", 1) for line in (tmp_path / "quick.txt").read_text().splitlines())
    assert how["good"].startswith("done, ")
    assert how["bad"].startswith("failed with status 3, ")
    assert how["slow"].startswith("ended after 1 s, ")
    assert how["forbidden"] == "left out: the device does not allow it"
    assert how["last"].startswith("done, ")
    assert "value 42" in (tmp_path / "good.txt").read_text()
    assert "begun" in (tmp_path / "slow.txt").read_text()
    assert "to the end" in (tmp_path / "last.txt").read_text()


def test_what_does_not_fit_into_the_budget_is_left_out(tmp_path: Path) -> None:
    start = time.monotonic()
    parts = [python("first", "import time; time.sleep(600)"), python("second", "print()")]
    assert not run_all(parts, tmp_path, budget=1.5)
    assert time.monotonic() - start < 60
    lines = (tmp_path / "quick.txt").read_text().splitlines()
    assert lines[0].startswith("first: ended after ")
    assert lines[1] == "second: left out: the budget is spent"


def test_a_sanitizer_that_may_not_look_is_left_out_with_its_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "compute-sanitizer"
    tool.write_text(
        "#!/bin/sh\necho '========= COMPUTE-SANITIZER'\necho '========= Error: Device not supported'\nexit 1\n"
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    refusal = gpu_quick.sanitizers_refusal()
    assert refusal == "compute-sanitizer does not work here: ========= Error: Device not supported"
    monkeypatch.setattr(gpu_quick, "architecture", lambda: "9.0a")
    parts = {part.name: part for part in gpu_quick.parts(tmp_path)}
    assert list(parts)[:3] == ["build", "report", "epoch"]
    assert parts["memcheck"].left_out == parts["racecheck"].left_out == refusal
    tool.unlink()
    assert gpu_quick.sanitizers_refusal() == "compute-sanitizer is not installed"
