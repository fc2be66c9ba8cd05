"""Features of folders and arrays by a tiny network: the right rows, computed once, whatever interrupts."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from imc.data.decode import decode
from imc.errors import UserError
from imc.features import embedding
from imc.features.embedding import Embedded, embed_images
from imc.models.frozen import FrozenEncoder, Pretrained

SIDE, COUNT = 16, 10


class Small(nn.Module):
    """Counts the images that it has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(2)

    def forward(self, images: Tensor) -> Tensor:
        return self.pool(images).flatten(1)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("IMC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def encoder() -> FrozenEncoder:
    return FrozenEncoder(Pretrained("small", Small(), SIDE, "bicubic", (0.5,) * 3, (0.5,) * 3), amp="off")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Photographs of two kinds and several sizes, one of them cut short behind its header, and what is no image."""
    folder, generator = tmp_path / "photos", np.random.default_rng(0)
    for index in range(COUNT):
        path = folder / "ab"[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        mode = (24 + index, 32) if index == 3 else (24 + index, 32, 3)
        Image.fromarray(generator.integers(256, size=mode, dtype=np.uint8)).save(path)
    whole = (folder / "a" / "4.png").read_bytes()
    (folder / "a" / "41.png").write_bytes(whole[: len(whole) // 2])
    (folder / "notes.txt").touch()
    return folder


def files() -> tuple[str, ...]:
    """The images in the order in which folders are read."""
    return tuple(f"{kind}/{index}.png" for kind in "ab" for index in range("ab".index(kind), COUNT, 2))


def expected(encoder: FrozenEncoder, folder: Path) -> Tensor:
    squares = [torch.tensor(decode(folder / name, SIDE, 3, interpolation="bicubic")) for name in files()]
    return encoder.embed_batch(torch.stack(squares))


def assert_equal(result: Embedded, rows: Tensor) -> None:
    torch.testing.assert_close(torch.tensor(np.array(result.features)), rows, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_rows_are_those_of_the_decoded_files(encoder: FrozenEncoder, folder: Path, batch_size: int) -> None:
    result = embed_images(str(folder), encoder, labels_from_folders=True, batch_size=batch_size)
    assert (result.files, result.splits, result.computed) == (files(), {"train": COUNT}, COUNT)
    assert result.labels is not None
    assert [result.class_names[label] for label in result.labels] == [name[0] for name in files()]
    assert "41.png" in result.note
    assert "notes.txt" in result.note
    assert_equal(result, expected(encoder, folder))


def test_only_new_content_is_computed(encoder: FrozenEncoder, folder: Path, tmp_path: Path) -> None:
    first = embed_images(str(folder), encoder)
    again = embed_images(str(folder), encoder)
    assert again.computed == 0
    assert np.array_equal(first.features, again.features)
    moved = tmp_path / "moved"
    shutil.copytree(folder / "b", moved / "renamed")
    Image.new("RGB", (40, 40), "red").save(moved / "new.png")
    assert embed_images(str(moved), encoder).computed == 1
    Image.new("RGB", (40, 40), "blue").save(moved / "new.png")
    changed = embed_images(str(moved), encoder)
    assert changed.computed == 1
    alike = decode(moved / "new.png", SIDE, 3, interpolation="bicubic")
    row = changed.files.index("new.png")
    assert np.allclose(changed.features[row], encoder.embed_batch(torch.tensor(alike)[None]), atol=1e-6)


def test_another_encoder_computes_its_own(encoder: FrozenEncoder, folder: Path) -> None:
    embed_images(str(folder), encoder)
    other = FrozenEncoder(Pretrained("small", Small(), SIDE, "bicubic", (0.4,) * 3, (0.5,) * 3), amp="off")
    result = embed_images(str(folder), other)
    assert result.computed == COUNT
    assert_equal(result, expected(other, folder))


@pytest.mark.parametrize("after", [0, 1, 3])
def test_an_interrupted_call_leaves_no_file_and_is_continued(
    encoder: FrozenEncoder, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    out, calls = tmp_path / "out" / "features.npy", 0
    add = embedding.FeatureCache.add

    def interrupted(self: Any, *arguments: Any) -> None:
        nonlocal calls
        if calls == after:
            raise KeyboardInterrupt
        calls += 1
        add(self, *arguments)

    monkeypatch.setattr(embedding.FeatureCache, "add", interrupted)
    with pytest.raises(KeyboardInterrupt, match=rf"{2 * after} of 11 images .* the same command goes on from there"):
        embed_images(str(folder), encoder, out=out, batch_size=2)
    assert not list(out.parent.iterdir())
    monkeypatch.undo()
    monkeypatch.setenv("IMC_CACHE", str(tmp_path / "cache"))
    result = embed_images(str(folder), encoder, out=out, batch_size=2)
    assert result.computed == COUNT - (0, 2, 4, 5)[after]  # the sixth file is cut short
    assert_equal(result, expected(encoder, folder))


def test_a_file_on_disk_is_what_is_held_in_memory(encoder: FrozenEncoder, folder: Path, tmp_path: Path) -> None:
    held = embed_images(str(folder), encoder)
    stored = embed_images(str(folder), encoder, out=tmp_path / "features.npy")
    assert isinstance(stored.features, np.memmap)
    assert stored.features.dtype == np.float32
    assert np.array_equal(held.features, np.load(tmp_path / "features.npy"))
    half = embed_images(str(folder), encoder, out=tmp_path / "half.npy", dtype=np.float16)
    assert half.features.dtype == np.float16
    assert np.array_equal(half.features, held.features.astype(np.float16))


@pytest.mark.parametrize("channels", [1, 3])
def test_arrays_of_both_splits_are_enlarged(encoder: FrozenEncoder, tmp_path: Path, channels: int) -> None:
    images = np.random.default_rng(0).integers(256, size=(9, 8, 8, channels), dtype=np.uint8)
    np.savez(tmp_path / "set.npz", x_train=images[:6], y_train=np.arange(6) % 3 - 1, x_test=images[6:])
    result = embed_images(str(tmp_path / "set.npz"), encoder, batch_size=4)
    assert result.splits == {"train": 6, "test": 3}
    assert result.labels is not None
    assert result.labels.tolist() == [-1, 0, 1, -1, 0, 1, -1, -1, -1]
    assert (result.files[0], result.files[6]) == ("train[0]", "test[0]")
    assert_equal(result, encoder.embed_batch(torch.from_numpy(images)))
    assert embed_images(str(tmp_path / "set.npz"), encoder).computed == 0


def test_views_are_of_the_content_and_the_seed(encoder: FrozenEncoder, folder: Path, tmp_path: Path) -> None:
    plain = embed_images(str(folder), encoder)
    views = embed_images(str(folder), encoder, views=3)
    assert views.features.shape == (COUNT, 3, encoder.feature_dim)
    assert np.array_equal(views.features[:, 0], embed_images(str(folder), encoder, views=2).features[:, 0])
    correlation = np.corrcoef(views.features[:, 0].ravel(), plain.features.ravel())[0, 1]
    assert correlation > 0.99  # by way of a larger square
    assert len(np.unique(views.features[:, :, 0])) == 3 * COUNT
    shutil.copytree(folder / "b", tmp_path / "part")
    shutil.rmtree(tmp_path / "cache")
    part = embed_images(str(tmp_path / "part"), encoder, views=3)
    assert np.allclose(part.features, views.features[COUNT // 2 :], atol=1e-5)
    assert not np.allclose(embed_images(str(folder), encoder, views=3, seed=1).features[:, 1], views.features[:, 1])


def test_a_folder_whose_images_cannot_be_read_is_one_sentence(encoder: FrozenEncoder, tmp_path: Path) -> None:
    whole = tmp_path / "whole.png"
    Image.effect_noise((64, 64), 50).save(whole)
    folder = tmp_path / "damaged"
    folder.mkdir()
    (folder / "cut.png").write_bytes(whole.read_bytes()[:1000])
    with pytest.raises(UserError, match="holds no image that can be read; skipped 1: 1 damaged or cut short"):
        embed_images(str(folder), encoder, out=tmp_path / "features.npy")
    assert not (tmp_path / "features.npy").exists()


def test_features_that_do_not_fit_are_refused_before_the_work(
    encoder: FrozenEncoder, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedding, "machine_memory", lambda: 100)
    with pytest.raises(UserError, match=r"more than half the memory here .*; imc embed writes them to a file"):
        embed_images(str(folder), encoder)
    assert embed_images(str(folder), encoder, out=tmp_path / "features.npy").computed == COUNT


def test_deep_pixels_are_scaled_as_in_the_whole_folder(encoder: FrozenEncoder, tmp_path: Path) -> None:
    """The largest value of all files decides what is white, so a row depends on it."""
    folder = tmp_path / "deep"
    folder.mkdir()
    ramp = np.arange(32 * 32, dtype=np.uint16).reshape(32, 32)
    Image.fromarray(ramp).save(folder / "a.png")
    dark = embed_images(str(folder), encoder).features[0]
    Image.fromarray(ramp * 64).save(folder / "b.png")
    both = embed_images(str(folder), encoder)
    assert both.computed == 2
    assert both.features[0].mean() < dark.mean() - 0.5
    assert np.allclose(embed_images(str(folder), encoder, pixel_bits=10).features[0], dark)
