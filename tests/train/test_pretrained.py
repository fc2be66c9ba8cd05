from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from imc.config import Config
from imc.data import Images
from imc.errors import UserError
from imc.models.resnet import ResNet
from imc.pretrained import load_pretrained
from imc.run_folder import load_run
from imc.train import train


def small() -> ResNet:
    return ResNet("resnet18", 1, stem="cifar", bn_momentum=0.1)


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(5)
    return small().state_dict()


@pytest.mark.parametrize("prefix", ["", "module.encoder.", "backbone."])
@pytest.mark.parametrize("wrapper", [None, "state_dict"])
def test_a_state_dict_under_any_prefix(
    prefix: str, wrapper: str | None, state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    content = {prefix + name: x for name, x in state.items()} | {"head.weight": torch.zeros(2)}
    torch.save(content if wrapper is None else {wrapper: content, "epoch": 3}, tmp_path / "other.pth")
    encoder = small()
    matched = load_pretrained(encoder, tmp_path / "other.pth")
    assert matched.missing == []
    assert matched.prefix == prefix
    assert all(torch.equal(x, state[name]) for name, x in encoder.state_dict().items())


def test_another_shape_is_reported_and_the_rest_is_taken(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    save_file({**state, "conv1.weight": torch.zeros(64, 3, 7, 7)}, tmp_path / "x.safetensors")
    encoder = small()
    before = encoder.conv1.weight.clone()
    matched = load_pretrained(encoder, tmp_path / "x.safetensors")
    assert matched.missing == ["conv1.weight"]
    assert "not found: conv1.weight" in str(matched)
    assert torch.equal(encoder.conv1.weight, before)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"fc.weight": torch.zeros(2)}, r"has no tensor of the encoder's names and shapes: it holds fc\.weight \[2\]"),
        ({"epoch": 3}, "holds no state dict"),
        (None, "cannot be read as a state dict"),
    ],
)
def test_nothing_that_matches_is_refused(content: object, says: str, tmp_path: Path) -> None:
    path = tmp_path / "other.pt"
    if content is None:
        path.write_bytes(b"text")
    else:
        torch.save(content, path)
    with pytest.raises(UserError, match=says):
        load_pretrained(small(), path)


def test_a_frozen_encoder_stays_as_it_was(
    tiny: Config, digits: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imc.train._report", lambda *_: {})
    first = dataclasses.replace(tiny, out=str(tmp_path / "first"), epochs=1)
    train(first, digits)
    train(dataclasses.replace(tiny, init=first.out, freeze_encoder=True), digits)
    before, after = (load_run(config.out).model.state_dict() for config in (first, tiny))
    changed = {name.split(".")[0] for name, x in before.items() if not torch.equal(x, after[name])}
    assert changed == {"projection", "prototypes", "classifier"}
