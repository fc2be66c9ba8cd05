"""Every published layout, in small: what was written is what is read."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import layouts
import numpy as np
import pytest
import torch

from imc.data import NAMES, Images, load
from imc.data.download import Archive
from imc.data.named import NAMED
from imc.errors import UserError

LAYOUTS: dict[str, tuple[str, Callable[[Path], list[layouts.Written]]]] = {
    "cifar-10-batches-py": ("cifar10", layouts.write_cifar10_python),
    "cifar-10-batches-bin": ("cifar10", layouts.write_cifar10_binary),
    "cifar-100-python": ("cifar100", layouts.write_cifar100_python),
    "cifar-100-binary": ("cifar100", layouts.write_cifar100_binary),
    "mnist": ("mnist", layouts.write_idx),
    "FashionMNIST/raw": ("fashion-mnist", lambda folder: layouts.write_idx(folder, compress=True)),
    "stl10_binary": ("stl10", layouts.write_stl10),
    "tiny-imagenet-200": ("tiny-imagenet", layouts.write_tiny_imagenet),
    "imagenette2-160": ("imagenette", layouts.write_imagenette),
}


def assert_holds(images: Images, written: list[layouts.Written]) -> None:
    pixels, labels = (np.concatenate(parts) for parts in zip(*written, strict=True))
    assert images.images.is_contiguous()
    assert images.images.dtype == torch.uint8
    np.testing.assert_array_equal(images.images.numpy(), pixels)
    if images.labels is not None:
        assert images.labels.dtype == torch.int64
        assert images.labels.tolist() == labels.tolist()


@pytest.mark.parametrize("place", LAYOUTS)
def test_each_layout_is_read_as_it_was_written(place: str, tmp_path: Path) -> None:
    name, write = LAYOUTS[place]
    written = write(tmp_path / place)
    data = load(name, root=tmp_path)
    assert data.name == data.train.name == name
    assert data.test is not None
    splits = 2 if name == "stl10" else len(written) - 1
    assert_holds(data.train, written[: 1 if name == "stl10" else splits])
    assert_holds(data.test, written[1:2] if name == "stl10" else written[splits:])
    assert (data.mean, data.std) == NAMED[name].statistics
    assert len(data.mean) == data.train.images.shape[-1]
    assert f"{name}: {len(data.train.images)} train" in data.note
    assert str(tmp_path / place) in data.note
    assert data.train.labels is not None
    assert data.train.labels.max() < len(data.train.class_names)


def test_the_unlabeled_split_of_stl10(tmp_path: Path) -> None:
    written = layouts.write_stl10(tmp_path / "stl10_binary")
    data = load("stl10", root=tmp_path)
    assert data.unlabeled is not None
    assert data.unlabeled.labels is None
    assert_holds(data.unlabeled, written[2:])
    assert "3 train, 2 test and 4 unlabeled" in data.note
    (tmp_path / "stl10_binary" / "unlabeled_X.bin").unlink()
    assert load("stl10", root=tmp_path).unlabeled is None


@pytest.mark.parametrize(
    ("folder", "archive", "name"),
    [
        ("cifar-10-batches-py", "cifar-10-python.tar.gz", "cifar10"),
        ("cifar-10-batches-bin", "cifar-10-binary.tar.gz", "cifar10"),
        ("cifar-100-python", "cifar-100-python.tar.gz", "cifar100"),
        ("cifar-100-binary", "cifar-100-binary.tar.gz", "cifar100"),
    ],
)
def test_an_archive_is_read_without_unpacking_it(folder: str, archive: str, name: str, tmp_path: Path) -> None:
    LAYOUTS[folder][1](tmp_path / folder)
    unpacked = load(name, root=tmp_path)
    (tmp_path / archive).write_bytes(layouts.tar(tmp_path / folder))
    shutil.rmtree(tmp_path / folder)
    packed = load(name, root=tmp_path)
    assert torch.equal(packed.train.images, unpacked.train.images)
    assert packed.train.class_names == unpacked.train.class_names
    assert [path.name for path in tmp_path.iterdir()] == [archive]


def test_cifar20_is_cifar100_with_coarse_labels(tmp_path: Path) -> None:
    for write, folder in ((layouts.write_cifar100_python, "a"), (layouts.write_cifar100_binary, "b")):
        written = write(tmp_path / folder / ("cifar-100-python" if folder == "a" else "cifar-100-binary"))
        fine, coarse = (load(name, root=tmp_path / folder) for name in ("cifar100", "cifar20"))
        assert torch.equal(fine.train.images, coarse.train.images)
        assert coarse.train.labels is not None
        assert coarse.train.labels.tolist() == (written[0][1] // 5).tolist()
        assert len(coarse.train.class_names) == 20
        assert fine.train.class_names[3] == "fine 3"


def test_classes_have_names_where_the_publisher_gives_them(tmp_path: Path) -> None:
    layouts.write_tiny_imagenet(tmp_path / "tiny-imagenet-200")
    layouts.write_imagenette(tmp_path / "imagenette")
    assert load("tiny-imagenet", root=tmp_path).train.class_names == ("goldfish", "bell toad")
    assert load("imagenette", root=tmp_path).train.class_names == ("tench", "parachute")


def test_a_set_is_found_where_people_keep_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layouts.write_cifar10_python(tmp_path / "cifar10" / "cifar-10-batches-py")
    monkeypatch.setenv("IMC_DATA", str(tmp_path))
    by_variable = load("cifar10")
    inside = load("cifar10", root=tmp_path / "cifar10" / "cifar-10-batches-py")
    assert torch.equal(by_variable.train.images, inside.train.images)


def test_the_files_of_fashion_mnist_are_not_taken_for_mnist(tmp_path: Path) -> None:
    layouts.write_idx(tmp_path / "fashion-mnist")
    with pytest.raises(UserError, match="--data mnist is not in"):
        load("mnist", root=tmp_path / "fashion-mnist")


@pytest.mark.parametrize("name", [name for name in NAMES if name != "digits"])
def test_an_absent_set_says_where_it_was_looked_for_and_what_to_do(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        load(name, root=tmp_path)
    for part in (f"--data {name} is not in {tmp_path}", NAMED[name].places[0], "--download", "by hand", "IMC_DATA"):
        assert part in str(error.value)


def test_every_name_can_be_loaded_or_fetched() -> None:
    assert set(NAMES) == {"digits", *NAMED}
    for entry in NAMED.values():
        assert entry.archives
        assert all(len(archive.md5) == 32 for archive in entry.archives)


def test_the_folder_of_a_published_set_is_no_folder_of_images(tmp_path: Path) -> None:
    layouts.write_cifar100_python(tmp_path / "cifar-100-python")
    with pytest.raises(UserError, match=r"is read by its name: cifar20 \(IMC_DATA the folder that holds"):
        load(str(tmp_path / "cifar-100-python"))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """A server of the folder ``offered``, on this machine."""
    (tmp_path / "offered").mkdir()

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "offered"))) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


@pytest.fixture
def archive(tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch) -> Archive:
    """STL-10 is what lies at ``published``, offered as an archive by the server."""
    layouts.write_stl10(tmp_path / "published" / "stl10_binary")
    content = layouts.tar(tmp_path / "published" / "stl10_binary")
    (tmp_path / "offered" / "stl10.tar.gz").write_bytes(content)
    offer = Archive(f"{server}/stl10.tar.gz", hashlib.md5(content).hexdigest(), "1 kB", unpacks_to="stl10_binary")
    monkeypatch.setitem(NAMED, "stl10", dataclasses.replace(NAMED["stl10"], archives=(offer,)))
    return offer


def test_download_fetches_checks_and_unpacks(tmp_path: Path, archive: Archive) -> None:
    root = tmp_path / "root"
    fetched = load("stl10", root=root, download=True)
    assert torch.equal(fetched.train.images, load("stl10", root=tmp_path / "published").train.images)
    assert {path.name for path in root.iterdir()} == {archive.name, "stl10_binary"}


def test_an_archive_put_there_by_hand_is_used_without_a_network(tmp_path: Path, archive: Archive) -> None:
    shutil.move(tmp_path / "offered", tmp_path / "root")
    assert len(load("stl10", root=tmp_path / "root", download=True).train.images) == 3


def test_without_a_network_download_says_what_to_put_where(tmp_path: Path, archive: Archive) -> None:
    (tmp_path / "offered" / archive.name).unlink()
    with pytest.raises(UserError, match=r"--download cannot fetch http://.*; without a network, put stl10.tar.gz from"):
        load("stl10", root=tmp_path / "root", download=True)


def test_an_archive_other_than_the_published_one_is_not_unpacked(tmp_path: Path, archive: Archive) -> None:
    with (tmp_path / "offered" / archive.name).open("ab") as file:
        file.write(b"more")
    with pytest.raises(UserError, match=f"whose md5 is not {archive.md5}"):
        load("stl10", root=tmp_path / "root", download=True)
    assert not list((tmp_path / "root").iterdir())


def test_download_is_for_published_sets(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--download is for published sets"):
        load(str(tmp_path), download=True)
