from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from imc.cli import main
from imc.config import Config
from imc.data import Images
from imc.errors import UserError
from imc.models.encoders import CustomEncoder, DigitsEncoder
from imc.models.pretrained import Matched, load_pretrained
from imc.models.resnet import ResNet
from imc.runs.model import load_run
from imc.train import train

State = dict[str, Tensor]


def narrow(name: str = "resnet18", channels: int = 3, stem: str = "cifar", width: int = 4) -> ResNet:
    return ResNet(name, channels, stem=stem, bn_momentum=0.1, width=width)


def random_state(encoder: nn.Module, seed: int = 5) -> State:
    """Numbers that no initialisation gives."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(x.shape, generator=generator) if x.is_floating_point() else torch.tensor(3)
        for name, x in encoder.state_dict().items()
    }


@pytest.fixture(scope="module")
def state() -> State:
    return random_state(narrow())


def loaded(content: object, path: Path, encoder: nn.Module, **options: Any) -> Matched:
    torch.save(content, path / "other.pth")
    return load_pretrained(encoder, path / "other.pth", **options)


def require_loaded(encoder: nn.Module, state: Mapping[str, Tensor]) -> None:
    assert encoder.state_dict().keys() == state.keys()
    for name, x in encoder.state_dict().items():
        assert torch.equal(x, state[name]), name


def under(prefix: str, state: Mapping[str, Tensor]) -> State:
    return {prefix + name: x for name, x in state.items()}


def renamed(state: Mapping[str, Tensor], *pairs: tuple[str, str]) -> State:
    result = dict(state)
    for pattern, replacement in pairs:
        result = {re.sub(pattern, replacement, name): x for name, x in result.items()}
    return result


def shifted(prefix: str, by: int, ending: str) -> Callable[[re.Match[str]], str]:
    return lambda match: f"{prefix}{int(match[1]) + by}{ending}"


def sequence(state: Mapping[str, Tensor], prefix: str, *positions: int | str) -> State:
    """The state of a sequence of stem, norm and four stages at these positions, with a head behind it."""
    parts = ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4")
    places = dict(zip(parts, positions, strict=True))
    moved = {}
    for name, x in state.items():
        part, _, rest = name.partition(".")
        moved[f"{prefix}{places[part]}.{rest}"] = x
    return moved


def transformers(state: Mapping[str, Tensor]) -> State:
    moved = {}
    for name, x in state.items():
        name = re.sub(r"^conv1", "embedder.embedder.convolution", name)
        name = re.sub(r"^bn1", "embedder.embedder.normalization", name)
        name = re.sub(r"^layer(\d)\.(\d)", lambda m: f"encoder.stages.{int(m[1]) - 1}.layers.{m[2]}", name)
        name = re.sub(r"\.conv(\d)", lambda m: f".layer.{int(m[1]) - 1}.convolution", name)
        name = re.sub(r"\.bn(\d)", lambda m: f".layer.{int(m[1]) - 1}.normalization", name)
        name = name.replace("downsample.0", "shortcut.convolution").replace("downsample.1", "shortcut.normalization")
        moved[f"resnet.{name}"] = x
    return moved


def imc_swav(state: Mapping[str, Tensor]) -> State:
    """As the code released for IMC-SwAV saves it: the stem in a sequence, and everything a second time in a list."""
    stem = renamed(state, (r"^conv1\.", "covn1.0."), (r"^bn1\.", "covn1.1."))
    again = sequence(state, "layer_list.", "0.0", "0.1", 1, 2, 3, 4)
    return under("encoder.module.model.", {**stem, **again}) | {"auxhead.aux_head.0.weight": torch.zeros(2, 2)}


LAYOUTS: dict[str, Callable[[State], object]] = {
    "torchvision": lambda s: {**s, "fc.weight": torch.zeros(1000, 32), "fc.bias": torch.zeros(1000)},
    "timm": lambda s: {"arch": "resnet18", "state_dict": s, "args": None},
    "DataParallel": lambda s: {"net": under("module.", s)},
    "compiled": lambda s: under("_orig_mod.module.", s),
    "compiled inside": lambda s: under("encoder._orig_mod.", s),
    "FSDP": lambda s: {
        "model": under("_fsdp_wrapped_module.", renamed(s, (r"^(layer\d\.\d)\.", r"\1._fsdp_wrapped_module.")))
    },
    "checkpointed": lambda s: renamed(s, (r"^(layer\d\.\d)\.", r"\1._checkpoint_wrapped_module.")),
    "Lightning": lambda s: {"pytorch-lightning_version": "2", "state_dict": under("model.backbone.", s), "loops": {}},
    "MoCo v2": lambda s: {"state_dict": {**under("module.encoder_q.", s), "module.queue": torch.zeros(2, 2)}},
    "MoCo v3": lambda s: {"state_dict": under("module.base_encoder.", s)},
    "SimCLR, beside a tensor": lambda s: {"state_dict": under("convnet.", s), "temperature": torch.tensor(0.5)},
    "SwAV": lambda s: {**under("module.", s), "module.prototypes.weight": torch.zeros(30, 8)},
    "Barlow Twins": lambda s: {"epoch": 1, "model": under("module.backbone.", s), "optimizer": {"state": {0: {}}}},
    "BYOL": lambda s: {"online_backbone": s},
    "BYOL of lucidrains": lambda s: under("online_encoder.net.", s),
    "OBoW": lambda s: {"network": s, "meta": {"epoch": 1}},
    "CC": lambda s: {"net": under("resnet.", s), "optimizer": {}, "epoch": 1},
    "IIC": lambda s: under("module.trunk.", s),
    "SCAN": lambda s: {
        "model": under("backbone.", renamed(s, ("downsample", "shortcut"))) | {"cluster_head.0.weight": torch.ones(2)},
        "head": 0,
    },
    "VISSL": lambda s: {"classy_state_dict": {"base_model": {"model": {"trunk": under("_feature_blocks.", s)}}}},
    "IMC-SwAV": lambda s: {"model": imc_swav(s), "hyperparams": {"n_classes": 10}, "epoch": 1},
    "covn1": lambda s: renamed(s, (r"^conv1", "covn1")),
    "transformers": transformers,
    "sequence of torchvision": lambda s: sequence(s, "", 0, 1, 4, 5, 6, 7),
    "sequence without a pool": lambda s: {"state_dict": sequence(s, "module.f.", 0, 1, 3, 4, 5, 6)},
    "sequence of lightly": lambda s: renamed(sequence(s, "backbone.", 0, 1, 2, 3, 4, 5), ("downsample", "shortcut")),
    "sequence of fastai": lambda s: {"model": sequence(s, "0.", 0, 1, 4, 5, 6, 7) | {"1.4.weight": torch.ones(2, 2)}},
    "list": lambda s: [s, {"weight": torch.zeros(2)}],
    "no counters": lambda s: {name: x for name, x in s.items() if "num_batches" not in name},
    "tied": lambda s: {"model": s, "same": dict(s)},
    "of halves": lambda s: {name: x.half() if x.is_floating_point() else x for name, x in s.items()},
    "of bfloat16": lambda s: {name: x.bfloat16() if x.is_floating_point() else x for name, x in s.items()},
    "of doubles": lambda s: {name: x.double() if x.is_floating_point() else x for name, x in s.items()},
    "not contiguous": lambda s: {
        name: x.to(memory_format=torch.channels_last) if x.dim() == 4 else x for name, x in s.items()
    },
    "parameters": lambda s: {name: nn.Parameter(x, requires_grad=False) for name, x in s.items()},
    "own checkpoint": lambda s: {"format": 1, "model": under("encoder.", s), "optimizer": {"state": {}}},
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_a_layout_of_others_fits_wholly(layout: str, name: str, tmp_path: Path) -> None:
    encoder = narrow(name)
    state = random_state(encoder)
    matched = loaded(LAYOUTS[layout](state), tmp_path, encoder)
    rounded = {"of halves": torch.float16, "of bfloat16": torch.bfloat16}.get(layout, torch.float32)
    expected = {n: x.to(rounded).float() if x.is_floating_point() else x for n, x in state.items()}
    if layout == "no counters":
        expected |= {n: torch.tensor(0) for n in state if n.endswith("num_batches_tracked")}
    require_loaded(encoder, expected)
    assert matched.others == []
    assert str(matched).startswith(f"all {len(matched.names)} tensors of the encoder")


TWO = {
    "MoCo": ("state_dict.module.encoder_q.", "state_dict.module.encoder_k."),
    "MoCo v3": ("state_dict.module.base_encoder.", "state_dict.module.momentum_encoder."),
    "BYOL": ("online_encoder.net.", "target_encoder.net."),
    "solo-learn": ("state_dict.backbone.", "state_dict.momentum_backbone."),
    "DINO": ("teacher.backbone.", "student.module.backbone."),
    "timm": ("state_dict_ema.", "state_dict."),
    "model_ema": ("model_ema.module.", "model.module."),
    "SimSiam after distillation": ("state_dict.module.encoder.", "state_dict.module.teacher."),
}


@pytest.mark.parametrize("pair", TWO)
@pytest.mark.parametrize("first", [0, 1])  # in the file
def test_of_two_encoders_that_of_the_methods_authors_is_taken(
    pair: str, first: int, state: State, tmp_path: Path
) -> None:
    taken, other = TWO[pair]
    content = [under(taken, state), under(other, random_state(narrow(), seed=6))]
    encoder = narrow()
    matched = loaded({**content[first], **content[1 - first]}, tmp_path, encoder)
    require_loaded(encoder, state)
    assert matched.prefix == taken
    assert f"(there is '{other}' too, which --init-prefix takes)" in str(matched)
    assert "taken is the one that the authors of such methods evaluate" in str(matched)


def test_the_prefix_chooses(state: State, tmp_path: Path) -> None:
    content = {"teacher": under("backbone.", random_state(narrow(), seed=6)), "student": under("backbone.", state)}
    for prefix in ("student", "student.backbone", "student.backbone."):
        encoder = narrow()
        assert loaded(content, tmp_path, encoder, prefix=prefix).prefix == "student.backbone."
        require_loaded(encoder, state)
    with pytest.raises(UserError, match=r"no such encoder in .*; there is 'teacher\.backbone\.' and 'student\."):
        loaded(content, tmp_path, narrow(), prefix="stud")


def test_two_of_which_nothing_tells_which_are_refused(state: State, tmp_path: Path) -> None:
    content = {"a": state, "b": random_state(narrow(), seed=6)}
    with pytest.raises(UserError, match=r"holds 2 encoders that fit: 'a\.' and 'b\.'; choose one with --init-prefix"):
        loaded(content, tmp_path, narrow())


OPTIONS = {
    ("resnet50", 3, "imagenet"): "with --encoder resnet50 --stem imagenet it fits",
    ("resnet34", 3, "cifar"): "with --encoder resnet34 --stem cifar it fits",
    ("resnet18", 3, "imagenet"): "with --encoder resnet18 --stem imagenet it fits",
    ("resnet18", 1, "cifar"): r"with --encoder resnet18 --stem cifar and images of 1 channel \(these have 3\) it fits",
}


@pytest.mark.parametrize("kind", OPTIONS)
def test_the_options_that_would_fit_are_named(kind: tuple[str, int, str], tmp_path: Path) -> None:
    with torch.device("meta"):
        state = ResNet(*kind[:2], stem=kind[2], bn_momentum=0.1).state_dict()
    expanded = {f"module.{name}": torch.zeros(()).expand(x.shape) for name, x in state.items()}
    encoder = narrow(width=64)
    before = {name: x.clone() for name, x in encoder.state_dict().items()}
    with pytest.raises(UserError, match=OPTIONS[kind]) as caught:
        loaded(expanded, tmp_path, encoder)
    assert "\n" not in str(caught.value)
    require_loaded(encoder, before)


def without(*patterns: str) -> Callable[[State], State]:
    return lambda s: {n: x for n, x in s.items() if not any(re.search(pattern, n) for pattern in patterns)}


def replaced(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[State], State]:
    return lambda s: {**s, name: change(s[name])}


UNFIT: dict[str, tuple[Callable[[State], object], str]] = {
    "a missing layer": (without(r"^layer4\.1"), "has 108 of 120 .*; not there: layer4.1.conv1.weight"),
    "a missing tensor": (without(r"^layer1\.0\.bn1\.running_var"), "not there: layer1.0.bn1.running_var$"),
    "a normalisation without statistics": (without("running_"), "not there: bn1.running_mean"),
    "another shape": (replaced("conv1.weight", lambda x: x[:, :1]), r"conv1.weight is \[4, 1, 3, 3\] there and \[4, 3"),
    "turned": (replaced("layer2.0.conv1.weight", lambda x: x.transpose(0, 1)), r"is \[4, 8, 3, 3\] there and \[8, 4"),
    "a deeper network": (
        lambda s: {**s, "layer3.2.conv1.weight": torch.zeros(16, 16, 3, 3)},
        "there and not here: layer3.2.conv1.weight",
    ),
    "a fifth stage": (lambda s: {**s, "layer5.0.conv1.weight": torch.zeros(1)}, "not here: layer5.0.conv1.weight"),
    "squeeze and excitation": (lambda s: {**s, "layer1.0.se.fc1.weight": torch.zeros(1)}, "not here: layer1.0.se.fc1"),
    "convolutions with a bias": (lambda s: {**s, "conv1.bias": torch.zeros(4)}, "there and not here: conv1.bias"),
    "a deep stem": (
        lambda s: {**renamed(s, (r"^conv1\.", "conv1.0.")), "conv1.3.weight": torch.zeros(4, 4, 3, 3)},
        "there and not here: conv1.3.weight",
    ),
    "ModifiedResNet of CLIP": (
        lambda s: under("visual.", {**s, "conv1.weight": torch.zeros(2, 3, 3, 3), "conv2.weight": s["bn1.bias"]}),
        r"under 'visual\.'; conv1.weight is \[2, 3, 3, 3\] there",
    ),
    "a sequence of five stages": (
        lambda s: {**sequence(s, "", 0, 1, 4, 5, 6, 7), "8.0.conv1.weight": torch.zeros(1)},
        "does not hold the encoder|tensors of the encoder",
    ),
    "NaN": (replaced("bn1.bias", lambda x: x * torch.nan), "bn1.bias holds NaN or infinity"),
    "beyond float32": (replaced("bn1.bias", lambda x: x.double() + 1e300), "bn1.bias holds NaN or infinity"),
    "a negative variance": (replaced("bn1.running_var", lambda x: x - 2), "bn1.running_var, a variance, holds numbers"),
    "whole numbers": (replaced("conv1.weight", lambda x: x.to(torch.int8)), "conv1.weight is of int8, where"),
    "complex numbers": (replaced("conv1.weight", lambda x: x.to(torch.complex64)), "conv1.weight is of complex64"),
    "quantised": (
        replaced("conv1.weight", lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8)),
        "not there: conv1.weight",
    ),
    "sparse": (replaced("layer1.0.conv1.weight", lambda x: x.to_sparse()), "not there: layer1.0.conv1.weight"),
    "a name twice": (lambda s: {**s, "_orig_mod.bn1.bias": s["bn1.bias"] + 1}, "two tensors that are named bn1.bias"),
    "two halves": (
        lambda s: {"a": without("layer4")(s), "b": {n: x for n, x in s.items() if "layer4" in n}},
        r"has 90 of 120 tensors of the encoder, under 'a\.'",
    ),
    "nothing like it": (lambda s: {"fc.weight": torch.zeros(2)}, r"does not hold the encoder: it has fc.weight \[2\]"),
    "detectron2": (
        lambda s: renamed(s, (r"^conv1", "stem.conv1"), (r"^bn1", "stem.conv1.norm"), (r"^layer(\d)", r"res\1")),
        "tensors of the encoder|does not hold the encoder",
    ),
    "no tensors": (lambda s: {"epoch": 3}, "holds no tensors"),
    "codes of a terminal": (lambda s: {"\x1b[1mfc\n": torch.zeros(2)}, r"it has \\x1b\[1mfc\\n \[2\]"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("kind", UNFIT)
def test_what_is_not_wholly_the_encoder_is_refused_and_nothing_is_taken(
    kind: str, state: State, tmp_path: Path
) -> None:
    change, says = UNFIT[kind]
    encoder = narrow()
    before = {name: x.clone() for name, x in encoder.state_dict().items()}
    with pytest.raises(UserError, match=says) as caught:
        loaded(change(state), tmp_path, encoder)
    assert str(caught.value).isprintable()
    assert str(caught.value).startswith(f"--init {tmp_path / 'other.pth'} ")
    require_loaded(encoder, before)


@pytest.mark.parametrize("name", ["nowhere.pth", "", "empty", "text.pt"])
def test_what_cannot_be_read_is_one_sentence(name: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.pt").write_text("text")
    with pytest.raises(
        UserError, match=r"is not there|is a folder without model\.safetensors|cannot be read: it is no"
    ):
        load_pretrained(narrow(), tmp_path / name)


def test_a_module_of_ones_own_takes_its_file_with_or_without_wrapping(state: State, tmp_path: Path) -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = narrow()

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

    for content in (
        state,
        under("net.", state),
        under("encoder.module.net.", state),
        sequence(state, "", 0, 1, 4, 5, 6, 7),
    ):
        encoder = CustomEncoder(Wrapped(), 3, 32)
        loaded({**content, "head.weight": torch.zeros(2)}, tmp_path, encoder)
        require_loaded(encoder, under("module.net.", state))


def test_a_module_whose_names_are_not_a_resnets(tmp_path: Path) -> None:
    def build() -> nn.ModuleDict:
        return nn.ModuleDict({"conv1": nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 3)), "bn1": nn.Linear(3, 3)})

    state = random_state(build())
    encoder = build()
    loaded(under("module.", state), tmp_path, encoder)
    require_loaded(encoder, state)


def small(**sizes: Any) -> DigitsEncoder:
    options = {"widths": (4, 8), "pool_after": 1, "pooled_size": 2, "feature_dim": 16, "bn_momentum": 0.1, **sizes}
    return DigitsEncoder(1, **options)


@pytest.mark.parametrize("file", ["", "model.safetensors", "checkpoint.pt"])
def test_a_run_of_this_package(file: str, trained: Path) -> None:
    encoder = small()
    assert "all" in str(load_pretrained(encoder, trained / file))
    require_loaded(encoder, load_run(trained).model.encoder.state_dict())


def test_an_unfinished_run_gives_its_checkpoint(run_copy: Path) -> None:
    (run_copy / "model.safetensors").unlink()
    assert load_pretrained(small(), run_copy).prefix == "model.encoder."


def test_what_makes_the_encoder_of_a_run_another_is_named(trained: Path) -> None:
    config = load_run(trained).config
    with pytest.raises(UserError, match=r"that run had --widths 4 8, this one has 4 16$"):
        load_pretrained(small(widths=(4, 16)), trained, config=dataclasses.replace(config, widths=(4, 16)))
    same_shapes = dataclasses.replace(config, pool_after=2)
    matched = load_pretrained(small(pool_after=2), trained, config=same_shapes)
    assert matched.notes == ["that run had --pool-after 1, this one has 2"]
    assert load_pretrained(small(), trained, config=config).notes == []


def test_safetensors_and_home(state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file(state, tmp_path / "x.safetensors")
    monkeypatch.setenv("HOME", str(tmp_path))
    encoder = narrow()
    load_pretrained(encoder, Path("~/x.safetensors"))
    require_loaded(encoder, state)


def test_the_command_refuses_in_one_line_and_says_what_it_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"state_dict": random_state(narrow())}, tmp_path / "other.pth")
    argv = ["train", "--epochs", "1", "--out", str(tmp_path / "run"), "--init"]
    assert main([*argv, str(tmp_path / "other.pth")]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"imc train: --init {tmp_path / 'other.pth'} does not ")
    assert main(["train", "--init-prefix", "teacher"]) == 2
    assert "--init-prefix needs --init" in capsys.readouterr().err


def test_a_frozen_encoder_stays_as_it_was(
    tiny: Config, digits: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("imc.train._report", lambda *_: {})
    first = dataclasses.replace(tiny, out=str(tmp_path / "first"), epochs=1)
    train(first, digits)
    train(dataclasses.replace(tiny, init=first.out, freeze_encoder=True), digits)
    assert f"--init {first.out}: all 17 tensors of the encoder, under 'encoder.'\n" in capsys.readouterr().err
    before, after = (load_run(config.out).model.state_dict() for config in (first, tiny))
    changed = {name.split(".")[0] for name, x in before.items() if not torch.equal(x, after[name])}
    assert changed == {"projection", "prototypes", "classifier"}
