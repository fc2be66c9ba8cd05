"""A run is a function of its configuration: whatever the process has set, it is the same and leaves that as it was."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn
from train.conftest import crlc_config, tiny_config
from train.global_states import STATES, all_at_once, default_device_now, observed

import imc.predict
import imc.report
from imc import ImageClusterer
from imc.data import Dataset, Images
from imc.evaluate import Options as EvaluateOptions
from imc.evaluate import evaluate
from imc.export import Options as ExportOptions
from imc.export import export
from imc.machine.torch_state import as_in_a_new_process, turn
from imc.methods import build_model
from imc.runs.model import load_run
from imc.train import plan, train

pytestmark = pytest.mark.filterwarnings(
    "ignore::sklearn.exceptions.ConvergenceWarning", "ignore:Anomaly Detection has been enabled"
)

OPTIONS = {
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


def tiny(**parameters: Any) -> ImageClusterer:
    return ImageClusterer(**{"n_clusters": 3, "epochs": 3, "random_state": 0, "options": OPTIONS, **parameters})


@pytest.fixture(scope="module")
def pixels(digits: Images) -> NDArray[np.uint8]:
    """The images as an array [64, 8, 8]."""
    return digits.images[:64, :, :, 0].numpy()


@pytest.fixture(scope="module")
def fitted(pixels: NDArray[np.uint8]) -> ImageClusterer:
    return tiny().fit(pixels)


@pytest.fixture(scope="module")
def expected(fitted: ImageClusterer, pixels: NDArray[np.uint8]) -> list[NDArray[Any]]:
    return answers(fitted, pixels)


def answers(clusterer: ImageClusterer, pixels: NDArray[np.uint8]) -> list[NDArray[Any]]:
    return [clusterer.labels_, *(f(pixels) for f in (clusterer.predict_proba, clusterer.predict, clusterer.transform))]


def assert_equal(found: list[NDArray[Any]], expected: list[NDArray[Any]]) -> None:
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", STATES)
def test_a_fit_and_its_predictions_are_those_of_a_plain_process(
    name: str, fitted: ImageClusterer, expected: list[NDArray[Any]], pixels: NDArray[np.uint8]
) -> None:
    with STATES[name]():
        before, device = observed(), default_device_now()
        here = tiny().fit(pixels)
        found, predicted = answers(here, pixels), answers(fitted, pixels)
        assert default_device_now() == device
        assert observed() == before
    assert_equal(found, expected)
    assert_equal(predicted, expected)


@pytest.mark.parametrize("name", [name for name in STATES if name not in ("ranks", "srun")])  # which a run would join
def test_a_run_is_that_of_a_plain_process(name: str, digits: Images, trained: Path, tmp_path: Path) -> None:
    with STATES[name]():
        before, device = observed(), default_device_now()
        train(tiny_config(tmp_path / "run"), digits, report=False)
        assert default_device_now() == device
        assert observed() == before
    assert weights(tmp_path / "run") == weights(trained)


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def commands(folder: Path, data: Dataset, pictures: Path) -> dict[str, Any]:
    """What each function of a command says of a run."""
    config = dataclasses.replace(tiny_config(folder), augmentation="crops", seed=1)
    trained = train(config, data, embedded=True)
    assert trained is not None
    page = imc.report.report(imc.report.Options(run=str(folder)), data)
    exported = export(ExportOptions(run=str(folder), format="torch", check=str(pictures)))
    evaluated = evaluate(folder, EvaluateOptions(runs=(str(folder),), bn_recalibrate="train", skip_figures=True), data)
    imc.predict.predict(imc.predict.Options(run=str(folder), images=(str(pictures),), out=str(folder / "new.csv")))
    changing = {"out", "train_seconds", "run"}
    return {
        "train": {k: v for k, v in trained.items() if k not in changing},
        "labels": (folder / "labels.csv").read_text(),
        "report": page.exists(),
        "export": list(exported["files"].values()),
        "evaluate": json.dumps({k: v for k, v in evaluated.items() if k not in changing}),
        "predict": (folder / "new.csv").read_text(),
    }


def test_every_command_gives_the_same_as_a_function_in_any_state(
    split_digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "imc.pages.figures._save", lambda _figure, path: Image.new("L", (4, 4)).save(path)
    )  # most of the time
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for index, image in enumerate(split_digits.train.images[:9, :, :, 0].numpy()):
        Image.fromarray(image).save(pictures / f"{index}.png")
    small = dataclasses.replace(
        split_digits.train, images=split_digits.train.images[:64], labels=split_digits.train.labels[:64]
    )
    data = dataclasses.replace(split_digits, train=small)
    plain = commands(tmp_path / "plain" / "run", data, pictures)
    with all_at_once():
        before, device = observed(), default_device_now()
        found = commands(tmp_path / "other" / "run", data, pictures)
        assert default_device_now() == device
        assert observed() == before
    assert found == plain


@pytest.mark.parametrize("encoder", ["digits", "resnet18", "resnet50"])
@pytest.mark.parametrize("method", ["imc-swav", "crlc"])
def test_every_model_is_built_in_float32_with_the_same_numbers(
    method: str, encoder: str, digits: Images, tmp_path: Path
) -> None:
    config = dataclasses.replace(tiny_config(tmp_path), encoder=encoder, augmentation="crops")
    if encoder != "digits":
        config = dataclasses.replace(config, widths=None, pool_after=None, feature_dim=None)
    config = plan(crlc_config(config) if method == "crlc" else config, digits)
    states = []
    for name in (None, "dtype float64"):
        with STATES[name]() if name else turn():
            torch.manual_seed(0)
            states.append(build_model(config).state_dict())
    for name, tensor in states[0].items():
        assert tensor.dtype in (torch.float32, torch.int64), name
        assert torch.equal(tensor, states[1][name]), name


def test_loading_a_run_draws_no_random_numbers(trained: Path) -> None:
    before = torch.get_rng_state()
    run = load_run(trained)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(x.requires_grad for x in run.model.parameters())


# Threads


def test_fits_at_once_are_those_alone(expected: list[NDArray[Any]], pixels: NDArray[np.uint8]) -> None:
    before = observed()
    alone = [answers(tiny(random_state=seed).fit(pixels), pixels) for seed in range(3)]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(lambda seed: answers(tiny(random_state=seed).fit(pixels), pixels), range(3)))
    for one, other in zip(together, alone, strict=True):
        assert_equal(one, other)
    assert_equal(alone[0], expected)
    assert observed() == before


def test_fits_of_an_encoder_that_draws_random_numbers_take_turns(pixels: NDArray[np.uint8]) -> None:
    encoder = nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.Dropout(0.5), nn.AdaptiveAvgPool2d(1))
    own = {"encoder": encoder, "options": {**OPTIONS, "feature_dim": None}}
    alone = answers(tiny(**own).fit(pixels), pixels)
    with ThreadPoolExecutor(3) as pool:
        for found in pool.map(lambda _: answers(tiny(**own).fit(pixels), pixels), range(3)):
            assert_equal(found, alone)


def test_predictions_at_once_are_those_alone(fitted: ImageClusterer, pixels: NDArray[np.uint8]) -> None:
    parts = [pixels[start : start + 16] for start in range(0, 64, 16)] * 8
    alone = [fitted.transform(part) for part in parts]
    with ThreadPoolExecutor(4) as pool:
        for one, other in zip(pool.map(fitted.transform, parts), alone, strict=True):
            np.testing.assert_array_equal(one, other)


def test_exact_products_last_as_long_as_any_thread_is_inside() -> None:
    inside, leave = threading.Event(), threading.Event()

    def other() -> None:
        with as_in_a_new_process():
            inside.set()
            leave.wait()

    thread = threading.Thread(target=other)
    with STATES["products in bfloat16"]():
        with as_in_a_new_process():
            thread.start()
            inside.wait()
        assert torch.get_float32_matmul_precision() == "highest"
        leave.set()
        thread.join()
        assert torch.get_float32_matmul_precision() == "medium"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_process_that_is_forked_while_a_thread_trains_can_train() -> None:
    inside, leave = threading.Event(), threading.Event()

    def other() -> None:
        with turn():
            inside.set()
            leave.wait()

    thread = threading.Thread(target=other)
    thread.start()
    inside.wait()
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        with turn():
            os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    leave.set()
    thread.join()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_process_fits_and_predicts_on_one_thread(
    fitted: ImageClusterer, expected: list[NDArray[Any]], pixels: NDArray[np.uint8]
) -> None:
    one = {**OPTIONS, "threads": 1}
    alone = tiny(options=one).fit(pixels).labels_  # and torch's threads are there, which the child lacks
    child = os.fork()
    if child == 0:
        signal.alarm(60)  # which ends a child that hangs
        same = np.array_equal(tiny().fit(pixels).labels_, alone)
        os._exit(0 if same and np.array_equal(fitted.predict(pixels), expected[2]) else 3)
    assert os.waitpid(child, 0)[1] == 0


# Failures


class Failing(nn.Module):
    """An encoder that raises in the second step."""

    def __init__(self, error: Callable[[], BaseException]) -> None:
        super().__init__()
        self.layer, self.error, self.steps = nn.Linear(64, 4), error, 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.steps += self.training
        if self.steps > 4:
            raise self.error()
        return self.layer(images.flatten(1)[:, :64])


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, ZeroDivisionError, SystemExit])
def test_a_fit_that_fails_leaves_nothing_behind(
    error: type[BaseException], pixels: NDArray[np.uint8], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    own = {**OPTIONS, "feature_dim": None, "large_size": 8, "small_crops": 0, "large_crops": 2, "device_data": "off"}
    clusterer = tiny().fit(pixels)
    clusterer.set_params(encoder=Failing(error), options=own)
    attributes, before = dict(vars(clusterer)), observed()
    with pytest.raises(error) as kept:  # as a notebook keeps the last error, with its frames
        clusterer.fit(np.zeros((64, 4, 16), np.float32))
    assert list(tmp_path.iterdir()) == []
    assert observed() == before
    assert vars(clusterer) == attributes
    assert kept.value is not None
    np.testing.assert_array_equal(clusterer.predict(pixels), clusterer.labels_)


def test_ctrl_c_reaches_the_program_at_once_and_not_the_run(pixels: NDArray[np.uint8]) -> None:
    class PressedError(Exception):
        pass

    def handler(*_: object) -> None:
        raise PressedError

    class Pressing(Failing):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            if self.training:
                os.kill(os.getpid(), signal.SIGINT)
            return super().forward(images)

    before = signal.signal(signal.SIGINT, handler)
    try:
        with pytest.raises(PressedError):
            tiny(encoder=Pressing(KeyboardInterrupt), options={**OPTIONS, "feature_dim": None}).fit(pixels)
        assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_run_in_another_thread_needs_no_signals(digits: Images, tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        pool.submit(train, tiny_config(tmp_path / "run"), digits, report=False).result()
    assert (tmp_path / "run" / "model.safetensors").exists()


def test_compiled_code_is_marked_by_the_instruction_set_while_a_run_lasts() -> None:
    before = torch.compiler.config.cache_key_tag
    with turn():
        assert torch.compiler.config.cache_key_tag == f"{before} {torch.backends.cpu.get_cpu_capability()}"
    assert torch.compiler.config.cache_key_tag == before
