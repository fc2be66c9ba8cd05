"""The scripts that time an epoch of CIFAR-10 and train on it in pieces, on noise with a small network."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import cifar10_epoch
import cifar10_run
import pytest

TINY = argparse.Namespace(tiny=True, noise=False, device="cpu")
SMALL = [
    *("--encoder", "digits", "--widths", "4", "8", "--pool-after", "1", "--feature-dim", "8", "--prototypes", "12"),
    *("--classifier-widths", "8", "--batch-size", "16", "--large-size", "8", "--small-size", "6", "--epochs", "2"),
]


def test_an_epoch_has_a_time_in_every_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = [*("--tiny", "--device", "cpu", "--steps", "1", "--limit", "0", "--workers", "1"), "--no-compile"]
    monkeypatch.setattr(sys, "argv", ["cifar10_epoch.py", *small, "--out", str(tmp_path)])
    monkeypatch.setattr(cifar10_epoch, "WARMUP", 1)
    cifar10_epoch.main()
    report = json.loads((tmp_path / "cifar10_epoch.json").read_text())
    assert len(report["forms"]) == 4
    assert all(row["seconds_per_epoch"] > 0 for row in report["forms"])
    assert {"views", "encoder forward", "losses", "backward", "optimiser"} <= set(report["profile"])
    assert "| imc train | " in (tmp_path / "cifar10_epoch.md").read_text()


def test_a_run_goes_on_in_pieces_and_its_scores_add_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = cifar10_epoch.data_set(TINY)
    monkeypatch.setattr(cifar10_run, "load", lambda *_, **__: data)

    def piece(*more: str) -> dict:
        folders = ["--run", str(tmp_path / "run"), "--out", str(tmp_path / "results"), "--device", "cpu"]
        monkeypatch.setattr(sys, "argv", ["cifar10_run.py", *folders, *SMALL, *more])
        cifar10_run.main()
        return json.loads((tmp_path / "results" / "cifar10_run.json").read_text())

    first = piece("--stop-after-epoch", "1")
    assert [row["epochs"] for row in first["scores"]] == [1]
    assert not first["ended"]
    second = piece()
    assert [row["epochs"] for row in second["scores"]] == [1, 2]
    assert second["ended"]
    assert 0 < second["scores"][-1]["train"]["acc"] <= 1
    text = (tmp_path / "results" / "cifar10_run.md").read_text()
    assert "**After 2 of 2 epochs**" in text
    assert "89.1" in text
