"""Damaged copies of every format: the reader gives images or one sentence, never another error, and never hangs.

IMC_FUZZ_EXAMPLES sets the number of damaged copies of each format; the deadline of each copy is two seconds.
"""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

import layouts
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from imc.data import load
from imc.data.decode import FORMATS, UnreadableError, decode, read_header
from imc.errors import UserError

EXAMPLES = int(os.environ.get("IMC_FUZZ_EXAMPLES", "40"))
FUZZ = settings(
    max_examples=EXAMPLES,
    deadline=2000,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
Damage = tuple[float, list[tuple[float, int]]]
DAMAGE = st.tuples(
    st.one_of(st.just(1.0), st.floats(0, 1)),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=6),
)


def damaged(content: bytes, damage: Damage) -> bytes:
    """The content cut to a fraction of its length, with bytes replaced at fractions of it.

    Half of the replaced bytes are drawn from the first 128, where headers lie.
    """
    length, replaced = damage
    result = bytearray(content[: round(length * len(content))])
    for index, (position, value) in enumerate(replaced):
        if result:
            result[int(position * (min(128, len(result)) if index % 2 == 0 else len(result)))] = value
    return bytes(result)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@cache
def picture(kind: str) -> bytes:
    content = io.BytesIO()
    image = Image.fromarray(layouts.draw(1, 20, 3, 1)[0][0])
    (image.convert("P") if kind in ("GIF", "PCX") else image).save(content, kind)
    return content.getvalue()


WRITABLE = [kind for kind in FORMATS if kind in Image.SAVE and kind != "PSD"]


@pytest.mark.parametrize("kind", WRITABLE)
@pytest.mark.filterwarnings("ignore")  # of Pillow's, about odd files
@FUZZ
@given(damage=DAMAGE)
@example(damage=(1.0, []))
def test_damaged_images(kind: str, damage: Damage, folder: Path) -> None:
    path = folder / f"x.{kind}"
    path.write_bytes(damaged(picture(kind), damage))
    try:
        assert read_header(path).width > 0
        assert decode(path, 8, 3).shape == (8, 8, 3)
    except UnreadableError:
        assert damage != (1.0, [])


def saved(write: Callable[..., None], *arguments: object, **arrays: object) -> bytes:
    content = io.BytesIO()
    write(content, *arguments, **arrays)
    return content.getvalue()


PIXELS = layouts.draw(4, 12, 3, 1)[0]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.npy", saved(np.save, PIXELS)),
        ("x.npz", saved(np.savez, x=PIXELS, y=np.arange(4))),
        ("y.npz", saved(np.savez_compressed, images=PIXELS / 255, labels=np.array(list("abca")))),
    ],
)
@FUZZ
@given(damage=DAMAGE)
@example(damage=(1.0, []))
def test_damaged_arrays(name: str, content: bytes, damage: Damage, folder: Path) -> None:
    (folder / name).write_bytes(damaged(content, damage))
    loads(str(folder / name), folder, damage)


def loads(source: str, root: Path, damage: Damage) -> None:
    message = "--data"
    try:
        assert len(load(source, root=root).train.images) > 0
    except UserError as error:
        message = str(error)
        assert damage != (1.0, [])
    assert message.startswith("--data")


@cache
def published(place: str) -> Path:
    folder = Path(tempfile.mkdtemp()) / place
    {
        "cifar-10-batches-py": layouts.write_cifar10_python,
        "cifar-100-python": layouts.write_cifar100_python,
        "cifar-10-batches-bin": layouts.write_cifar10_binary,
        "mnist": layouts.write_idx,
        "stl10_binary": layouts.write_stl10,
        "tiny-imagenet-200": layouts.write_tiny_imagenet,
    }[place](folder)
    return folder


@pytest.mark.parametrize(
    ("name", "place", "file"),
    [
        ("cifar10", "cifar-10-batches-py", "data_batch_2"),
        ("cifar10", "cifar-10-batches-py", "batches.meta"),
        ("cifar20", "cifar-100-python", "train"),
        ("cifar10", "cifar-10-batches-bin", "data_batch_1.bin"),
        ("mnist", "mnist", "train-images-idx3-ubyte"),
        ("mnist", "mnist", "t10k-labels-idx1-ubyte"),
        ("stl10", "stl10_binary", "test_y.bin"),
        ("stl10", "stl10_binary", "class_names.txt"),
        ("tiny-imagenet", "tiny-imagenet-200", "val/val_annotations.txt"),
        ("tiny-imagenet", "tiny-imagenet-200", "words.txt"),
    ],
)
@FUZZ
@given(damage=DAMAGE)
@example(damage=(1.0, []))
def test_damaged_files_of_published_sets(name: str, place: str, file: str, damage: Damage) -> None:
    path = published(place) / file
    content = path.read_bytes()
    try:
        path.write_bytes(damaged(content, damage))
        loads(name, path.parents[len(Path(file).parts)], damage)
    finally:
        path.write_bytes(content)


@pytest.mark.parametrize(
    ("archive", "content"),
    [
        ("cifar-10-python.tar.gz", lambda: layouts.tar(published("cifar-10-batches-py"))),
        ("mnist/train-images-idx3-ubyte.gz", lambda: layouts.gzip.compress(layouts.idx(PIXELS[..., 0]))),
    ],
)
@FUZZ
@given(damage=DAMAGE)
def test_damaged_archives(archive: str, content: Callable[[], bytes], damage: Damage, folder: Path) -> None:
    path = folder / "archives" / archive
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(damaged(content(), damage))
    name = "mnist" if "mnist" in archive else "cifar10"
    if name == "mnist":
        for kind, array in (("train-labels-idx1", np.zeros(4, np.uint8)), ("t10k-labels-idx1", np.zeros(4, np.uint8))):
            (path.parent / f"{kind}-ubyte").write_bytes(layouts.idx(array))
        (path.parent / "t10k-images-idx3-ubyte").write_bytes(layouts.idx(PIXELS[..., 0]))
    loads(name, folder / "archives", damage)


@FUZZ
@given(content=st.binary(max_size=200))
def test_arbitrary_bytes_are_no_pickle_of_cifar(content: bytes) -> None:
    from imc.data.cifar import unpickle

    with suppress(UserError):
        assert isinstance(unpickle(Path("x"), b"\x80\x02}(" + content), dict)
