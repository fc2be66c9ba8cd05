"""Everything of `imc` that reads a file, with a valid file for each: what the fuzzers damage.

test_fuzz.py draws damaged copies by hypothesis, search_readers.py searches for them by coverage.
"""

from __future__ import annotations

import argparse
import dataclasses
import gzip
import io
import os
import pickle
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import containers
import layouts
import numpy as np
import safetensors.torch
import torch
from PIL import Image
from torch import nn

from imc.config import Config
from imc.data import load
from imc.data.cache import cached
from imc.data.decode import UnreadableError, decode, read_header
from imc.data.fingerprint import read_record
from imc.data.formats import FORMATS
from imc.errors import UserError
from imc.files.json import read_json
from imc.files.run_places import CHECKPOINT, CONFIG, DATA, METRICS, MODEL
from imc.models.pretrained import load_pretrained
from imc.runs.files import read_clusters, read_metrics
from imc.runs.folder import read_config
from imc.runs.model import load_run
from imc.train import train
from imc.training.checkpoint import read_checkpoint

SECONDS = 5.0  # of processor time that a reader may take for a small file
ROOT = Path(tempfile.gettempdir()) / f"imc-readers-{os.getpid()}"
PIXELS = layouts.draw(4, 12, 3, 1)[0]


@dataclasses.dataclass(frozen=True)
class Reader:
    """A reader.

    Attributes:
        place: gives a folder in which everything is valid, written once.
        file: the file in it that is damaged.
        read: takes the folder.
        names: whether a refusal names the file, or at least its folder.
    """

    place: Callable[[], Path]
    file: str
    read: Callable[[Path], object]
    names: bool = True


def attempt(reader: Reader, content: bytes) -> str:
    """Read a file of this content. Returns the refusal, or an empty text.

    Raises:
        AssertionError: it took too long, or its refusal is no sentence about the file.
        Exception: whatever but a refusal the reader raises.
    """
    folder, sentence = reader.place(), ""
    path = folder / reader.file
    valid = path.read_bytes()
    start = time.process_time()
    try:
        path.write_bytes(content)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow's, about odd files
            reader.read(folder)
    except (UserError, UnreadableError) as error:
        sentence = str(error)
        assert sentence.strip(), "no sentence"
        assert "\n" not in sentence, sentence
        assert not reader.names or path.name in sentence or str(path.parent) in sentence, sentence
    finally:
        path.write_bytes(valid)
    assert time.process_time() - start < SECONDS, "too slow"
    return sentence


@cache
def folder_of(name: str, write: Callable[[Path], object]) -> Path:
    folder = ROOT / name
    folder.mkdir(parents=True)
    write(folder)
    return folder


def in_folder(name: str, write: Callable[[Path], object]) -> Callable[[], Path]:
    return lambda: folder_of(name, write)


def one_file(file: str, content: Callable[[], bytes], read: Callable[[Path], object], names: bool = True) -> Reader:
    return Reader(
        in_folder(file.replace(".", "-"), lambda folder: (folder / file).write_bytes(content())), file, read, names
    )


def picture(kind: str) -> bytes:
    content = io.BytesIO()
    image = Image.fromarray(layouts.draw(1, 20, 3, 1)[0][0])
    (image.convert("P") if kind in ("GIF", "PCX") else image).save(content, kind)
    return content.getvalue()


def decoded(path: Path) -> None:
    assert read_header(path).width > 0
    assert decode(path, 8, 3).shape == (8, 8, 3)


def image_reader(kind: str) -> Reader:
    return one_file(f"x.{kind}", lambda: picture(kind), lambda folder: decoded(folder / f"x.{kind}"), names=False)


def saved(write: Callable[..., None], *arguments: object, **options: Any) -> bytes:
    content = io.BytesIO()
    write(content, *arguments, **options)
    return content.getvalue()


