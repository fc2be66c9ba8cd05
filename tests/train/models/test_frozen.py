from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from imc.data.resize import resized
from imc.errors import UserError
from imc.machine.precision import multiplies_bfloat16
from imc.models.frozen import FrozenEncoder, Pretrained


class Small(nn.Module):
    """A convolutional network of vectors."""

    def __init__(self, channels: int = 3, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.layers = nn.Sequential(nn.Conv2d(channels, 16, 3, stride=2), nn.BatchNorm2d(16), nn.ReLU())

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images).mean((2, 3))


def pretrained(network: nn.Module, side: int = 12) -> Pretrained:
    return Pretrained("small", network.eval(), side, "bicubic", (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))


def images(count: int, height: int, width: int, channels: int = 3) -> Tensor:
    return torch.randint(256, (count, height, width, channels), dtype=torch.uint8)


def test_features_are_those_of_the_network_on_normalised_images() -> None:
    network, batch = Small(), images(5, 12, 12)
    encoder = FrozenEncoder(pretrained(network), amp="off")
    mean, std = torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1), torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1)
    with torch.no_grad():
        expected = network((batch.permute(0, 3, 1, 2) / 255 - mean) / std)
    found = encoder.embed_batch(batch)
    assert (encoder.feature_dim, encoder.dtype, found.dtype) == (16, torch.float32, torch.float32)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_other_sizes_are_resized_and_grey_becomes_colour() -> None:
    encoder = FrozenEncoder(pretrained(Small()), amp="off")
    batch = images(3, 20, 31, channels=1)
    square = resized(batch, 12, "bicubic").expand(-1, -1, -1, 3)
    torch.testing.assert_close(encoder.embed_batch(batch), encoder.embed_batch(square), rtol=0, atol=0)


@pytest.mark.skipif(not multiplies_bfloat16(torch.device("cpu")), reason="this processor does not multiply bfloat16")
def test_bfloat16_is_close_and_is_told() -> None:
    batch = images(8, 12, 12)
    exact, rounded = (FrozenEncoder(pretrained(Small()), amp=amp) for amp in ("off", "bf16"))
    assert rounded.dtype == torch.bfloat16
    found, expected = rounded.embed_batch(batch), exact.embed_batch(batch)
    assert found.dtype == torch.float32
    assert torch.cosine_similarity(found, expected).min() > 0.999
    assert exact.identity != rounded.identity


def test_a_network_that_bfloat16_changes_computes_in_float32() -> None:
    class Sensitive(Small):
        def forward(self, images: Tensor) -> Tensor:
            return torch.cos(1e4 * super().forward(images))  # of which bfloat16 keeps no digit

    assert FrozenEncoder(pretrained(Sensitive()), amp="bf16").dtype == torch.float32


def test_the_identity_is_of_the_weights_and_of_what_the_network_wants() -> None:
    first, same, other = (FrozenEncoder(pretrained(Small(seed=seed))).identity for seed in (0, 0, 1))
    assert first == same
    assert first["weights_sha256"] != other["weights_sha256"]
    assert FrozenEncoder(pretrained(Small()), side=16).identity != first


@pytest.mark.parametrize(
    ("network", "said"),
    [
        (
            nn.Conv2d(3, 8, 3),
            r"must give one vector an image, \[B, D\]; of 2 images it gives \[2, 8, 10, 10\]; average",
        ),
        (Small(channels=1), r"must take images float32 \[B, 3, S, S\]; of 12x12 pixels it says: .*channels"),
        (Small(channels=4), r"must take images float32 \[B, 3, S, S\]; of 12x12 pixels it says: .*channels"),
        (nn.Conv2d(3, 8, 99), r"must take images .* of 12x12 pixels it says: .*[Kk]ernel size"),
        (nn.Flatten(0), r"it gives \[864\]$"),
        (nn.MaxPool2d(2, return_indices=True), "it gives tuple$"),
    ],
    ids=["maps", "one channel", "four channels", "too small", "one dimension", "tuple"],
)
def test_what_is_no_encoder_is_refused_in_one_sentence(network: nn.Module, said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        FrozenEncoder(pretrained(network))
    assert "\n" not in str(error.value)


def test_a_network_of_nan_is_refused() -> None:
    network = Small()
    network.layers[0].weight.data[0, 0, 0, 0] = torch.nan
    with pytest.raises(UserError, match="gives NaN or infinity for images of 12x12"):
        FrozenEncoder(pretrained(network))
