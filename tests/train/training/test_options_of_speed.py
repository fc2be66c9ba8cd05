"""Options of speed change a result by rounding at most, or are refused where they cannot work."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import imc.training.events
from imc.config import Config
from imc.data import Images
from imc.errors import StoppedError, UserError
from imc.train import train
from imc.training.checkpoint import read_checkpoint
from imc_kernels import backends


@pytest.fixture(autouse=True)
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imc.train._report", lambda *_: {})


def losses(config: Config) -> list[float]:
    return [json.loads(line)["loss"] for line in (Path(config.out) / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("change", "tolerance"),
    [
        ({"device_data": "off"}, 0),
        ({"channels_last": "off"}, 1e-4),
        ({"log_every": 1}, 0),
        ({"amp": "bf16"}, 0.05),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else str(value),
)
def test_the_losses_stay(
    change: dict[str, Any], tolerance: float, tiny: Config, digits: Images, tmp_path: Path
) -> None:
    other = dataclasses.replace(tiny, out=str(tmp_path / "other"), **change)
    train(tiny, digits)
    train(other, digits)
    assert losses(other) == pytest.approx(losses(tiny), rel=tolerance, abs=0)


@pytest.mark.parametrize("by", ["option", "variable"])
def test_a_named_backend_that_lacks_an_operation_trains(
    by: str, tiny: Config, digits: Images, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As cuda lacks the scores of prototypes. Here every backend has all: one is taken from cpu."""
    choose = backends.choose

    def without(operation: str, offered: tuple[str, ...], *rest: Any) -> str:
        return choose(operation, ("eager",) if operation == "prototype_scores" else offered, *rest)

    monkeypatch.setattr(backends, "choose", without)
    if by == "variable":
        monkeypatch.setenv("IMC_BACKEND", "cpu")
    train(dataclasses.replace(tiny, backend="cpu" if by == "option" else "auto"), digits)
    assert capsys.readouterr().err.count("backend cpu has no prototype_scores: eager runs it") == 1


def test_bf16_is_repeatable_and_resumes_bitwise_and_keeps_its_precision(
    tiny: Config, digits: Images, tmp_path: Path
) -> None:
    once, again, parted = (dataclasses.replace(tiny, amp="bf16", out=str(tmp_path / x)) for x in ("a", "b", "c"))
    train(once, digits)
    train(again, digits)
    with pytest.raises(StoppedError):
        train(dataclasses.replace(parted, stop_after_epoch=1), digits)
    train(Config(out=parted.out, resume=True), digits)
    assert losses(once) == losses(again) == losses(parted)
    recorded = read_checkpoint(Path(str(parted.out)))
    assert recorded is not None
    assert recorded["config"]["amp"] == recorded["arithmetic"]["amp"] == "bf16"


def test_bf16_computes_the_encoder_in_bf16(tiny: Config, digits: Images) -> None:
    seen: list[torch.dtype] = []

    class Recording(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(1, 8)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            features = self.linear(images.mean(dim=(2, 3)))
            seen.append(features.dtype)
            return features

    train(dataclasses.replace(tiny, epochs=1, amp="bf16"), digits, encoder=Recording())
    assert set(seen[2:]) == {torch.bfloat16}  # the first calls find out the number of features


def test_a_custom_encoder_trains(tiny: Config, digits: Images) -> None:
    module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1))
    before = module[0].weight.detach().clone()
    train(dataclasses.replace(tiny, epochs=1), digits, encoder=module)
    assert not torch.equal(module[0].weight, before)
    assert json.loads((Path(tiny.out) / "config.json").read_text())["encoder"] == "custom"


def test_compile_changes_no_names(tiny: Config, digits: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[dict[str, Any]] = []
    monkeypatch.setattr(nn.Module, "compile", lambda _self, **options: compiled.append(options))
    train(dataclasses.replace(tiny, epochs=1, compile=True), digits)
    assert compiled == [{"dynamic": False}]


def test_a_cuda_graph_is_refused_on_the_cpu(tiny: Config, digits: Images) -> None:
    with pytest.raises(UserError, match="--cuda-graph needs a CUDA device, and this run is on the CPU"):
        train(dataclasses.replace(tiny, cuda_graph=True), digits)


def test_tensorboard_gets_the_terms(tiny: Config, digits: Images) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    train(dataclasses.replace(tiny, epochs=1, tensorboard=True), digits)
    assert any((Path(tiny.out) / "tensorboard").iterdir())


def test_tensorboard_that_is_not_installed_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match="--tensorboard needs the package tensorboard: pip install tensorboard"):
        imc.training.events.EventFiles(True)
