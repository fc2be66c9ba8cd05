"""cuDNN chooses by time for a run on a GPU, and is afterwards set as it was."""

from __future__ import annotations

import pytest
import torch

from imc.machine.arithmetic import arithmetic
from imc.machine.convolutions import fastest_convolutions

CASES = [
    ("cuda", False, None, True),
    ("cpu", False, None, False),
    ("cuda", True, None, False),  # bits that repeat were asked for
    ("cuda", False, "7.0", False),  # AMD
]


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize(("device", "deterministic", "hip", "chosen"), CASES)
def test_the_setting_holds_for_the_run_alone(
    device: str, deterministic: bool, hip: str | None, chosen: bool, before: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", deterministic)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", before)
    monkeypatch.setattr(torch.version, "hip", hip)
    inside = []

    def run() -> None:
        with fastest_convolutions(torch.device(device)):
            inside.append(torch.backends.cudnn.benchmark)
            raise KeyError

    with pytest.raises(KeyError):
        run()
    assert inside == [chosen or before]
    assert torch.backends.cudnn.benchmark == before


def test_bits_that_repeat_by_the_newer_switch() -> None:
    torch.use_deterministic_algorithms(True)
    try:
        with fastest_convolutions(torch.device("cuda")):
            assert not torch.backends.cudnn.benchmark
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(("deterministic", "said"), [(False, "the fastest"), (True, "as torch is set")])
def test_a_checkpoint_says_which(deterministic: bool, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", deterministic)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "a GPU")
    assert arithmetic(torch.device("cuda"), "bf16")["convolutions"] == said
