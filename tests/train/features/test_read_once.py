"""A folder that an encoder sees is decoded once, also for the pages' pictures; features of other code are others."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from imc.data import undecoded
from imc.features import embedding, encoded
from imc.features.encoded import PICTURE_SIDE
from imc.models.frozen import FrozenEncoder, Pretrained


class Mean(nn.Module):
    """The mean colour, to a power that no weight shows."""

    def __init__(self, power: float = 1.0) -> None:
        super().__init__()
        self.power = power

    def forward(self, images: Tensor) -> Tensor:
        return images.abs().pow(self.power).mean((2, 3))


def frozen(side: int = 80, power: float = 1.0) -> FrozenEncoder:
    return FrozenEncoder(Pretrained("mean", Mean(power), side, "bilinear", (0.5,) * 3, (0.5,) * 3), amp="off")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Six pictures, one of them grey, one damaged and one twice."""
    monkeypatch.setenv("IMC_CACHE", str(tmp_path / "cache"))
    (tmp_path / "photos").mkdir()
    random = np.random.default_rng(0)
    for number in range(4):
        coarse = random.integers(0, 256, (10, 12) if number == 3 else (10, 12, 3)).astype(np.uint8)
        pixels = coarse.repeat(10, axis=0).repeat(10, axis=1)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{number}.png")
    (tmp_path / "photos" / "again.png").write_bytes((tmp_path / "photos" / "0.png").read_bytes())
    (tmp_path / "photos" / "cut.png").write_bytes((tmp_path / "photos" / "1.png").read_bytes()[:200])
    return tmp_path / "photos"


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each file was decoded."""
    counts: Counter[str] = Counter()
    plain = undecoded.decode

    def decode(path: Path, *arguments: Any) -> Any:
        counts[path.name] += 1
        return plain(path, *arguments)

    monkeypatch.setattr(undecoded, "decode", decode)
    monkeypatch.setattr(encoded, "load", lambda *arguments, **options: pytest.fail("the folder is read again"))
    return counts


def test_every_file_is_decoded_once(folder: Path, decoded: Counter[str]) -> None:
    data = encoded.encoded(str(folder), frozen()).train
    assert set(decoded) == {"0.png", "1.png", "2.png", "3.png", "again.png", "cut.png"}
    assert set(decoded.values()) == {1}
    assert data.files == ("0.png", "1.png", "2.png", "3.png", "again.png")
    assert data.pictures is not None
    assert data.pictures.shape == (5, PICTURE_SIDE, PICTURE_SIDE, 3)
    assert torch.equal(data.pictures[0], data.pictures[4])
    expected = undecoded.decode(folder / "1.png", PICTURE_SIDE, 3)
    assert np.abs(data.pictures[1].numpy().astype(int) - expected).mean() < 6
    decoded.clear()
    again = encoded.encoded(str(folder), frozen()).train
    assert again.pictures is not None
    assert torch.equal(again.pictures, data.pictures)
    assert set(decoded) <= {"cut.png"}  # whatever is known by its content is not decoded again


def test_another_size_of_the_encoder_finds_the_pictures(folder: Path, decoded: Counter[str]) -> None:
    before = encoded.encoded(str(folder), frozen()).train.pictures
    after = encoded.encoded(str(folder), frozen(side=40)).train.pictures
    assert before is not None
    assert after is not None
    assert torch.equal(before, after)


def test_an_encoder_of_small_images_takes_larger_pictures(folder: Path, decoded: Counter[str]) -> None:
    pictures = encoded.encoded(str(folder), frozen(side=16)).train.pictures
    assert pictures is not None
    np.testing.assert_array_equal(pictures[2], undecoded.decode(folder / "2.png", PICTURE_SIDE, 3))


def test_where_memory_is_short_the_folder_is_read_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = encoded.encoded(str(folder), frozen()).train
    monkeypatch.setattr(embedding, "machine_memory", lambda: 100_000)
    data = encoded.encoded(str(folder), frozen()).train
    assert data.pictures is not None
    assert data.pictures.shape == expected.pictures.shape  # type: ignore[union-attr]
    assert data.files == expected.files


def test_code_that_no_weight_shows_has_features_of_its_own(folder: Path) -> None:
    one, other = (encoded.encoded(str(folder), frozen(power=power)).train.images for power in (1.0, 2.0))
    assert frozen().weights_sha256 == frozen(power=2.0).weights_sha256
    assert not torch.allclose(one, other)
    assert frozen().identity == frozen().identity


@pytest.mark.parametrize("changed", ["decoders", "torch"])
def test_another_version_of_what_reads_images_embeds_anew(
    changed: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert embedding.embed_images(str(folder), frozen()).computed == 5
    assert embedding.embed_images(str(folder), frozen()).computed == 0
    if changed == "decoders":
        monkeypatch.setattr(embedding, "decoders", lambda: {"pillow": "0.0"})
    else:
        monkeypatch.setattr(torch, "__version__", "0.0")
    assert embedding.embed_images(str(folder), frozen()).computed == 5
