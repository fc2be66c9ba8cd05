from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from imc.data import load
from imc.data.originals import original_files


def test_the_files_of_a_folder_are_found_whatever_they_are_called(tmp_path: Path) -> None:
    names = ["a.png", "more/b.png", "\udcff.png", "back\\slash.png", "\\udcff.png", "=c.png"]
    for index, name in enumerate(names):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), index).save(path)
    images = load(str(tmp_path / "photos"), image_size=8).train
    found = original_files(str(tmp_path / "photos"), images.files)
    assert found is not None
    shown = [int(image[0, 0, 0]) for image in images.images]
    for path, value in zip(found, shown, strict=True):
        assert os.path.samefile(path, tmp_path / "photos" / names[value])


def test_rows_of_features_may_be_paths_beside_them_or_from_the_root(tmp_path: Path) -> None:
    features = tmp_path / "features.npy"
    features.touch()
    assert original_files(str(features), ("a.png", "/b/c.png")) == [tmp_path / "a.png", Path("/b/c.png")]


def test_what_is_no_file_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert original_files(str(tmp_path), None) is None
    assert original_files("digits", ("a",)) is None
    assert original_files("cifar10", ("a",), tmp_path) is None
    assert original_files(str(tmp_path / "gone"), ("a.png",)) == [tmp_path / "gone" / "a.png"]
