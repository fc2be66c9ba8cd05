"""`--help` shows what people use first, with what this line would get; `--help-all` shows everything."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import pytest

from imc.cli import COMMANDS, main
from imc.command_line.flags import flags_of
from imc.command_line.options import flag
from imc.config import Config


def helped(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 0
    return " ".join(capsys.readouterr().out.split())


def listed(text: str) -> set[str]:
    """The flags that a help text lists, without those of help itself."""
    return set(re.findall(r"(?<!\S)--[a-z0-9-]+", text.split("options] ", 1)[1])) - {
        "--help",
        "--help-all",
    }


def test_help_is_of_some_twenty_options_in_groups_and_help_all_of_all(capsys: pytest.CaptureFixture[str]) -> None:
    first = [flag(name) for names in Config.FIRST.values() for name in names]
    assert len(set(first)) == len(first) == 20
    text = helped(capsys, "train", "--help")
    assert {one for one in first if f" {one} " in text} == set(first)
    assert all(f"{title}: --" in text for title in Config.FIRST)
    assert not {"--jitter-probability", "--sinkhorn-epsilon", "--rank-timeout"} & listed(text)
    assert f"--help-all all {len(flags_of(Config))} options" in text
    whole = helped(capsys, "train", "--help-all")
    assert {flag(name) for name in flags_of(Config)} <= listed(whole)
    assert len(text) < len(whole) / 3


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_lists_its_options(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    module = importlib.import_module(f"imc.{command.replace('-', '_')}")
    options = getattr(module, "FLAGS", None) or module.Options
    whole = helped(capsys, command, "--help-all")
    assert {flag(name) for name in flags_of(options)} <= listed(whole)
    short = helped(capsys, command, "-h")
    assert listed(short) <= listed(whole)
    assert helped(capsys, "help", command) == short


@pytest.mark.parametrize(
    ("argv", "here"),
    [
        (["train"], {"--method": "imc-swav", "--clusters": "10", "--epochs": "40", "--lr": "0.006"}),
        (["train", "--method", "crlc"], {"--method": "crlc", "--epochs": "60", "--lr": "0.003"}),
        (["train", "--data", "cifar10"], {"--encoder": "resnet18", "--epochs": "500", "--lr": "0.0005"}),
        (["train", "--data", "stl10", "--method", "crlc"], {"--encoder": "resnet34", "--epochs": "2000"}),
        (["train", "--epochs", "7"], {"--epochs": "7", "--batch-size": "128"}),
        (["seeds", "mnist"], {"--clusters": "10", "--epochs": "8"}),
        (["seeds"], {"--epochs": "40"}),
        (["clusters-sweep", "digits", "--clusters", "5", "8", "--epochs", "3"], {"--epochs": "3", "--lr": "0.006"}),
    ],
    ids=" ".join,
)
def test_help_shows_what_this_line_would_get(
    argv: list[str], here: dict[str, str], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setenv("IMC_DATA", str(tmp_path))
    text = helped(capsys, *argv, "--help")
    for name, value in here.items():
        assert re.search(rf" {name} (?:(?! --).)*\(here: {re.escape(value)}\)", text), (name, value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--data", "nowhere"], "--data 'nowhere' is not there"),
        (["--epohs", "3"], "unknown flag --epohs; did you mean --epochs?"),
        (["--lr", "fast"], "--lr: must be a number, got 'fast'"),
        (["--method", "temi"], "--method temi is for features"),
        (["--lr", "-1"], "--lr must be a number above 0"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_beside_help_is_said_in_it(argv: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = helped(capsys, "train", *argv, "--help")
    assert f"What this line would get is not shown: {says}" in text
    assert "--epochs N passes" in text


def test_help_of_a_run_that_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert "keeps the values that it began with" in helped(capsys, "train", "--resume", "--out", "run", "--help")


def test_what_stands_behind_two_dashes_asks_for_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "run", "--", "--help"]) == 2
    assert "usage" not in capsys.readouterr().out
