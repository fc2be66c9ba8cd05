from __future__ import annotations

from pathlib import Path

import layouts
import numpy as np
import pytest
import torch

from imc.data import load, name_of
from imc.errors import UserError

GREY = np.arange(2 * 5 * 6, dtype=np.uint8).reshape(2, 5, 6)
COLOUR = np.arange(2 * 5 * 6 * 3, dtype=np.uint8).reshape(2, 5, 6, 3)


@pytest.mark.parametrize("array", [GREY, GREY[..., None], COLOUR], ids=["MHW", "MHW1", "MHW3"])
@pytest.mark.parametrize(
    "kind",
    {
        "as it is": lambda array: array,
        "int64": lambda array: array.astype(np.int64),
        "float32": lambda array: (array / 255).astype(np.float32),
        "float16": lambda array: (array / 255).astype(np.float16),
        "whole numbers as floats": lambda array: array.astype(np.float64),
        "big-endian": lambda array: array.astype(">u2"),
        "Fortran": np.asfortranarray,
        "channels first": lambda array: np.moveaxis(array, -1, 1) if array.ndim == 4 else array,
    }.items(),
    ids=lambda entry: entry[0],
)
def test_every_accepted_array_is_the_same_images(array: np.ndarray, kind: tuple[str, object], tmp_path: Path) -> None:
    np.save(tmp_path / "own.npy", kind[1](array))
    np.savez(tmp_path / "own.npz", x=kind[1](array))
    expected = torch.from_numpy(array.reshape(2, 5, 6, -1).copy())
    for suffix in ("npy", "npz"):
        data = load(str(tmp_path / f"own.{suffix}"))
        assert torch.equal(data.train.images, expected)
        assert (data.name, data.train.labels, data.train.files) == ("own", None, None)
        assert "own: 2 " in data.note


