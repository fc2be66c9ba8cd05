from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from imc.errors import UserError
from imc.features import files
from imc.features.files import holds_features, read_features
from imc.models.standardise import Standardise


def saved(path: Path, **arrays: Any) -> str:
    np.savez(path, **arrays)
    return str(path)


def test_an_array_stays_as_it_was_stored(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float16)
    np.save(tmp_path / "a.npy", values)
    data = read_features([str(tmp_path / "a.npy")])
    assert data.train.images.dtype == torch.float16
    assert (data.train.images.numpy() == values).all()
    assert (data.name, data.train.are_features, data.train.columns) == ("a", True, (3,))


@pytest.mark.parametrize("dtype", [">f4", ">f8", "<u2", "<u4", "longdouble", "bool", "i1"])
def test_every_real_dtype_is_read(tmp_path: Path, dtype: str) -> None:
    values = np.array([[0, 1, 1], [1, 0, 1]]).astype(dtype)
    np.save(tmp_path / "a.npy", values)
    np.savez(tmp_path / "a.npz", features=values)
    for name in ("a.npy", "a.npz"):
        assert (read_features([str(tmp_path / name)]).train.images.double().numpy() == values.astype(float)).all()


def test_names_and_labels(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.eye(3))
    np.save(tmp_path / "y.npy", np.array([7, 5, -1]))
    (tmp_path / "names.txt").write_text("x.jpg\ny.jpg\nz.jpg\n")
    (tmp_path / "y.txt").write_text("cat\ndog\ncat\n")
    source = [str(tmp_path / "a.npy")]
    data = read_features(source, files=str(tmp_path / "names.txt"), labels=str(tmp_path / "y.npy"))
    assert data.train.files == ("x.jpg", "y.jpg", "z.jpg")
    assert data.train.labels is not None
    assert (data.train.labels.tolist(), data.train.class_names) == ([1, 0, -1], ("5", "7"))
    assert read_features(source, labels=str(tmp_path / "y.txt")).train.class_names == ("cat", "dog")


def test_an_archive_holds_all_of_it(tmp_path: Path) -> None:
    path = saved(
        tmp_path / "a.npz",
        embeddings=np.eye(3),
        y=np.array(["cat", "dog", "cat"]),
        files=np.array(["p", "q", "r"]),
        x_test=np.ones((2, 3)),
        y_test=np.array(["dog", "dog"]),
    )
    data = read_features([path])
    assert data.train.files == ("p", "q", "r")
    assert data.train.class_names == ("cat", "dog")
    assert data.test is not None
    assert data.test.labels is not None
    assert data.test.labels.tolist() == [1, 1]


@pytest.mark.parametrize("memory", [1 << 40, 0], ids=["in memory", "on the disk"])
def test_several_files_lie_side_by_side(tmp_path: Path, memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "machine_memory", lambda: memory)
    monkeypatch.setenv("IMC_CACHE", str(tmp_path / "cache"))
    parts = [np.random.default_rng(i).normal(size=(5, columns)).astype(np.float32) for i, columns in enumerate((3, 2))]
    for number, part in enumerate(parts):
        np.save(tmp_path / f"{number}.npy", part)
    for _ in range(2):
        data = read_features([str(tmp_path / "0.npy"), str(tmp_path / "1.npy")])
        assert (data.train.images.numpy() == np.hstack(parts)).all()
        assert data.train.columns == (3, 2)


