from __future__ import annotations

import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import imc
import imc.train
from imc.cli import main
from imc.config import Config


def in_process(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    code = main(argv)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def raise_as_cuda() -> None:
    """As torch says it on a GPU."""
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of ...")


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ([], "no command given; accepted are train"),
        (["trian"], "unknown command 'trian'; did you mean imc train?"),
        (["train", "--epohs", "3"], "unknown flag --epohs; did you mean --epochs?"),
        (
            ["train", "--method=crlc", "--prototypes=9"],
            "--prototypes belongs to --method imc-swav",
        ),
        (["train", "--epoch=3"], "unknown flag --epoch; did you mean --epochs?"),
        (["train", "digits"], "unexpected argument 'digits'; did you mean imc train --data digits?"),
        (["train", "--data", "digitz"], "--data 'digitz' is not there; accepted are digits"),
        (["train", "--epochs", "0"], "--epochs must be an integer of at least 1, got 0"),
        (["train", "--epochs", "three"], "--epochs: must be an integer, got 'three'"),
        (["train", "--epochs"], "--epochs: expected one argument"),
        (["train", "--large-size", "10000"], "--large-size must be an integer of at least 4 and of at most 4096"),
        (["train", "--prototypes", "1000000000000"], "the model takes 256,000."),
        (["train", "--lr", "-0.1"], "--lr must be a number above 0, got -0.1"),
        (["train", "--lr", "nan"], "--lr must be a number above 0, got nan"),
        (["train", "--seed", "-1"], "--seed must be an integer of at least 0"),
        (["train", "--batch-size", "1798"], "--batch-size must be at most 1797, the images of digits, got 1798"),
        (["train", "--clusters", "2000"], "--clusters must be at most 1797"),
        (["train", "--gain", "1.4", "0.6"], "--gain must be 2 numbers, the smaller first, got (1.4, 0.6)"),
        (["train", "--large-crops", "1", "--small-crops", "0"], "must be at least 2 together"),
        (["train", "--out", ""], "--out must be a text that is not empty, got ''"),
        (["train", "--name", "a/b"], "--name must be the name of one folder"),
        (["train", "--backend", "gpu"], "--backend 'gpu' is not known; accepted are auto, "),
        (["train", "--backend", "cuda"], "--backend cuda cannot run here: "),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    argv: list[str], says: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = in_process(capsys, *argv)
    assert code == 2
    assert out == ""
    assert err.count("\n") == 1
    assert says in err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    code, _, err = in_process(capsys, "train", "--out", str(tmp_path / "file"))
    assert code == 2
    assert err.count("\n") == 1
    assert "--out must be a folder that can be written" in err


def test_a_mistake_in_the_environment(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMC_BACKEND", "gpu")
    code, _, err = in_process(capsys, "train")
    assert code == 2
    assert err.count("\n") == 1
    assert "IMC_BACKEND" in err


MISTAKE = "imc train: unknown flag --epohs; did you mean --epochs? (see imc train --help)\n"


def test_python_m_imc_train() -> None:
    command = [sys.executable, "-m", "imc.train", "--epohs", "3"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (2, "", MISTAKE)


def test_python_m_imc(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["imc", "train", "--epohs", "3"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_module("imc", run_name="__main__")
    assert stop.value.code == 2
    assert capsys.readouterr().err == MISTAKE


def test_ctrl_c(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(config: Config, **_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(imc.train, "train", interrupted)
    assert in_process(capsys, "train") == (130, "", "imc train: interrupted\n")


@pytest.mark.parametrize(
    "allocate",
    [lambda: torch.empty(2**44), lambda: np.empty(2**44), lambda: bytearray(2**60), raise_as_cuda],
    ids=["torch", "numpy", "python", "cuda"],
)
def test_too_little_memory_is_one_line(
    allocate: Callable[[], object], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(imc.train, "train", lambda config, **_: allocate())
    code, out, err = in_process(capsys, "train")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert err.startswith("imc train: there is not enough memory")
    assert "a smaller --batch-size or smaller images need less" in err


def test_other_failures_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imc.train, "train", lambda config, **_: torch.zeros(2) @ torch.zeros(3))
    with pytest.raises(RuntimeError, match="inconsistent tensor size"):
        main(["train"])


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert in_process(capsys, "--version") == (0, f"imc {imc.__version__}\n", "")
    code, out, _ = in_process(capsys, "--help")
    assert code == 0
    assert "train" in out
    with pytest.raises(SystemExit) as stop:
        main(["train", "--help-all"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "--batch-size N" in text
    assert "python -m imc.train" in text
    assert f"(default: {Config().log_every})" in text
