from __future__ import annotations

import pickle
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import nn

from imc import ImageClusterer
from imc.cli import main
from imc.data import Images
from imc.errors import StoppedError

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")  # the runs are tiny

OPTIONS = {
    "backend": "eager",
    "warmup_updates": 1,
    "small_crops": 1,
    "widths": (4,),
    "pool_after": 1,
    "feature_dim": 8,
    "projection_hidden": 8,
    "embedding_dim": 4,
    "prototypes": 6,
    "classifier_widths": (8,),
}
ONE_CLUSTER = "it asks for one cluster: the mutual information with a constant is 0, so there is nothing to train"
BLOBS = "it wants blobs of the plane told apart: two numbers are no image, whose crops and rotations are alike"
EXPECTED_FAILURES = {
    "check_dont_overwrite_parameters": ONE_CLUSTER,
    "check_fit2d_1feature": ONE_CLUSTER,
    "check_fit2d_predict1d": ONE_CLUSTER,
    "check_methods_subset_invariance": ONE_CLUSTER,  # for two clusters it holds, see below
    "check_clustering": BLOBS,
}


def tiny(**parameters: Any) -> ImageClusterer:
    """One epoch of a network that trains in a moment."""
    return ImageClusterer(**{"n_clusters": 2, "epochs": 1, "random_state": 0, "options": OPTIONS, **parameters})


@pytest.fixture(scope="module")
def pixels(digits: Images) -> NDArray[np.uint8]:
    """The images as an array [64, 8, 8]."""
    return digits.images[:64, :, :, 0].numpy()


@pytest.fixture(scope="module")
def fitted(pixels: NDArray[np.uint8]) -> ImageClusterer:
    return tiny(n_clusters=3).fit(pixels)


@parametrize_with_checks(
    [tiny(image_shape="pad", device="cpu")], expected_failed_checks=lambda _: EXPECTED_FAILURES, xfail_strict=True
)
def test_the_conventions_of_scikit_learn(estimator: ImageClusterer, check: Any) -> None:
    check(estimator)


def test_images_may_come_in_any_of_their_forms(fitted: ImageClusterer, pixels: NDArray[np.uint8]) -> None:
    forms = [
        pixels[..., None],
        torch.from_numpy(pixels.copy()),
        pixels.reshape(64, 64),
        pixels.reshape(64, 64).tolist(),
        pixels.astype(np.float32),
        pixels.astype(np.int64),
    ]
    for form in forms:
        np.testing.assert_array_equal(fitted.predict(form), fitted.labels_)
    assert (fitted.n_features_in_, fitted.image_shape_) == (64, (8, 8, 1))


def test_floats_are_stretched_from_the_range_that_fit_saw(pixels: NDArray[np.uint8]) -> None:
    assert pixels.min() == 0
    assert pixels.max() == 255
    own = tiny().fit(pixels)
    scaled = tiny().fit(pixels.reshape(64, 64) / 255 * 16 - 5)
    assert scaled.value_range_ == pytest.approx((-5, 11))
    np.testing.assert_array_equal(scaled.labels_, own.labels_)
    given = tiny(value_range=(0, 1)).fit(pixels[:32] / 255)
    with pytest.warns(UserWarning, match=r"% of the values of X lie outside of 0\.\.1, the range of fit, and are cut"):
        cut = given._samples(pixels[:4] / 255 * 3, reset=False)[..., 0]
    np.testing.assert_array_equal(cut, np.minimum(pixels[:4] * 3.0, 255))


def test_outputs_fit_together(fitted: ImageClusterer, pixels: NDArray[np.uint8]) -> None:
    probabilities = fitted.predict_proba(pixels)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(probabilities.argmax(axis=1), fitted.labels_)
    assert fitted.transform(pixels).shape == (64, 8)
    assert len(fitted.get_feature_names_out()) == 8


def test_an_image_is_clustered_the_same_alone(fitted: ImageClusterer, pixels: NDArray[np.uint8]) -> None:
    for method in (fitted.predict_proba, fitted.transform):
        np.testing.assert_allclose(np.concatenate([method(x[None]) for x in pixels[:8]]), method(pixels)[:8], atol=1e-5)


