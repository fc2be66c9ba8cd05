"""ImageClusterer by what a pretrained encoder sees."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.base import clone
from train.features import pooling

from imc import ImageClusterer
from imc import predict as command
from imc.features.encoded import frozen_encoder
from imc.metrics import clustering_scores
from imc.models.named import load_encoder

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*with fewer than 250 the network:sklearn.exceptions.ConvergenceWarning"
)
NAME = "module:train.features.pooling.build"
QUICK = {"sub_heads": 4, "neighbours": 5, "warmup_updates": 5, "lr": 0.02}


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    yield
    frozen_encoder.cache_clear()


@pytest.fixture(scope="module")
def colours() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Sixty images of three colours."""
    random = np.random.default_rng(0)
    pixels, labels = random.integers(0, 100, (60, 20, 24, 3)), np.arange(60) % 3
    pixels[np.arange(60), :, :, labels] += 150
    return pixels.astype(np.uint8), labels


def clusterer(**options: Any) -> ImageClusterer:
    return ImageClusterer(3, encoder=NAME, epochs=30, options=QUICK, random_state=0, device="cpu", **options)


@pytest.fixture(scope="module")
def fitted(colours: tuple[NDArray[np.uint8], NDArray[np.int64]]) -> ImageClusterer:
    return clusterer().fit(colours[0])


def test_it_finds_what_the_encoder_sees(
    fitted: ImageClusterer, colours: tuple[NDArray[np.uint8], NDArray[np.int64]]
) -> None:
    pixels, labels = colours
    assert clustering_scores(labels, fitted.labels_)["acc"] > 0.95
    assert (fitted.config_.method, fitted.config_.encoder) == ("crlc", NAME)
    np.testing.assert_array_equal(fitted.predict(pixels), fitted.labels_)
    np.testing.assert_allclose(fitted.predict_proba(pixels).sum(axis=1), 1, rtol=1e-5)
    features = fitted.model_.features(load_encoder(NAME).embed_batch(torch.from_numpy(pixels)))
    np.testing.assert_allclose(fitted.transform(pixels), features, atol=1e-5)
    assert len(fitted.get_feature_names_out()) == features.shape[1]


def test_it_clones_and_pickles_without_the_network(
    fitted: ImageClusterer, colours: tuple[NDArray[np.uint8], NDArray[np.int64]]
) -> None:
    copied = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(copied.predict(colours[0]), fitted.labels_)
    np.testing.assert_array_equal(clone(fitted).fit(colours[0]).labels_, fitted.labels_)


def test_what_it_saves_is_a_run(
    fitted: ImageClusterer, colours: tuple[NDArray[np.uint8], NDArray[np.int64]], tmp_path: Path
) -> None:
    fitted.save(tmp_path / "run")
    np.save(tmp_path / "images.npy", colours[0])
    result = command.predict(command.Options(str(tmp_path / "run"), (str(tmp_path / "images.npy"),)))
    assert result["clusters"] == np.bincount(fitted.labels_, minlength=3).tolist()


def test_images_of_other_kinds_pass_it_too(colours: tuple[NDArray[np.uint8], NDArray[np.int64]]) -> None:
    grey = colours[0][..., 0]
    for images in (grey, grey / 255.0, grey.reshape(60, -1)):
        shape = {"image_shape": (20, 24)} if images.ndim == 2 else {}
        assert clusterer(**shape).fit(images).labels_.shape == (60,)


def test_other_weights_are_refused(
    fitted: ImageClusterer,
    colours: tuple[NDArray[np.uint8], NDArray[np.int64]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    frozen_encoder.cache_clear()
    monkeypatch.setattr(pooling, "build", pooling.other)
    with pytest.raises(ValueError, match="has other weights here than those of the run"):
        fitted.predict(colours[0])


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"encoder": "module:no.such"}, "--encoder module:no.such needs no, which cannot be imported"),
        ({"encoder": "resnet19"}, "--encoder 'resnet19' is not known; accepted are"),
        ({"encoder": NAME, "method": "imc-swav", "options": {"flip": 0.5}}, "--flip is for images, and the run is on"),
        ({"encoder": NAME, "options": {"weights": "absent.pt"}}, "--weights .*absent.pt is not there"),
    ],
)
def test_a_mistake_is_one_sentence(
    parameters: dict[str, Any], said: str, colours: tuple[NDArray[np.uint8], NDArray[np.int64]]
) -> None:
    estimator = ImageClusterer(3, device="cpu", **parameters)
    with pytest.raises(ValueError, match=said) as error:
        estimator.fit(colours[0])
    assert "\n" not in str(error.value)
    assert not hasattr(estimator, "config_")


def test_weights_are_named_by_an_option(colours: tuple[NDArray[np.uint8], NDArray[np.int64]], tmp_path: Path) -> None:
    torch.save(pooling.other().state_dict(), tmp_path / "own.pt")
    options = {**QUICK, "weights": str(tmp_path / "own.pt")}
    model = ImageClusterer(3, encoder=NAME, epochs=30, options=options, random_state=0, device="cpu").fit(colours[0])
    assert model.config_.weights_sha256 == load_encoder(NAME, tmp_path / "own.pt").weights_sha256


def test_the_encoder_may_be_trained_further(colours: tuple[NDArray[np.uint8], NDArray[np.int64]]) -> None:
    name = "module:train.features.further.build"
    options = {"train_encoder": True, "prototypes": 8, "classifier_widths": (8,), "embedding_dim": 8}
    model = ImageClusterer(3, encoder=name, epochs=1, batch_size=20, options=options, random_state=0, device="cpu")
    assert model.fit(colours[0]).transform(colours[0]).shape == (60, 6)
    np.testing.assert_array_equal(model.predict(colours[0]), model.labels_)
