"""A user's folder of images: what is found, in which order, how it is decoded, and what is kept of it."""

from __future__ import annotations

import os
from pathlib import Path

import layouts
import numpy as np
import pytest
import torch
from PIL import Image

from imc.data import load
from imc.data.folders import default_size, natural_order
from imc.data.statistics import channel_statistics
from imc.errors import UserError


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three cats and two dogs of 40 x 40 pixels."""
    images, _ = layouts.draw(5, 40, 3, 1)
    for index, name in enumerate(("cat/img1", "cat/img2", "cat/img10", "dog/deep/er/a", "dog/b")):
        layouts.write_image(tmp_path / "photos" / f"{name}.png", images[index])
    return tmp_path / "photos"


def snapshot(folder: Path) -> list[tuple[str, int, int]]:
    return sorted((str(path), path.stat().st_mtime_ns, path.stat().st_size) for path in folder.rglob("*"))


def test_a_folder_needs_no_labels(photos: Path) -> None:
    before = snapshot(photos)
    data = load(str(photos))
    assert data.name == "photos"
    assert data.train.files == ("cat/img1.png", "cat/img2.png", "cat/img10.png", "dog/b.png", "dog/deep/er/a.png")
    assert data.train.images.shape == (5, 32, 32, 3)
    assert (data.train.labels, data.train.class_names, data.test) == (None, (), None)
    assert "5 images of 32x32 pixels" in data.note
    assert "found at 40x40 pixels (median)" in data.note
    assert snapshot(photos) == before


def test_sub_folders_are_labels_if_asked(photos: Path) -> None:
    data = load(str(photos), labels_from_folders=True)
    assert data.train.class_names == ("cat", "dog")
    assert data.train.labels is not None
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1]
    (photos / "cat" / "img1.png").rename(photos / "stray.png")
    with pytest.raises(UserError, match=r"needs every image in a sub-folder, 'stray.png' is in none"):
        load(str(photos), labels_from_folders=True)
    with pytest.raises(UserError, match="--labels-from-folders is for a folder of images"):
        load("digits", labels_from_folders=True)


@pytest.mark.parametrize("held_out", ["test", "val"])
def test_sub_folders_train_and_test_are_splits(photos: Path, held_out: str) -> None:
    (photos / "cat").rename(photos / "cats")
    (photos / "train").mkdir()
    (photos / "cats").rename(photos / "train" / "cat")
    (photos / held_out).mkdir()
    (photos / "dog").rename(photos / held_out / "dog")
    data = load(str(photos), labels_from_folders=True)
    assert data.test is not None
    assert data.train.labels is not None
    assert data.test.labels is not None
    assert (data.train.labels.tolist(), data.test.labels.tolist()) == ([0, 0, 0], [1, 1])
    assert data.train.class_names == data.test.class_names == ("cat", "dog")
    assert data.test.files == (f"{held_out}/dog/b.png", f"{held_out}/dog/deep/er/a.png")
    assert "3 train and 2 test" in data.note


def test_names_are_in_natural_order() -> None:
    names = ["img10.png", "img9.png", "Img2.png", "a/z.png", "img2b.png", "img002.png"]
    assert sorted(names, key=natural_order) == [
        "a/z.png",
        "Img2.png",
        "img002.png",
        "img2b.png",
        "img9.png",
        "img10.png",
    ]


def test_pixels_of_the_wanted_size_are_left_alone(tmp_path: Path) -> None:
    pixels, _ = layouts.draw(1, 32, 3, 1)
    layouts.write_image(tmp_path / "a.png", pixels[0])
    np.testing.assert_array_equal(load(str(tmp_path)).train.images.numpy(), pixels)


def test_the_centre_is_kept(tmp_path: Path) -> None:
    wide = np.zeros((32, 96, 3), np.uint8)
    wide[:, 32:64] = 200
    layouts.write_image(tmp_path / "a.png", wide)
    assert (load(str(tmp_path)).train.images == 200).all()


def test_a_folder_of_grey_images_has_one_channel(tmp_path: Path) -> None:
    grey, _ = layouts.draw(2, 40, 1, 1)
    for index in range(2):
        layouts.write_image(tmp_path / f"{index}.png", grey[index])
    data = load(str(tmp_path))
    assert data.train.images.shape == (2, 32, 32, 1)
    assert "grey" in data.note
    assert len(data.mean) == len(data.std) == 1
    Image.new("RGB", (40, 40)).save(tmp_path / "colour.png")
    assert load(str(tmp_path)).train.images.shape == (3, 32, 32, 3)


@pytest.mark.parametrize(("short", "size"), [(8, 32), (63, 32), (64, 64), (100, 96), (200, 128), (3000, 224)])
def test_the_default_size_does_not_enlarge(short: int, size: int) -> None:
    assert default_size(short) == size


@pytest.mark.parametrize("size", [3, 1025, 32.0, True])
def test_image_size_is_checked(size: int) -> None:
    with pytest.raises(UserError, match="--image-size must be an integer of at least 4 and of at most 1024, got"):
        load("digits", image_size=size)


def test_image_size_applies_to_every_source(photos: Path, tmp_path: Path) -> None:
    assert load("digits", image_size=16).train.images.shape == (1797, 16, 16, 1)
    assert load(str(photos), image_size=20).train.images.shape == (5, 20, 20, 3)
    constant = np.broadcast_to(np.arange(3, dtype=np.uint8)[:, None, None, None] * 100, (3, 10, 14, 3))
    np.save(tmp_path / "x.npy", constant)
    resized = load(str(tmp_path / "x.npy"), image_size=8).train.images
    assert resized.shape == (3, 8, 8, 3)
    assert torch.equal(resized.float().mean((1, 2, 3)), torch.tensor([0.0, 100.0, 200.0]))


def test_the_second_start_reads_the_cache(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load(str(photos))
    monkeypatch.setattr("imc.data.folders.decode", None)
    second = load(str(photos))
    assert torch.equal(first.train.images, second.train.images)
    assert (first.train.files, first.note) == (second.train.files, second.note)


def test_a_changed_folder_is_decoded_anew_and_its_old_entry_removed(photos: Path, cache: Path) -> None:
    load(str(photos))
    (photos / "dog" / "b.png").unlink()
    assert len(load(str(photos)).train.images) == 4
    os.utime(photos / "cat" / "img1.png", ns=(1, 1))
    load(str(photos))
    load(str(photos), image_size=16)
    assert sorted(path.suffix for path in cache.iterdir()) == [".json", ".json", ".npy", ".npy"]


def test_writing_to_the_images_does_not_change_the_cache(photos: Path) -> None:
    images = load(str(photos)).train.images
    images.zero_()
    assert load(str(photos)).train.images.any()


def test_mean_and_deviation_are_measured(photos: Path) -> None:
    data = load(str(photos))
    pixels = data.train.images.double() / 255
    assert data.mean == pytest.approx(pixels.mean((0, 1, 2)).tolist(), abs=1e-9)
    assert data.std == pytest.approx(pixels.std((0, 1, 2), correction=0).tolist(), abs=1e-9)


def test_a_sample_of_many_images_gives_their_mean_and_deviation(monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.randint(0, 256, (3000, 8, 8, 1), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    exact = channel_statistics(images)
    monkeypatch.setattr("imc.data.statistics.SAMPLE", 3000 * 8 * 8 // 4)
    sampled = channel_statistics(images)
    assert sampled != exact
    assert sampled[0] == pytest.approx(exact[0], abs=0.01)
    assert channel_statistics(torch.zeros(2, 4, 4, 3, dtype=torch.uint8)) == ((0.0,) * 3, (1.0,) * 3)
