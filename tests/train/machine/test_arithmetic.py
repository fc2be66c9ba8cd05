"""A run records what its numbers were computed with, and a resumed run says what is another."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from imc.config import Config
from imc.data import Images
from imc.errors import StoppedError
from imc.machine.arithmetic import arithmetic, change
from imc.train import train
from imc.training.checkpoint import read_checkpoint, write_checkpoint
from imc.training.loop import Loop
from imc_kernels import native

CPU = torch.device("cpu")


@pytest.fixture
def stopped(tiny: Config, digits: Images) -> Config:
    """A run on three threads that ended after its first epoch."""
    with pytest.raises(StoppedError):
        train(dataclasses.replace(tiny, threads=3, stop_after_epoch=1), digits)
    torch.set_num_threads(1)
    return Config(out=tiny.out, resume=True)


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of threads with which runs train, each as it begins."""
    numbers, run = [], Loop.run

    def observed(loop: Loop) -> None:
        numbers.append(torch.get_num_threads())
        run(loop)

    monkeypatch.setattr(Loop, "run", observed)
    return numbers


def warnings(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("warning: the run began with")]


def test_a_run_records_it(trained: Path) -> None:
    recorded = read_checkpoint(trained)["arithmetic"]  # type: ignore[index]
    assert json.loads((trained / "result.json").read_text())["arithmetic"] == recorded
    assert json.loads((trained / "config.json").read_text())["threads"] == recorded["threads"]
    assert recorded["torch"] == torch.__version__
    assert recorded["ATEN_CPU_CAPABILITY"] == torch.backends.cpu.get_cpu_capability().lower()
    if native.missing("_cpu") is None:
        assert recorded["IMC_CPU_CAPABILITY"] == native.module("_cpu").instruction_set()
    assert recorded.keys() >= {"device", "instructions", "ONEDNN_MAX_CPU_ISA", "MKL_CBWR"}


def test_a_resumed_run_takes_the_recorded_threads(
    stopped: Config, digits: Images, used: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    train(stopped, digits, report=False)
    assert used == [3]
    assert json.loads((Path(str(stopped.out)) / "config.json").read_text())["threads"] == 3
    assert warnings(capsys.readouterr().err) == []


def test_other_threads_asked_for_are_taken_and_named(
    stopped: Config, digits: Images, used: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    train(dataclasses.replace(stopped, threads=2), digits, report=False)
    assert used == [2]
    (sentence,) = warnings(capsys.readouterr().err)
    assert "began with threads 3 and goes on with threads 2" in sentence


@pytest.mark.parametrize(
    ("began", "says"),
    [
        ({"torch": "2.11.0"}, "began with torch 2.11.0 and goes on with torch"),
        ({"ATEN_CPU_CAPABILITY": "sse"}, "began with ATEN_CPU_CAPABILITY sse and goes on with"),
        ({"IMC_CPU_CAPABILITY": "neon"}, "began with IMC_CPU_CAPABILITY neon and"),
        ({"ONEDNN_MAX_CPU_ISA": "sse41", "MKL_CBWR": "COMPATIBLE"}, "ONEDNN_MAX_CPU_ISA sse41, MKL_CBWR COMPATIBLE"),
        ({"device": "another", "instructions": "avx9"}, "began with device another, instructions avx9 and"),
        ({"device": [1] * 100}, "began with device [1, 1"),
        ({}, None),
        (None, None),
        ("text", None),
        ([1, 2], None),
        ({"a later version's": 1}, None),
    ],
    ids=str,
)
def test_a_resumed_run_names_what_is_another_and_goes_on(
    began: Any, says: str | None, stopped: Config, digits: Images, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(str(stopped.out))
    content = read_checkpoint(folder)
    assert content is not None
    content["arithmetic"] = {**content["arithmetic"], **began} if isinstance(began, dict) else began
    if began is None:
        del content["arithmetic"]  # of an earlier version
    write_checkpoint(folder, {name: value for name, value in content.items() if name != "format"})
    capsys.readouterr()
    train(stopped, digits, report=False)
    said = warnings(capsys.readouterr().err)
    assert len(said) == (says is not None)
    assert says is None or says in said[0]
    assert read_checkpoint(folder)["update"] == 6  # type: ignore[index]


def test_the_same_is_no_change() -> None:
    assert change(arithmetic(CPU, "off"), arithmetic(CPU, "off")) is None