def test_a_seed_repeats_the_fit_and_the_callers_random_numbers_go_on(pixels: NDArray[np.uint8]) -> None:
    state = torch.get_rng_state()
    first, again = (clone(tiny(random_state=7)).fit(pixels) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    np.testing.assert_array_equal(first.predict_proba(pixels), again.predict_proba(pixels))
    assert not np.array_equal(first.transform(pixels), tiny(random_state=8).fit(pixels).transform(pixels))
    assert first.config_.seed == 7


def test_it_ends_a_pipeline(pixels: NDArray[np.uint8]) -> None:
    flat = pixels.reshape(64, 64).astype(float)
    pipeline = make_pipeline(MinMaxScaler(clip=True), tiny())
    labels = pipeline.fit_predict(flat)
    np.testing.assert_array_equal(pipeline.predict(flat), labels)


def test_an_encoder_of_ones_own_is_copied(pixels: NDArray[np.uint8]) -> None:
    encoder = nn.Sequential(nn.Conv2d(1, 5, 3), nn.BatchNorm2d(5), nn.AdaptiveAvgPool2d(1))
    before = pickle.dumps(encoder.state_dict())
    own = tiny(encoder=encoder, options={**OPTIONS, "feature_dim": None}).fit(pixels)
    assert own.transform(pixels).shape == (64, 5)
    assert pickle.dumps(encoder.state_dict()) == before
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(own)).predict(pixels), own.labels_)


def test_a_saved_estimator_is_a_run(fitted: ImageClusterer, pixels: NDArray[np.uint8], tmp_path: Path) -> None:
    fitted.save(tmp_path / "run")
    assert main(["export", str(tmp_path / "run"), "--format", "torch"]) == 0
    program = torch.export.load(tmp_path / "run" / "model.pt2").module()
    _, _, clusters = program(torch.from_numpy(pixels[..., None]))
    np.testing.assert_array_equal(clusters, fitted.labels_)
    with pytest.raises(ValueError, match="holds a run already"):
        fitted.save(tmp_path / "run")