def bad(tmp_path: Path, array: Any) -> str:
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    with pytest.raises(UserError) as error:
        read_features([str(tmp_path / "a.npy")])
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_rows_that_are_not_finite_are_named(tmp_path: Path, value: float) -> None:
    array = np.ones((20, 3))
    array[[4, 9], [0, 2]] = value
    assert "rows 4, 9 (from 0)" in bad(tmp_path, array)
    array[5:] = value
    assert "rows 4, 5, 6, 7, 8 and 11 more" in bad(tmp_path, array)


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.ones(4), r"shape [4]; accepted is [rows, columns]"),
        (np.ones((4, 2, 3)), "averaged"),
        (np.ones((4, 8, 8, 3)), "--data"),
        (np.ones((0, 3)), "none 0"),
        (np.ones((3, 0)), "none 0"),
        (np.ones((3, 2), complex), "complex128"),
        (np.array([["a", "b"]]), "<U1"),
        (np.array([[1, "a"], [None, 2]], object), "Python objects"),
    ],
)
def test_what_is_no_matrix_of_numbers(tmp_path: Path, array: Any, said: str) -> None:
    assert said in bad(tmp_path, array)


def test_what_does_not_belong_together(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones((4, 2)))
    np.save(tmp_path / "b.npy", np.ones((3, 2)))
    np.save(tmp_path / "y.npy", np.arange(3))
    (tmp_path / "names.txt").write_text("x\ny\nz\n")
    a = str(tmp_path / "a.npy")
    for options, said in (
        ({"sources": [a, str(tmp_path / "b.npy")]}, "has 4 rows, and"),
        ({"sources": [a], "labels": str(tmp_path / "y.npy")}, "has 3 entries, and the features have 4 rows"),
        ({"sources": [a], "files": str(tmp_path / "names.txt")}, "has 3 entries"),
        ({"sources": [a], "files": str(tmp_path / "none.txt")}, "cannot be read"),
        ({"sources": [a], "labels": str(tmp_path / "none.npy")}, "--labels .* is not there"),
        ({"sources": [str(tmp_path / "A.npy")]}, "did you mean"),
        ({"sources": [str(tmp_path / "names.txt")]}, "accepted are .npy and .npz"),
        ({"sources": [saved(tmp_path / "c.npz", other=np.ones((2, 2)))]}, "no array named"),
    ):
        with pytest.raises(UserError, match=said):
            read_features(**options)  # type: ignore[arg-type]


def test_damaged_files(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones((40, 2)))
    whole = (tmp_path / "a.npy").read_bytes()
    for content in (b"", whole[:60], whole[:-8], b"PK" + whole):
        (tmp_path / "a.npy").write_bytes(content)
        with pytest.raises(UserError, match="cannot use"):
            read_features([str(tmp_path / "a.npy")])


def test_which_sources_are_features(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", np.ones((4, 2)))
    np.save(tmp_path / "images.npy", np.ones((4, 8, 8), np.uint8))
    assert holds_features(str(tmp_path / "rows.npy"))
    assert holds_features(saved(tmp_path / "rows.npz", features=np.ones((4, 2))))
    assert not holds_features(str(tmp_path / "images.npy"))
    assert not holds_features(saved(tmp_path / "images.npz", images=np.ones((4, 8, 8))))
    assert not holds_features("digits")


@pytest.mark.parametrize("scaling", ["length", "columns", "none"])
def test_standardised_rows(scaling: str) -> None:
    rows = 1e4 + 100 * torch.randn(300, 6, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 7)
    encoder = Standardise((4, 2), scaling)
    encoder.fit(rows)
    scaled = encoder(rows)
    assert scaled.mean(dim=0).abs().max() < 1e-2
    assert float(scaled.square().mean()) == pytest.approx(1, abs=1e-2)
    if scaling == "columns":
        assert (scaled.square().mean(dim=0) - 1).abs().max() < 1e-2
    if scaling == "length":
        assert torch.allclose(encoder(rows * 3), scaled, atol=1e-2)


@pytest.mark.parametrize("scaling", ["length", "columns", "none"])
@pytest.mark.parametrize("value", [0.0, 0.1, 1e6])
def test_columns_without_spread_are_zero(scaling: str, value: float) -> None:
    encoder = Standardise((3,), scaling)
    encoder.fit(torch.full((50, 3), value))
    assert (encoder(torch.full((2, 3), value)) == 0).all()
