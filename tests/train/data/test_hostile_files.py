"""Files that are damaged, hostile or not what they seem: skipped with a count, or refused in one sentence."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import struct
import tarfile
import time
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import layouts
import numpy as np
import pytest
from PIL import Image

from imc.data import load
from imc.data.cifar import unpickle
from imc.data.formats import DRAWINGS, NO_IMAGE, OTHER
from imc.errors import UserError
from imc.text import counted


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """A folder with two good images, for bad ones to join."""
    folder = tmp_path / "photos"
    images, _ = layouts.draw(2, 32, 3, 1)
    for index in range(2):
        layouts.write_image(folder / f"good{index}.png", images[index])
    return folder


def png_header(width: int, height: int) -> bytes:
    """A valid PNG that says it is of this size, and has 1 kB of pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1024))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def truncated(kind: str) -> bytes:
    content = io.BytesIO()
    Image.fromarray(layouts.draw(1, 64, 3, 1)[0][0]).save(content, kind)
    return content.getvalue()[: len(content.getvalue()) * 2 // 3]


BAD = {
    "notes.txt": (b"hello", OTHER),
    "text.png": (b"hello", NO_IMAGE),
    "empty.png": (b"", "empty"),
    "page.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", DRAWINGS),
    "script.jpg": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", DRAWINGS),
    "bomb.png": (png_header(100_000, 100_000), "over 128 x 2^20 pixels"),
    "tall.png": (png_header(1, 200_000_000), "over 128 x 2^20 pixels"),
    "lies.png": (png_header(5_000, 5_000), "damaged or cut short"),
    "cut.png": (truncated("PNG"), "damaged or cut short"),
    "cut.jpg": (truncated("JPEG"), "damaged or cut short"),
    "cut.webp": (truncated("WEBP"), "damaged or cut short"),
    "cut.tif": (truncated("TIFF"), "damaged or cut short"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_skipped_and_named(name: str, good: Path) -> None:
    content, reason = BAD[name]
    (good / name).write_bytes(content)
    for _ in range(2):  # decoded, and from the cache
        data = load(str(good))
        assert data.train.files == ("good0.png", "good1.png")
        assert f"skipped 1: {counted(1, reason)} (such as '{name}')" in data.note
    for path in good.glob("good*"):
        path.unlink()
    with pytest.raises(UserError, match=r"it holds no image that can be read; skipped 1: 1 "):
        load(str(good))


def test_reasons_are_counted(good: Path) -> None:
    for name, (content, _) in BAD.items():
        (good / name).write_bytes(content)
    note = load(str(good)).note
    assert note.count("such as") == 6
    for part in (
        "skipped 12: ",
        "1 no image by",
        "1 no image (",
        f"{counted(2, DRAWINGS)} (",
        "2 over",
        "1 empty",
        "5 damaged or cut short (such",
    ):
        assert part in note


def test_links_in_a_loop_end(good: Path) -> None:
    (good / "sub").mkdir()
    (good / "sub" / "loop").symlink_to(good, target_is_directory=True)
    (good / "self").symlink_to(good / "self")
    (good / "gone.png").symlink_to(good / "nothing")
    (good / "again.png").symlink_to(good / "good0.png")
    os.mkfifo(good / "pipe.png")
    data = load(str(good))
    assert data.train.files == ("again.png", "good0.png", "good1.png")
    assert "1 folder that a link leads to again (such as 'sub/loop')" in data.note
    assert "broken links or special files" in data.note


def test_names_that_are_not_utf8_are_escaped(good: Path) -> None:
    os.rename(os.fsencode(good / "good1.png"), os.fsencode(good) + b"/caf\xe9.png")
    (good / "new\nline.png").write_bytes(b"hello")
    data = load(str(good), labels_from_folders=False)
    assert data.train.files == (r"caf\xe9.png", "good0.png")
    assert "\n" not in data.note
    "".join((*data.train.files, data.note)).encode("utf-8")


def test_folders_that_cannot_be_opened_are_named(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (good / "locked").mkdir()
    scandir = os.scandir

    def refuse(path: Path) -> object:
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert "1 folder that cannot be opened (such as 'locked')" in load(str(good)).note


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="it holds no image that can be read; it is empty"):
        load(str(tmp_path))


def test_a_full_disk_is_a_sentence(good: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imc.data.cache.shutil.disk_usage", lambda _: type("Usage", (), {"free": 10}))
    with pytest.raises(UserError, match=r"only 0.0 GB are free; set IMC_CACHE to another folder"):
        load(str(good))
    assert not list(cache.iterdir())


def test_an_interrupted_decoding_leaves_nothing(good: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("imc.data.folders.decode", interrupt)
    with pytest.raises(KeyboardInterrupt):
        load(str(good))
    assert not list(cache.iterdir())


@pytest.mark.parametrize("length", [0, 100])
@pytest.mark.parametrize("suffix", [".npy", ".json"])
def test_a_truncated_entry_of_the_cache_is_made_anew(suffix: str, length: int, good: Path, cache: Path) -> None:
    expected = load(str(good)).train.images.clone()
    path = next(path for path in cache.iterdir() if path.suffix == suffix)
    path.write_bytes(path.read_bytes()[:length])
    assert (load(str(good)).train.images == expected).all()


@pytest.mark.parametrize("change", [(b"good1", b"good2"), (b"{", b"["), (b'"skipped": {}', b'"skipped": []')])
def test_a_changed_list_of_files_in_the_cache_is_made_anew(
    change: tuple[bytes, bytes], good: Path, cache: Path
) -> None:
    load(str(good))
    path = next(path for path in cache.iterdir() if path.suffix == ".json")
    assert change[0] in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(*change))
    assert load(str(good)).train.files == ("good0.png", "good1.png")


def test_what_a_killed_process_left_in_the_cache_is_removed(good: Path, cache: Path) -> None:
    load(str(good))
    stem = next(cache.glob("*.npy")).stem
    for name, age in (("old", 0), ("new", time.time())):
        (cache / f"{stem}.{name}.tmp").touch()
        os.utime(cache / f"{stem}.{name}.tmp", (age, age))
    (good / "good1.png").unlink()
    load(str(good))
    assert [path.name for path in cache.glob("*.tmp")] == [f"{stem}.new.tmp"]


def test_processes_may_decode_one_folder_at_once(good: Path, cache: Path) -> None:
    with ThreadPoolExecutor(4) as executor:
        loaded = list(executor.map(load, [str(good)] * 4))
    assert all((data.train.images == loaded[0].train.images).all() for data in loaded)
    assert len(list(cache.iterdir())) == 2


def test_a_split_without_images_is_refused(tmp_path: Path) -> None:
    layouts.write_imagenette(tmp_path / "imagenette")
    (tmp_path / "imagenette" / "val").rename(tmp_path / "elsewhere")
    with pytest.raises(
        UserError, match=r"val': it holds no image that can be read; .*cannot be opened \(such as 'val'\)"
    ):
        load("imagenette", root=tmp_path)


def test_huge_files_are_not_opened(good: Path) -> None:
    with (good / "huge.webp").open("wb") as file:
        file.truncate(2 << 30)
    assert "1 over 1 GB (such as 'huge.webp')" in load(str(good)).note


class Payload:
    def __reduce__(self) -> tuple[object, ...]:
        return os.system, ("touch executed",)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("name", ["data_batch_1", "batches.meta"])
def test_a_pickle_is_never_executed(name: str, protocol: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "cifar-10-batches-py"
    layouts.write_cifar10_python(folder)
    (folder / name).write_bytes(pickle.dumps({"labels": Payload()}, protocol=protocol))
    with pytest.raises(UserError, match=f"--data cannot use '.*{name}': it has no list of label"):
        load("cifar10", root=tmp_path)
    assert not (tmp_path / "executed").exists()


def cifar_pickle(value: bytes) -> bytes:
    """A dictionary whose one entry has these instructions as its key."""
    return b"\x80\x02}(" + value + b"K\x00u."


@pytest.mark.parametrize(
    "key",
    [
        b"K\x00" + b"\x85" * 200_000,  # ((((...)))), whose hash is a call of a call of a call
        b"K\x00" + b"\x85" + b"q\x00h\x00\x86" * 60,  # 2^60 ends of a tuple of pairs of itself
        b"](]e",
    ],
    ids=["deep", "doubled", "list"],
)
def test_keys_of_a_pickle_that_are_no_texts_are_left_out(key: bytes) -> None:
    assert unpickle(Path("x"), cifar_pickle(key)) == {}


def test_texts_of_a_pickle_that_are_no_bytes_or_no_unicode_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    layouts.write_cifar10_python(folder)
    batch, meta = (folder / "data_batch_1").read_bytes(), (folder / "batches.meta").read_bytes()
    pixels = batch.index(b"T", batch.index(b"_reconstruct"))
    length = struct.unpack("<I", batch[pixels + 1 : pixels + 5])[0]
    odd = "\u20ac".encode() * (length // 3) + b"x" * (length % 3)
    (folder / "data_batch_1").write_bytes(
        batch[:pixels] + b"X" + batch[pixels + 1 : pixels + 5] + odd + batch[pixels + 5 + length :]
    )
    with pytest.raises(UserError, match=r"data_batch_1': its data are not \d+ images"):
        load("cifar10", root=tmp_path)
    (folder / "data_batch_1").write_bytes(batch)
    text = b"\xed\xa0\x80"  # half of a pair of UTF-16
    (folder / "batches.meta").write_bytes(
        b"\x80\x02}(" + b"U\x0blabel_names" + b"](" + b"X\x03\x00\x00\x00" + text + b"e" + b"u."
    )
    with pytest.raises(UserError, match=r"batches\.meta': it has no list of label_names"):
        load("cifar10", root=tmp_path)
    (folder / "batches.meta").write_bytes(meta)
    load("cifar10", root=tmp_path)


def test_arrays_with_pickles_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    payload = np.array([Payload()], dtype=object)
    np.save("x.npy", payload, allow_pickle=True)
    np.savez("x.npz", images=payload)
    Path("raw.npy").write_bytes(pickle.dumps(Payload()))
    for name in ("x.npy", "x.npz"):
        with pytest.raises(UserError, match="it holds Python objects, whose loading could run code"):
            load(name)
    with pytest.raises(UserError, match=r"--data cannot use 'raw.npy'"):
        load("raw.npy")
    assert not Path("executed").exists()


def test_an_npz_bomb_is_refused_before_it_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imc.machine.memory.os.sysconf", lambda _: 1000)
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", bytes(1_000_000))
    monkeypatch.setattr(np, "load", None)
    with pytest.raises(UserError, match=r"its arrays take 0.0 GB, more than half the memory here"):
        load(str(tmp_path / "x.npz"))


def test_headers_that_lie_about_the_size_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((1, 2, 2), np.uint8))
    content = (tmp_path / "x.npy").read_bytes()
    (tmp_path / "x.npy").write_bytes(content.replace(b"(1, 2, 2), }       ", b"(9999999999, 2, 2)}"))
    with pytest.raises(UserError, match="it is damaged or cut short"):
        load(str(tmp_path / "x.npy"))
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.write(tmp_path / "x.npy", "images.npy")
    with pytest.raises(UserError, match=r"it says that it holds more than fits|it is damaged or cut short"):
        load(str(tmp_path / "x.npz"))


def test_a_gzip_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imc.data.idx.LIMIT", 1_000_000)
    layouts.write_idx(tmp_path / "mnist", compress=True)
    (tmp_path / "mnist" / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(bytes(10_000_000)))
    with pytest.raises(UserError, match="it holds more than the 1,000,000 bytes that such a file can have"):
        load("mnist", root=tmp_path)


@pytest.mark.parametrize("wanted", [True, False])
def test_a_tar_bomb_is_refused(wanted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imc.data.cifar.ARCHIVE_LIMIT", 1_000_000)
    with tarfile.open(tmp_path / "cifar-10-python.tar.gz", "w:gz") as archive:
        member = tarfile.TarInfo("data_batch_1" if wanted else "other")
        member.size = 20_000_000
        archive.addfile(member, io.BytesIO(bytes(member.size)))
    with pytest.raises(UserError, match="it holds more than the 1,000,000 bytes that such an archive can have"):
        load("cifar10", root=tmp_path)


def test_a_tar_of_headers_without_end_is_refused(tmp_path: Path) -> None:
    member = tarfile.TarInfo("././@LongLink")
    member.type = tarfile.GNUTYPE_LONGNAME
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(gzip.compress(member.tobuf(tarfile.GNU_FORMAT) * 5000))
    with pytest.raises(UserError, match=r"cifar-10-python.tar.gz': it is damaged \(maximum recursion depth"):
        load("cifar10", root=tmp_path)


def test_sparse_members_of_a_tar_count_by_what_they_unpack_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imc.data.cifar.ARCHIVE_LIMIT", 1_000_000)
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz", format=tarfile.PAX_FORMAT) as archive:
        for batch in (1, 2):
            member = tarfile.TarInfo(f"data_batch_{batch}")
            member.pax_headers = {"GNU.sparse.size": "600000", "GNU.sparse.map": "0,0", "GNU.sparse.major": "0"}
            archive.addfile(member)
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(content.getvalue())
    with pytest.raises(UserError, match="it holds more than the 1,000,000 bytes that such an archive can have"):
        load("cifar10", root=tmp_path)


@pytest.mark.parametrize("text", [0xD800, 0x110000])
def test_labels_that_are_no_unicode_are_refused(text: int, tmp_path: Path) -> None:
    labels = np.array([text, 65], np.uint32).view("<U1")
    np.savez(tmp_path / "x.npz", images=np.zeros((2, 8, 8), np.uint8), labels=labels)
    with pytest.raises(UserError, match="labels hold texts that are not Unicode"):
        load(str(tmp_path / "x.npz"))


def test_a_class_may_be_a_number_of_any_length(tmp_path: Path) -> None:
    layouts.write_tiny_imagenet(tmp_path / "tiny-imagenet-200")
    path = tmp_path / "tiny-imagenet-200" / "val" / "val_annotations.txt"
    path.write_text(path.read_text().replace("n01", "9" * 5000))
    assert len(load("tiny-imagenet", root=tmp_path).train.class_names) == 3


def test_an_array_larger_than_the_memory_stays_on_the_disk(tmp_path: Path) -> None:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    shape = (4 * memory // (64 * 64 * 3), 64, 64, 3)
    with (tmp_path / "x.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        file.truncate(file.tell() + int(np.prod(shape)))  # sparse
    images = load(str(tmp_path / "x.npy")).train.images
    assert images.shape == shape
    assert images[-1].sum() == 0


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"'cifar-10' is not there; accepted are digits, cifar10, .*; did you mean cifar10"
    ):
        load("cifar-10")
    (tmp_path / "x.txt").touch()
    with pytest.raises(UserError, match=r"of files, .npy and .npz are accepted"):
        load(str(tmp_path / "x.txt"))
    for odd in ("a\0b", "x" * 5000):
        with pytest.raises(UserError, match="--data"):
            load(odd)