@pytest.mark.parametrize(
    ("shape", "parameters", "says"),
    [
        ((9, 63), {}, "63 features, which are no square grey image: pass image_shape="),
        ((9, 63), {"image_shape": (8, 8)}, r"image_shape=\(8, 8\) has 64 values, and X has 63 features"),
        ((9, 64), {"image_shape": "square"}, "image_shape must be two or three integers, or 'pad'"),
        ((9, 3, 8, 8), {}, r"got \[3, 8, 8\]; move the channels to the end"),
        ((9, 8, 8, 4), {}, r"with 1 or 3 channels, got \[8, 8, 4\]"),
        ((9, 64), {"n_clusters": 10}, "n_samples=9 should be >= n_clusters=10"),
        ((9, 64), {"n_clusters": 2.5}, "n_clusters must be an integer of at least 2, got 2.5"),
        *(
            ((9, 64), {"value_range": given}, "value_range must be two numbers, the smaller first")
            for given in [(1, 0), (0, float("nan")), (0, 1, 2), ("a", "b"), 5]
        ),
        *(
            ((9, 64), {"image_shape": given}, "image_shape must be two or three integers, or 'pad', got")
            for given in [8, (8.0, 8), "cut", ("8", "8")]
        ),
        ((9, 64), {"options": 3}, "options must be a mapping from names of imc.config.Config, got 3"),
        ((9, 64), {"options": {"stop_after_epoch": 1}}, "options must not set 'stop_after_epoch'"),
        (
            (9, 64),
            {"encoder": nn.Conv2d(1, 4, 8).double()},
            r"the encoder must take images .* of float32",
        ),
        ((9, 64), {"options": {"seed": 1}}, "options must not set 'seed'"),
        ((9, 64), {"options": {"lrr": 1}}, "options has 'lrr', which is no field of .*; did you mean 'lr'?"),
        ((9, 64), {"options": {3: 1}}, "options has 3, which is no field"),
        ((9, 64), {"random_state": 2**32}, "--seed must be an integer of at least 0 and below 4294967296"),
        ((9, 64), {"epochs": 0}, "--epochs must be an integer of at least 1, got 0"),
        ((9, 64), {"device": "tpu"}, "--device 'tpu'"),
    ],
)
def test_a_mistake_is_one_sentence(shape: tuple[int, ...], parameters: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        tiny(**parameters).fit(np.random.default_rng(0).random(shape))


def test_numbers_of_numpy_are_numbers(pixels: NDArray[np.uint8]) -> None:
    options = {name: np.array(value) if isinstance(value, tuple) else value for name, value in OPTIONS.items()}
    given = {
        "lr": np.float32(0.5),
        "prototypes": np.int8(12),
        "normalize": np.bool_(True),
        "large_area": [np.half(0.5), 1],
    }
    numpy = tiny(epochs=np.int64(1), batch_size=np.array(32), n_clusters=np.int32(2), options={**options, **given})
    plain = {"lr": 0.5, "prototypes": 12, "normalize": True, "large_area": (0.5, 1)}
    expected = tiny(batch_size=32, options={**OPTIONS, **plain}).fit(pixels)
    np.testing.assert_array_equal(numpy.fit(pixels).transform(pixels), expected.transform(pixels))


@pytest.mark.parametrize(
    ("wrong", "error", "says"),
    [
        (lambda x: scipy.sparse.csr_matrix(x.reshape(64, 64)), TypeError, "Sparse data was passed"),
        (lambda x: np.where(x > 200, np.nan, x), ValueError, "contains NaN"),
        (lambda x: np.where(x > 200, np.inf, x), ValueError, "contains infinity"),
        (lambda x: x + 1j, ValueError, "Complex data not supported"),
        (lambda x: x[0, 0], ValueError, "Expected 2D array, got 1D array"),
        (lambda x: x.astype(str), ValueError, "numeric"),
        (lambda x: x[:0], ValueError, r"Found array with 0 sample\(s\)"),
        (lambda x: x[:, :0], ValueError, r"got \[0, 8\]"),
    ],
)
def test_what_is_no_image_is_refused_by_fit_and_predict(
    wrong: Any, error: type[Exception], says: str, fitted: ImageClusterer, pixels: NDArray[np.uint8]
) -> None:
    for method in (tiny().fit, fitted.predict, fitted.transform):
        with pytest.raises(error, match=says):
            method(wrong(pixels))


def test_before_fit_there_is_nothing_to_predict(pixels: NDArray[np.uint8], tmp_path: Path) -> None:
    for method in (tiny().predict, tiny().predict_proba, tiny().transform):
        with pytest.raises(NotFittedError, match="This ImageClusterer instance is not fitted yet"):
            method(pixels)
    with pytest.raises(NotFittedError):
        tiny().save(tmp_path)


def test_a_random_state_is_drawn_from_and_a_number_is_not(pixels: NDArray[np.uint8]) -> None:
    state = np.random.RandomState(3)
    seeds = [tiny(random_state=state).fit(pixels[:8]).config_.seed for _ in range(2)]
    assert seeds == np.random.RandomState(3).randint(2**31 - 1, size=2).tolist()
    before = np.random.get_state()[1].tolist()
    assert tiny(random_state=5).fit(pixels[:8]).config_.seed == 5
    assert np.random.get_state()[1].tolist() == before


def test_other_images_than_those_of_fit(fitted: ImageClusterer) -> None:
    with pytest.raises(ValueError, match=r"shape \(4, 16, 1\), and ImageClusterer was fitted to \(8, 8, 1\)"):
        fitted.predict(np.zeros((2, 4, 16), np.uint8))


def test_the_warnings_of_a_run_are_pythons_and_its_progress_is_silent(
    pixels: NDArray[np.uint8], capsys: pytest.CaptureFixture[str]
) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tiny(options={**OPTIONS, "warmup_updates": 0, "freeze_updates": 0}).fit(pixels)
    assert any(
        issubclass(entry.category, ConvergenceWarning) and "stuck at ln K" in str(entry.message) for entry in caught
    )
    assert capsys.readouterr().err == ""


def test_ctrl_c_is_a_keyboard_interrupt(pixels: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise StoppedError("stopped")

    monkeypatch.setattr("imc.clusterer.train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tiny().fit(pixels)


def test_importing_the_package_imports_neither_scikit_learn_nor_the_trainer() -> None:
    code = "import imc, sys; assert not {'sklearn', 'imc.train', 'matplotlib'} & sys.modules.keys(); imc.ImageClusterer"
    subprocess.run([sys.executable, "-c", code], check=True)


SCALED = {
    "fractions": (lambda x: x / 255.0, "the values of X are 0..1, a small part of 0..255, the range of fit"),
    "0 and 1": (lambda x: (x > 99).astype(np.int64), "the values of X are 0..1, a small part of 0..255"),
    "16 bits": (lambda x: x.astype(np.uint16) * 257, "% of the values of X lie outside of 0..255, the range of fit"),
    "around 0": (lambda x: x / 127.5 - 1, "% of the values of X lie outside of 0..255, the range of fit"),
}


@pytest.mark.parametrize("scale", SCALED)
@pytest.mark.parametrize("method", ["predict", "predict_proba", "transform"])
def test_images_of_another_scale_than_those_of_fit_are_warned_of(
    scale: str, method: str, fitted: ImageClusterer, pixels: NDArray[np.uint8]
) -> None:
    change, says = SCALED[scale]
    with pytest.warns(UserWarning, match=says):
        getattr(fitted, method)(change(pixels))


def test_images_of_the_scale_of_fit_are_not_warned_of(fitted: ImageClusterer, pixels: NDArray[np.uint8]) -> None:
    floats = tiny().fit(pixels / 255.0)
    almost = pixels / 255.0
    almost[0, 0, 0] = 1.01
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        fitted.predict(pixels)
        fitted.predict(pixels.astype(np.float32))
        fitted.predict(np.zeros_like(pixels))
        fitted.predict(np.zeros(pixels.shape))
        floats.predict(almost)
