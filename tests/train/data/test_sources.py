"""What a text after --data stands for: a published set by its bare name, else a path, whatever that is called."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
from pathlib import Path

import layouts
import numpy as np
import pytest

from imc.config import Config
from imc.data import NAMES, absolute, load, name_of
from imc.errors import UserError
from imc.train import plan

GREY = layouts.draw(40, 28, 1, 1)[0]


def folder_of_images(folder: Path) -> Path:
    for index, pixels in enumerate(GREY):
        layouts.write_image(folder / f"{index}.png", pixels)
    return folder


SPELLINGS = ("./{}", "../here/{}", "{}/.", "{absolute}", "link")


@pytest.mark.parametrize(
    ("name", "source"), [*((name, "{}/") for name in NAMES), *(("fashion-mnist", spelling) for spelling in SPELLINGS)]
)
def test_the_name_of_a_folder_chooses_no_recipe(
    name: str, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_of_images(tmp_path / "here" / name)
    (tmp_path / "here" / "link").symlink_to(folder, target_is_directory=True)
    monkeypatch.chdir(tmp_path / "here")
    chosen = plan(Config(data=source.format(name, absolute=folder), clusters=5))
    plain = plan(Config(data=str(folder_of_images(tmp_path / "photos")), clusters=5))
    assert chosen.to_dict() | {"data": ""} == plain.to_dict() | {"data": ""}
    assert load(str(folder)).name == f"{name}-folder"


@pytest.mark.parametrize(("name", "suffix"), [("cifar10", ".npy"), ("digits", ".npz"), ("mnist", ".NPY")])
def test_the_name_of_a_file_chooses_no_recipe(name: str, suffix: str, tmp_path: Path) -> None:
    for stem in (name, "scans"):
        with (tmp_path / f"{stem}{suffix}").open("wb") as file:
            np.savez(file, x=GREY) if suffix == ".npz" else np.save(file, GREY)
    chosen, plain = (plan(Config(data=str(tmp_path / f"{stem}{suffix}"), clusters=5)) for stem in (name, "scans"))
    assert chosen.to_dict() | {"data": ""} == plain.to_dict() | {"data": ""}


def test_a_bare_name_is_the_published_set_and_says_what_else_has_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "same name" not in load("digits").note
    folder_of_images(tmp_path / "digits")
    data = load("digits")
    assert len(data.train.images) == 1797
    assert data.note.endswith("; the folder of the same name here is read as --data ./digits")
    folder_of_images(tmp_path / "mnist")
    with pytest.raises(UserError, match=r"--data mnist is not in .*; the folder of the same name here is read as"):
        load("mnist", root=tmp_path / "root")
    layouts.write_idx(tmp_path / "root" / "mnist")
    assert "the folder of the same name here is read as --data ./mnist" in load("mnist", root=tmp_path / "root").note
    monkeypatch.chdir(tmp_path / "root")
    assert "same name" not in load("mnist", root=tmp_path / "root").note


@pytest.mark.parametrize(
    ("source", "hint"),
    [
        ("CIFAR10", "cifar10"),
        ("cifar10/", "cifar10"),
        ("Fashion_MNIST", "fashion-mnist"),
        ("Photos", "photos"),
        ("photo", "photos"),
        ("./phtos/", "photos"),
        ("photos/Cats", "photos/cats"),
        ("photos\\cats", "photos/cats"),
        (" photos", "photos"),
        ("'photos'", "photos"),
        ("my\\ scans", "my scans"),
        ("file://{here}/my%20scans", "{here}/my scans"),
    ],
)
def test_what_is_nearly_there_is_offered(
    source: str, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "photos" / "cats").mkdir(parents=True)
    (tmp_path / "my scans").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        load(source.format(here=tmp_path))
    assert str(error.value).endswith(f"; did you mean {hint.format(here=tmp_path)}?")


@pytest.mark.parametrize("source", ["C:\\photos", "~nobody-here/x", "nothing/like/it", "x" * 5000, "a\0b"])
def test_what_is_not_there_is_one_sentence(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"is not there; accepted are digits"):
        load(source)
    with pytest.raises(UserError, match=r"is not there; accepted are digits|must be a text without null characters"):
        plan(Config(data=source, clusters=5))


@pytest.mark.parametrize("name", ["with space", "ünïcode", "new\nline", "a'b\"c", "-x", "%d{}", "x.png", "y.npz"])
def test_any_name_of_a_folder_is_read(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder_of_images(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    data = load(f"./{name}")
    assert (data.name, len(data.train.images)) == (name, len(GREY))


def test_archives_of_images_are_to_be_unpacked(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        archive.write(folder_of_images(tmp_path / "x") / "0.png", "photos/0.png")
    (tmp_path / "photo.JPG").write_bytes(b"x")
    with pytest.raises(UserError, match=r"of files, .npy and .npz are accepted; of images, give the folder"):
        load(str(tmp_path / "photo.JPG"))
    with pytest.raises(UserError, match=r"of files, .npy and .npz are accepted; unpack it, and give the folder"):
        load(str(tmp_path / "photos.zip"))


@pytest.mark.parametrize("hidden", ["__MACOSX/", ".ipynb_checkpoints/", "cifar-10-batches-py/.trash/", "@eaDir/"])
def test_hidden_members_of_an_archive_are_not_read(hidden: str, tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    layouts.write_cifar10_python(folder)
    expected = load("cifar10", root=tmp_path).train.images
    for path in list(folder.iterdir()):
        content = path.read_bytes()
        with tarfile.open(tmp_path / "x.tar", "a") as archive:
            for name, data in ((f"{hidden}{path.name}", b"not it"), (f"./{folder.name}/{path.name}", content)):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
        path.unlink()
    folder.rmdir()
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(gzip.compress((tmp_path / "x.tar").read_bytes()))
    assert (load("cifar10", root=tmp_path).train.images == expected).all()


def test_a_source_is_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder_of_images(tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert absolute("photos") == absolute("./photos/") == absolute("~/photos") == str(tmp_path / "photos")
    assert [absolute(name) for name in NAMES] == list(NAMES)
    assert name_of("~/photos") == name_of("photos/") == "photos"
    assert absolute("gone") == "gone"


def test_one_class_is_no_number_of_clusters(tmp_path: Path) -> None:
    folder_of_images(tmp_path / "x" / "cat")
    with pytest.raises(UserError, match="--clusters must say how many to find: x has one class"):
        plan(Config(data=str(tmp_path / "x"), labels_from_folders=True))
