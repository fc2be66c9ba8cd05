"""Before a run its plan is said, and then how long it takes; a run that is a part of a program says neither."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from train.conftest import tiny_config
from train.features.blobs import blobs
from train.features.conftest import on_features

from imc.config import Config
from imc.data import Images
from imc.errors import StoppedError
from imc.runs.plan import HOUR, teller
from imc.text import duration
from imc.train import train
from imc.training import pace


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0123, "12 ms"),
        (0.1, "0.1 s"),
        (1.94, "1.9 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (119.0, "119 s"),
        (120.0, "2.0 min"),
        (3600.0, "60 min"),
        (7200.0, "2.0 h"),
        (172_800.0, "2.0 days"),
        (2e6, "23 days"),
        (2e9, "23,148 days"),
    ],
)
def test_a_duration_in_words(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def lines(text: str, start: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith(start)]


def test_a_run_on_pixels(digits: Images, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(replace(tiny_config(tmp_path), epochs=4), digits, report=False)
    shown = capsys.readouterr().err
    (plan,) = lines(shown, "plan: ")
    for part in (
        "imc-swav",
        "10 clusters",
        "192 images of digits",
        "encoder digits",
        "nothing",
        "4 epochs",
        "12 updates",
    ):
        assert part in plan
    (time,) = lines(shown, "time: ")
    assert f"{12 - pace.UPDATES} updates to come" in time


def test_a_run_that_goes_on_says_what_is_made(
    digits: Images, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(tiny_config(tmp_path), epochs=2, stop_after_epoch=1)
    with pytest.raises(StoppedError):
        train(config, digits, report=False)
    capsys.readouterr()
    train(Config(out=str(tmp_path), resume=True), digits, report=False)
    assert "6 updates in all, of which 3 are made" in capsys.readouterr().err


def test_a_run_on_features(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    features, labels = blobs()
    np.savez(tmp_path / "blobs.npz", features=features, labels=labels)
    train(on_features(tmp_path / "blobs.npz", tmp_path / "run"), report=False)
    (plan,) = lines(capsys.readouterr().err, "plan: ")
    assert "90 rows" in plan
    assert "features as they are given" in plan


def test_a_part_of_a_program_is_silent(digits: Images, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from imc.command_line.terminal import silence

    with silence():
        train(tiny_config(tmp_path), digits, report=False, embedded=True)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("updates", "seconds", "asked"), [(100, 35.0, False), (100, 37.0, True), (0, 1e9, False)])
def test_a_recipe_is_asked_for_where_more_than_an_hour_is_left(updates: int, seconds: float, asked: bool) -> None:
    found: list[float] = []
    teller(lambda: updates, lambda each: found.append(each))(seconds)  # type: ignore[func-returns-value]
    assert bool(found) == asked == (updates * seconds > HOUR)


def test_of_a_named_set_a_recipe_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:

    monkeypatch.setattr("imc.runs.plan.HOUR", 0.0)
    monkeypatch.setattr("imc.train.smaller_recipe", lambda *arguments: "a smaller recipe")
    config = replace(tiny_config(tmp_path), batch_size=512, epochs=4, large_crops=2, small_crops=0)
    train(config, report=False)
    assert lines(capsys.readouterr().err, "a smaller recipe")