def array_reader(file: str, content: Callable[[], bytes]) -> Reader:
    return one_file(file, content, lambda folder: loaded(str(folder / file)))


def loaded(source: str, root: Path | None = None) -> None:
    assert len(load(source, root=root).train.images) > 0


def published_reader(name: str, write: Callable[[Path], object], place: str, file: str) -> Reader:
    """A file of a published set that lies in the folder ``place``."""
    written = in_folder(f"{name}-{file.replace('/', '-')}", lambda folder: write(folder / place))
    return Reader(written, f"{place}/{file}", lambda folder: loaded(name, folder))


def write_tar(folder: Path) -> None:
    layouts.write_cifar10_python(folder / "cifar-10-batches-py")
    (folder / "cifar-10-python.tar.gz").write_bytes(layouts.tar(folder / "cifar-10-batches-py"))
    for path in (folder / "cifar-10-batches-py").iterdir():
        path.unlink()
    (folder / "cifar-10-batches-py").rmdir()


def write_compressed_idx(folder: Path) -> None:
    layouts.write_idx(folder / "mnist", compress=True)
    path = folder / "mnist" / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())))


def read_cached(folder: Path) -> None:
    """From the cache or made anew; what was changed inside its array nothing can tell."""
    with mock.patch.dict(os.environ, {"IMC_CACHE": str(folder)}):
        images, content = cached(
            Path("/source"), "variant", "1", lambda: (PIXELS.shape, iter([PIXELS]), {"files": ["a"]})
        )
    assert images.dtype == torch.uint8
    assert images.dim() == 4
    assert content == {"files": ["a"]}


def cache_reader(suffix: str) -> Reader:
    with tempfile.TemporaryDirectory() as folder:
        read_cached(Path(folder))
        name = next(path.name for path in Path(folder).iterdir() if path.suffix == suffix)
    return Reader(in_folder(f"cache{suffix}", read_cached), name, read_cached)


def write_run(folder: Path) -> None:
    """A run of one update, and what its report would add."""
    images = dataclasses.replace(load("digits").train, images=load("digits").train.images[:32], labels=None)
    sizes: dict[str, Any] = {"widths": (4,), "pool_after": 1, "feature_dim": 8, "projection_hidden": 8}
    heads: dict[str, Any] = {"embedding_dim": 4, "prototypes": 8, "classifier_widths": (8,), "clusters": 4}
    config = Config(out=str(folder), epochs=1, batch_size=32, small_crops=0, large_crops=2, **sizes, **heads)
    train(config, images, report=False)
    (folder / "labels.csv").write_text("index,cluster,confidence,label\n0,3,1.000000,0\n1,0,0.500000,1\n")
    (folder / "result.json").write_text('{"acc": 0.5, "machine": {"cpu": "x"}, "versions": {}}')


def run_reader(file: str, read: Callable[[Path], object]) -> Reader:
    return Reader(in_folder(f"run-{file}", write_run), file, read)


def encoder_reader(file: str, write: Callable[[object, io.BytesIO], object] = torch.save) -> Reader:
    content = {"encoder": nn.Linear(3, 2).state_dict(), "args": argparse.Namespace(epoch=1), "best": np.float64(1)}
    return one_file(
        file, lambda: saved(lambda file: write(content, file)), lambda f: load_pretrained(nn.Linear(3, 2), f / file)
    )


def before_archives(content: object, file: io.BytesIO) -> None:
    torch.save(content, file, _use_new_zipfile_serialization=False)


def as_arrays(content: Any, file: io.BytesIO) -> None:
    pickle.dump({name: x.numpy() for name, x in content["encoder"].items()}, file, protocol=4)


def as_safetensors(content: Any, file: io.BytesIO) -> None:
    file.write(safetensors.torch.save(content["encoder"]))


def as_npz(content: Any, file: io.BytesIO) -> None:
    np.savez(file, **{name: x.numpy() for name, x in content["encoder"].items()})


