"""Which processors are taken to multiply bfloat16, and where `--amp auto` then computes in it."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from imc.config import Config
from imc.machine.precision import multiplies_bfloat16
from imc.training.placement import choose_amp

CPU = torch.device("cpu")


def has(monkeypatch: pytest.MonkeyPatch, *names: str, held_to: str = "") -> None:
    """Let the processor have these instructions, and oneDNN be held to some."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(names, True))
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", held_to)


@pytest.mark.parametrize(
    ("names", "held_to", "expected"),
    [
        (("avx2",), "", False),
        (("avx2", "avx512_f", "avx512_vnni"), "", False),
        (("avx512_f", "avx512_bf16"), "", True),
        (("avx512_f", "avx512_bf16", "amx_bf16"), "", True),
        (("neon", "bf16"), "", True),
        (("neon", "fp16_arith"), "", False),
        (("avx512_bf16", "amx_bf16"), "AVX2", False),
        (("avx512_bf16", "amx_bf16"), "avx512_core", False),
        (("avx512_bf16", "amx_bf16"), "AVX512_CORE_BF16", True),
        (("avx512_bf16", "amx_bf16"), "ALL", True),
    ],
    ids=str,
)
def test_processors(names: tuple[str, ...], held_to: str, expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    has(monkeypatch, *names, held_to=held_to)
    assert multiplies_bfloat16(CPU) is expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"encoder": "resnet18"}, "bf16"),
        ({"encoder": "resnet50"}, "bf16"),
        ({"encoder": "digits"}, "off"),
        ({"encoder": "custom"}, "off"),
        ({"encoder": None}, "off"),  # rows of features
        ({"encoder": "resnet18", "thread_independent": True}, "off"),
        ({"encoder": "resnet18", "amp": "off"}, "off"),
        ({"encoder": "digits", "amp": "bf16"}, "bf16"),
    ],
    ids=str,
)
def test_encoders(given: dict[str, Any], expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options = dataclasses.replace(Config(), **given)
    has(monkeypatch, "amx_bf16")
    assert choose_amp(options, CPU) == expected
    has(monkeypatch, "avx2")
    assert choose_amp(options, CPU) == given.get("amp", "off")
