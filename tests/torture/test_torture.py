"""What make torture measures with: a few tries of its faults, and that it would notice."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from torture.runs import Ended, difference
from torture.table import Row, markdown

TESTS = Path(__file__).resolve().parents[1]


@pytest.mark.skipif(sys.platform != "linux", reason="the faults are those of Linux")
def test_a_few_faults_do_no_harm() -> None:
    faults = ["killed_at_random", "killed_while_writing", "terminated", "rank_killed"]
    command = [sys.executable, "-m", "torture", *faults, "--share", "0.01"]
    result = subprocess.run(command, cwd=TESTS, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("wrong=0, crashes=0, lost=0") == len(faults)


def test_one_bit_is_a_difference() -> None:
    a = {"model": {"weight": torch.tensor([1.0, 0.0])}, "update": 3}
    assert difference(a, {"model": {"weight": torch.tensor([1.0, 0.0])}, "update": 3}) == ""
    assert difference(a, {"model": {"weight": torch.tensor([1.0, -0.0])}, "update": 3}) == "/model/weight"
    assert difference(a, {"model": {"weight": torch.tensor([1.0, 0.0])}, "update": 4}) == "/update"


def test_a_checkpoint_that_is_behind_counts_as_lost(tmp_path: Path) -> None:
    row = Row("a fault", "somehow")
    assert row.held(tmp_path, Ended(-9, "", saved=None, seconds=1)) is None
    assert row.lost == 0
    row.held(tmp_path, Ended(-9, "", saved=3, seconds=1))
    assert row.lost == 1
    assert "| a fault | somehow | 0 | 0 | 0 | 1 |" in markdown([row])