@pytest.mark.parametrize("dtype", ["uint16", ">u2", "int32", "uint64", "float32", "float64"])
@pytest.mark.parametrize(("largest", "bits"), [(255, 8), (256, 9), (1000, 10), (4095, 12), (65535, 16)])
def test_whole_numbers_are_scaled_by_the_bits_of_the_largest(
    largest: int, bits: int, dtype: str, tmp_path: Path
) -> None:
    values = np.linspace(0, largest, 60).round().reshape(2, 5, 6)
    np.savez(tmp_path / "x.npz", x=values.astype(dtype), x_test=(values // 2).astype(dtype))
    np.save(tmp_path / "x.npy", values.astype(dtype))
    white = (1 << bits) - 1
    for suffix in ("npz", "npy"):
        data = load(str(tmp_path / f"x.{suffix}"))
        np.testing.assert_array_equal(data.train.images[..., 0].numpy(), np.rint(values * 255 / white))
        assert data.train.pixel_bits == bits
        said = f"values up to {largest:,} taken as {bits} bits, 0..{white:,} as black to white" in data.note
        assert said == (bits > 8 or dtype.startswith("float"))
    test = load(str(tmp_path / "x.npz")).test
    assert test is not None
    np.testing.assert_array_equal(test.images[..., 0].numpy(), np.rint(values // 2 * 255 / white))


def test_fractions_of_two_splits_have_one_range(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=GREY * 1.0, x_test=np.minimum(GREY, 1) * 1.0)
    test = load(str(tmp_path / "x.npz")).test
    assert test is not None
    np.testing.assert_array_equal(test.images[..., 0].numpy(), np.minimum(GREY, 1))


def test_booleans_are_black_and_white(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", GREY > 30)
    np.testing.assert_array_equal(load(str(tmp_path / "x.npy")).train.images[..., 0].numpy(), 255 * (GREY > 30))


def test_bytes_in_the_right_order_stay_on_the_disk(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", COLOUR)
    images = load(str(tmp_path / "x.npy")).train.images
    images.zero_()
    assert (np.load(tmp_path / "x.npy") == COLOUR).all()


@pytest.mark.parametrize(
    ("names", "split"),
    [
        (("images", "labels", "test_images", "test_labels"), True),
        (("x", "y", None, None), False),
        (("x_train", "y_train", "x_test", "y_test"), True),
        (("train_images", "train_labels", "test_images", "test_labels"), True),
    ],
)
def test_an_npz_may_hold_labels_and_a_test_split(names: tuple[str | None, ...], split: bool, tmp_path: Path) -> None:
    images, labels = layouts.draw(6, 8, 3, 3)
    labels[:3] = [0, 1, 2]
    parts = (images, labels[:, None], images[:2], labels[:2, None])
    np.savez(tmp_path / "x.npz", **{name: part for name, part in zip(names, parts, strict=True) if name})
    data = load(str(tmp_path / "x.npz"))
    assert data.train.labels is not None
    assert data.train.labels.tolist() == labels.tolist()
    assert data.train.class_names == ("0", "1", "2")
    assert (data.test is not None) == split
    if data.test is not None:
        assert data.test.labels is not None
        assert data.test.labels.tolist() == labels[:2].tolist()
        assert torch.equal(data.test.images, data.train.images[:2])


def test_labels_may_be_texts(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", images=GREY, labels=np.array(["dog", "cat"]))
    train = load(str(tmp_path / "x.npz")).train
    assert train.labels is not None
    assert (train.class_names, train.labels.tolist()) == (("cat", "dog"), [1, 0])


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"pictures": GREY}, "it has no array named images or x or x_train or train_images, but pictures"),
        ({"x": GREY[0]}, r"x has shape \[5, 6\]; accepted are"),
        ({"x": GREY[:0]}, r"x has shape \[0, 5, 6\]; accepted are"),
        ({"x": np.zeros((2, 5, 6, 4), np.uint8)}, r"x has shape \[2, 5, 6, 4\]; accepted are"),
        ({"x": GREY + 0.5}, "x has fractions 0.5..59.5; accepted are fractions 0..1 and whole numbers 0..65535"),
        ({"x": GREY / 255, "x_test": GREY / 2}, "x has fractions 0.0..0.2"),
        ({"x": GREY.astype(np.int64) + 65536}, "x has whole numbers 65536..65595; accepted are"),
        ({"x": GREY - np.inf}, "x has fractions -inf..-inf"),
        ({"x": GREY * np.nan}, "x has fractions nan..nan"),
        ({"x": GREY.astype(np.int16) - 1}, "x has whole numbers -1..58"),
        ({"x": GREY.astype(np.float32) - 1}, "x has whole numbers -1.0..58.0"),
        ({"x": GREY.astype(np.complex64)}, "x has dtype complex64"),
        ({"x": GREY, "y": np.zeros(3, int)}, "x has 2 images, y has 3 labels"),
        ({"x": GREY, "y": np.zeros((2, 2), int)}, r"y must be whole numbers or texts \[M\], got int64 \[2, 2\]"),
        ({"x": GREY, "x_test": COLOUR}, r"its images of train and test differ in shape: \(5, 6, 1\) and \(5, 6, 3\)"),
    ],
)
def test_what_an_npz_may_not_hold_is_said(arrays: dict[str, np.ndarray], says: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(UserError, match=f"--data cannot use '.*x.npz': {says}"):
        load(str(tmp_path / "x.npz"))


def test_a_data_set_is_named_after_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = [name_of(source) for source in ("cifar10", "a/b.c/photos.v2/", "a/x.npz", ".", "/")]
    assert names == ["cifar10", "photos.v2", "x", tmp_path.name, "images"]


def test_a_label_below_0_is_none(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=GREY, y=np.array([-1, 7]), x_test=GREY, y_test=np.array([5, -2]))
    data = load(str(tmp_path / "x.npz"))
    assert (data.train.labels.tolist(), data.test.labels.tolist()) == ([-1, 1], [0, -1])
    assert data.train.class_names == ("5", "7")