def wide_reader(file: str, content: Callable[[], bytes]) -> Reader:
    return one_file(file, content, lambda folder: decoded(folder / file), names=False)


WIDE = PIXELS[0].astype(np.uint16) * 16
READERS = {
    "image-PNG-16": wide_reader("wide.png", lambda: containers.png(WIDE)),
    "image-TIFF-16": wide_reader("wide.tif", lambda: containers.tiff(WIDE)),
    "image-PGM-16": wide_reader("wide.pgm", lambda: b"P5 12 12 4095\n" + WIDE[..., 0].astype(">u2").tobytes()),
    "image-turned": wide_reader(
        "turned.jpg",
        lambda: containers.jpeg_with(b"Exif\0\0" + containers.exif(6), containers.saved(PIXELS[0], "JPEG")),
    ),
    **{f"image-{kind}": image_reader(kind) for kind in FORMATS if kind in Image.SAVE and kind != "PSD"},
    "npy": array_reader("x.npy", lambda: saved(np.save, PIXELS)),
    "npz": array_reader("x.npz", lambda: saved(np.savez, x=PIXELS, y=np.arange(4))),
    "npz-texts": array_reader(
        "y.npz", lambda: saved(np.savez_compressed, images=PIXELS / 255, labels=np.array(list("abca")))
    ),
    **{
        f"{name}-{file.rpartition('/')[2]}": published_reader(name, write, place, file)
        for name, write, place, file in (
            ("cifar10", layouts.write_cifar10_python, "cifar-10-batches-py", "data_batch_2"),
            ("cifar10", layouts.write_cifar10_python, "cifar-10-batches-py", "batches.meta"),
            ("cifar20", layouts.write_cifar100_python, "cifar-100-python", "train"),
            ("cifar10", layouts.write_cifar10_binary, "cifar-10-batches-bin", "data_batch_1.bin"),
            ("mnist", layouts.write_idx, "mnist", "train-images-idx3-ubyte"),
            ("mnist", layouts.write_idx, "mnist", "t10k-labels-idx1-ubyte"),
            ("stl10", layouts.write_stl10, "stl10_binary", "test_y.bin"),
            ("stl10", layouts.write_stl10, "stl10_binary", "class_names.txt"),
            ("tiny-imagenet", layouts.write_tiny_imagenet, "tiny-imagenet-200", "val/val_annotations.txt"),
            ("tiny-imagenet", layouts.write_tiny_imagenet, "tiny-imagenet-200", "words.txt"),
        )
    },
    "cifar10-archive": Reader(in_folder("tar", write_tar), "cifar-10-python.tar.gz", lambda f: loaded("cifar10", f)),
    "mnist-archive": Reader(
        in_folder("gz", write_compressed_idx), "mnist/train-images-idx3-ubyte.gz", lambda f: loaded("mnist", f)
    ),
    "cache-images": cache_reader(".npy"),
    "cache-files": cache_reader(".json"),
    "encoder": encoder_reader("x.pt"),
    "encoder-without-archive": encoder_reader("x.pth", before_archives),
    "encoder-pickled": encoder_reader("x.pkl", lambda content, file: pickle.dump(content, file, protocol=2)),
    "encoder-arrays": encoder_reader("arrays.pkl", as_arrays),
    "encoder-safetensors": encoder_reader("x.safetensors", as_safetensors),
    "encoder-npz": encoder_reader("weights.npz", as_npz),
    "checkpoint": run_reader(CHECKPOINT, read_checkpoint),
    "config": run_reader(CONFIG, read_config),
    "data-record": run_reader(DATA, read_record),
    "model": run_reader(MODEL, load_run),
    "metrics": run_reader(METRICS, lambda folder: read_metrics(folder / METRICS)),
    "labels": run_reader("labels.csv", lambda folder: read_clusters(folder / "labels.csv")),
    "result": run_reader("result.json", lambda folder: read_json(folder / "result.json")),
}
