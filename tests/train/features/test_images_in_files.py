"""ImageClusterer on a folder and on lists of pictures, with an encoder that is kept and without."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from imc import ImageClusterer
from imc.config import Config
from imc.features.encoded import frozen_encoder
from imc.files.csv import read_rows
from imc.predict import Options, predict
from imc.train import train

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*updates? (is|are) few:sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.filterwarnings("ignore:.*images are few:sklearn.exceptions.ConvergenceWarning"),
]
KEPT = "module:train.features.pooling.build"
HEADS = {"sub_heads": 2, "neighbours": 5, "warmup_updates": 2, "lr": 0.02}
SMALL = {"prototypes": 8, "classifier_widths": (8,), "embedding_dim": 8, "widths": (4, 4), "projection_hidden": 8}


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("IMC_CACHE", str(tmp_path_factory.getbasetemp() / "in-files"))
    yield
    frozen_encoder.cache_clear()


def clusterer(kind: str, **options: Any) -> ImageClusterer:
    """With an encoder that is kept, or one that is trained on the pixels."""
    own = {"encoder": KEPT, "epochs": 8, "options": HEADS} if kind == "kept" else {"epochs": 1, "options": SMALL}
    return ImageClusterer(3, random_state=0, device="cpu", **{**own, **options})


@pytest.fixture(scope="module")
def whole(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pictures that can be read, of the folder that holds a damaged one too."""
    folder = tmp_path_factory.mktemp("whole")
    for path in sorted(photos.rglob("*")):
        if path.is_file() and path.name != "3a.png":
            (folder / path.parent.name).mkdir(exist_ok=True)
            (folder / path.parent.name / path.name).write_bytes(path.read_bytes())
    return folder


@pytest.mark.parametrize("kind", ["kept", "trained"])
def test_a_folder_is_as_the_list_of_its_pictures(kind: str, whole: Path) -> None:
    fitted = clusterer(kind).fit(whole)
    names = [str(whole / name) for name in fitted.files_]
    assert len(fitted.labels_) == len(names) == 60
    listed = clusterer(kind)
    np.testing.assert_array_equal(listed.fit_predict(names), fitted.labels_)
    assert list(listed.files_) == names
    np.testing.assert_array_equal(fitted.predict(str(whole)), fitted.labels_)
    some = [Path(names[index]) for index in (40, 3, 3)]
    for given in (some, tuple(map(str, some)), np.array(list(map(str, some))), np.array(some, dtype=object)):
        np.testing.assert_array_equal(fitted.predict(given), fitted.labels_[[40, 3, 3]])
    assert fitted.predict_proba(some).shape == (3, 3)
    np.testing.assert_array_equal(fitted.transform(some)[1], fitted.transform(some)[2])
    again = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(again.predict(some), fitted.labels_[[40, 3, 3]])


@pytest.mark.parametrize("kind", ["kept", "trained"])
def test_a_folder_is_read_as_the_commands_read_it(kind: str, whole: Path, tmp_path: Path) -> None:
    model = clusterer(kind).fit(whole)
    model.save(tmp_path / "run")
    result = predict(Options(str(tmp_path / "run"), (str(whole),), out=str(tmp_path / "all.csv")))
    rows = list(read_rows(tmp_path / "all.csv"))
    assert (result["images"], [row["file"] for row in rows]) == (60, list(model.files_))
    np.testing.assert_array_equal([int(row["cluster"]) for row in rows], model.labels_)
    if kind == "kept":
        own = {"method": "crlc", "epochs": 8, "seed": 0, "device": "cpu", **HEADS}
        train(Config(data=str(whole), encoder=KEPT, clusters=3, out=str(tmp_path / "other"), **own))
        labels = [int(row["cluster"]) for row in read_rows(tmp_path / "other" / "labels.csv")]
        np.testing.assert_array_equal(labels, model.labels_)


