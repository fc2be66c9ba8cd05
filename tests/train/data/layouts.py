"""Small copies of every layout that is read, and the pixels and labels that were written."""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Written = tuple[NDArray[np.uint8], NDArray[np.int64]]


def draw(count: int, side: int, channels: int, classes: int, seed: int = 0) -> Written:
    """Random images [count, side, side, channels] and labels."""
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (count, side, side, channels), dtype=np.uint8)
    return images, random.integers(0, classes, count)


def pickle_of_python_2(entries: dict[str, object]) -> bytes:
    """The layout of CIFAR's pickles: protocol 2, texts of bytes, an array by numpy's reconstruction."""
    return b"\x80\x02}(" + b"".join(_pickled(key) + _pickled(value) for key, value in entries.items()) + b"u."


def _pickled(value: object) -> bytes:
    if isinstance(value, str):
        return b"U" + bytes([len(value)]) + value.encode()
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    if isinstance(value, list):
        return b"](" + b"".join(map(_pickled, value)) + b"e"
    assert isinstance(value, np.ndarray)
    shape = b"(" + b"".join(_pickled(side) for side in value.shape) + b"t"
    dtype = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    raw = value.tobytes()
    start = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01"
    return start + shape + dtype + b"\x89T" + struct.pack("<I", len(raw)) + raw + b"tb"


def planes(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return images.transpose(0, 3, 1, 2).reshape(len(images), -1)


def write_cifar10_python(folder: Path) -> list[Written]:
    folder.mkdir(parents=True)
    written = [draw(4, 32, 3, 10, seed) for seed in range(6)]
    for name, (images, labels) in zip([f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"], written, strict=True):
        entries = {"batch_label": name, "labels": labels.tolist(), "data": planes(images), "filenames": ["a.png"] * 4}
        (folder / name).write_bytes(pickle_of_python_2(entries))
    (folder / "batches.meta").write_bytes(pickle_of_python_2({"label_names": [f"class {i}" for i in range(10)]}))
    return written


def write_cifar10_binary(folder: Path) -> list[Written]:
    folder.mkdir(parents=True)
    written = [draw(4, 32, 3, 10, seed) for seed in range(6)]
    for name, (images, labels) in zip([f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"], written, strict=True):
        records = np.concatenate([labels[:, None].astype(np.uint8), planes(images)], axis=1)
        (folder / f"{name}.bin").write_bytes(records.tobytes())
    (folder / "batches.meta.txt").write_text("\n".join(f"class {i}" for i in range(10)) + "\n\n")
    return written


def write_cifar100_python(folder: Path) -> list[Written]:
    folder.mkdir(parents=True)
    written = [draw(6, 32, 3, 100, seed) for seed in range(2)]
    for name, (images, labels) in zip(("train", "test"), written, strict=True):
        entries = {"fine_labels": labels.tolist(), "coarse_labels": (labels // 5).tolist(), "data": planes(images)}
        (folder / name).write_bytes(pickle_of_python_2(entries))
    names = {"fine_label_names": [f"fine {i}" for i in range(100)], "coarse_label_names": [f"c{i}" for i in range(20)]}
    (folder / "meta").write_bytes(pickle_of_python_2(names))
    return written


def write_cifar100_binary(folder: Path) -> list[Written]:
    folder.mkdir(parents=True)
    written = [draw(6, 32, 3, 100, seed) for seed in range(2)]
    for name, (images, labels) in zip(("train", "test"), written, strict=True):
        both = np.stack([labels // 5, labels], axis=1).astype(np.uint8)
        (folder / f"{name}.bin").write_bytes(np.concatenate([both, planes(images)], axis=1).tobytes())
    (folder / "fine_label_names.txt").write_text("\n".join(f"fine {i}" for i in range(100)))
    (folder / "coarse_label_names.txt").write_text("\n".join(f"c{i}" for i in range(20)))
    return written


def idx(array: NDArray[np.uint8]) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_idx(folder: Path, *, compress: bool = False) -> list[Written]:
    folder.mkdir(parents=True)
    written = [draw(7, 28, 1, 10, seed) for seed in range(2)]
    for split, (images, labels) in zip(("train", "t10k"), written, strict=True):
        for kind, array in (("images-idx3", images[..., 0]), ("labels-idx1", labels.astype(np.uint8))):
            content = idx(array)
            path = folder / f"{split}-{kind}-ubyte{'.gz' if compress else ''}"
            path.write_bytes(gzip.compress(content) if compress else content)
    return written


def write_stl10(folder: Path) -> list[Written]:
    folder.mkdir(parents=True)
    written = [draw(count, 96, 3, 10, seed) for seed, count in enumerate((3, 2, 4))]
    for split, (images, labels) in zip(("train", "test", "unlabeled"), written, strict=True):
        (folder / f"{split}_X.bin").write_bytes(images.transpose(0, 3, 2, 1).tobytes())
        if split != "unlabeled":
            (folder / f"{split}_y.bin").write_bytes((labels + 1).astype(np.uint8).tobytes())
    (folder / "class_names.txt").write_text("\n".join(f"class {i}" for i in range(10)))
    return written


def write_image(path: Path, pixels: NDArray[np.uint8], **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(path, **options)


def write_tiny_imagenet(folder: Path) -> list[Written]:
    images, _ = draw(6, 64, 3, 1)
    for index, wnid in enumerate(("n01", "n01", "n02", "n02")):
        write_image(folder / "train" / wnid / "images" / f"{wnid}_{index}.png", images[index])
    for index in range(4, 6):
        write_image(folder / "val" / "images" / f"val_{index}.png", images[index])
    (folder / "val" / "val_annotations.txt").write_text("val_4.png\tn02\t0\t0\t9\t9\nval_5.png\tn01\t0\t0\t9\t9\n")
    (folder / "words.txt").write_text("n01\tgoldfish, Carassius auratus\nn02\tbell toad\n")
    return [(images[:4], np.array([0, 0, 1, 1])), (images[4:], np.array([1, 0]))]


def write_imagenette(folder: Path) -> list[Written]:
    images, _ = draw(4, 96, 3, 1)
    for index, path in enumerate(("train/n01440764/a", "train/n03888257/a", "val/n01440764/b", "val/n03888257/b")):
        write_image(folder / f"{path}.png", images[index])
    return [(images[:2], np.array([0, 1])), (images[2:], np.array([0, 1]))]


def tar(folder: Path) -> bytes:
    """The folder as a .tar.gz, the folder's own name first in every path."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz", compresslevel=1) as archive:
        archive.add(folder, folder.name)
    return content.getvalue()