def test_what_cannot_be_read_of_a_folder_is_told(photos: Path) -> None:
    with pytest.warns(UserWarning, match="skipped 1: 1 damaged or cut short"):
        fitted = clusterer("kept").fit(photos)
    assert len(fitted.labels_) == len(fitted.files_) == 60
    with pytest.raises(ValueError, match="a cluster for each image needs all of them: skipped 1: 1 damaged"):
        fitted.predict(photos)


def test_arrays_after_files_forget_the_files(whole: Path) -> None:
    model = clusterer("trained", image_shape=(16, 16)).fit(whole)
    assert model.image_shape_ == (16, 16, 3)
    pixels: NDArray[np.uint8] = np.random.default_rng(0).integers(0, 255, (40, 16, 16, 3), np.uint8)
    assert model.predict(pixels).shape == (40,)
    assert not hasattr(model.set_params(image_shape=None).fit(pixels), "files_")


def absent(whole: Path) -> Any:
    return [str(next(whole.rglob("*.png"))), "absent.png"]


def damaged(whole: Path) -> Any:
    (whole.parent / "cut.png").write_bytes(b"\x89PNG")
    return [*map(str, whole.rglob("*.png")), str(whole.parent / "cut.png")]


def array(whole: Path) -> Any:
    np.save(whole.parent / "a.npy", np.zeros((3, 8, 8), np.uint8))
    return [str(whole.parent / "a.npy")]


def empty(whole: Path) -> Any:
    (whole.parent / "empty").mkdir(exist_ok=True)
    return whole.parent / "empty"


@pytest.mark.parametrize("kind", ["kept", "trained"])
@pytest.mark.parametrize(
    ("given", "said"),
    [
        (lambda _: "no/such/folder", "'no/such/folder' is not there"),
        (absent, "'absent.png' is not there"),
        (damaged, "a cluster for each image needs all of them: skipped 1"),
        (array, "must hold their paths, and .*a.npy' is a file of arrays"),
        (empty, "holds no image that can be read; it is empty"),
        (lambda whole: [str(whole)], "must hold their paths, and .* is a folder"),
        (lambda whole: next(whole.rglob("*.png")), "is a file; accepted are a folder, a list of pictures, and arrays"),
        (lambda whole: [next(whole.rglob("*.png")), 3], "must hold paths alone, and this one has int too"),
        (lambda whole: [next(whole.rglob("*.png"))], "n_samples=1 should be >= n_clusters=3"),
    ],
)
def test_a_mistake_is_one_sentence(kind: str, given: Callable[[Path], Any], said: str, whole: Path) -> None:
    model = clusterer(kind)
    with pytest.raises(ValueError, match=said) as error:
        model.fit(given(whole))
    assert "\n" not in str(error.value)
    assert not hasattr(model, "labels_")


@pytest.mark.parametrize(("kind", "shape"), [("kept", (8, 8)), ("trained", (8, 9)), ("trained", "pad")])
def test_the_size_of_files_is_a_square_or_the_encoders(kind: str, shape: Any, whole: Path) -> None:
    with pytest.raises(ValueError, match="image_shape of images in files is"):
        clusterer(kind, image_shape=shape).fit(whole)


@pytest.mark.parametrize("bits", [12, 16])
def test_pixels_of_more_bits_are_read_alike_in_training_and_after(bits: int, tmp_path: Path) -> None:
    """Of an encoder that is kept the run has to remember the bits, which new files alone do not tell."""
    random = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for number in range(12):
        values = random.integers(0, 1 << (bits - 2 * (number % 3)), (24, 24)).astype(np.uint16)
        Image.fromarray(values).save(tmp_path / "photos" / f"{number}.png")
    model = clusterer("kept").fit(tmp_path / "photos")
    assert model.config_.pixel_bits == bits
    dark = [tmp_path / "photos" / model.files_[2]]
    np.testing.assert_allclose(model.transform(dark)[0], model.transform(tmp_path / "photos")[2], rtol=1e-5)
