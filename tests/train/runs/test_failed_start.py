"""A start that fails, or is interrupted before the first update, leaves the disk as it was."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from train.conftest import tiny_config
from train.runs.test_resume import fails_at

import imc.train
from imc.cli import main
from imc.config import Config
from imc.data import Images
from imc.errors import RunError
from imc.train import train
from imc.training.loop import Loop


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMC_CACHE", str(tmp_path / "cache" / "imc" / "decoded"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    np.save("scans.npy", np.zeros((40, 8, 8), np.uint8))
    for folder in ("empty", "damaged", "photos"):
        Path(folder).mkdir()
    Image.new("L", (8, 8)).save("photos/a.png")
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    Image.fromarray(noise).save("damaged/a.png")
    Path("damaged/a.png").write_bytes(Path("damaged/a.png").read_bytes()[:2000])


def snapshot(folder: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


SCANS = ("--data", "scans.npy", "--clusters", "2")
REFUSED: dict[str, tuple[str, ...]] = {
    "nothing there": ("--data", "gone"),
    "no image": ("--data", "empty", "--clusters", "2"),
    "no image that is whole": ("--data", "damaged", "--clusters", "2"),
    "no number of clusters": ("--data", "scans.npy"),
    "too many clusters": ("--data", "scans.npy", "--clusters", "41"),
    "a value out of bounds": (*SCANS, "--lr", "0"),
    "an unknown flag": (*SCANS, "--lrs", "1"),
    "no encoder": (*SCANS, "--init", "gone.pt"),
    "a damaged encoder": (*SCANS, "--init", "damaged/a.png"),
    "no test split": (*SCANS, "--train-on", "train+test"),
    "a model too large": (*SCANS, "--prototypes", str(10**12)),
    "an unknown backend": (*SCANS, "--backend", "none"),
    "a file for a folder": (*SCANS, "--out", "scans.npy"),
    "a folder below a file": (*SCANS, "--out", "scans.npy/deep/run"),
    "a folder among the images": ("--data", "photos", "--clusters", "2", "--batch-size", "1", "--out", "photos"),
    "a published set": ("--data", "cifar10", "--out", "runs/deep/er"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refused_start_leaves_no_trace(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = snapshot(tmp_path)
    flags = REFUSED[case] if "--out" in REFUSED[case] else (*REFUSED[case], "--out", "new/deep/run")
    assert main(["train", *flags]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("imc train: ")
    assert snapshot(tmp_path) == before


PLACES = ("open_data", "build_model", "place", "Loop", "Loop.train_step")


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, RuntimeError("out of memory")], ids=repr)
@pytest.mark.parametrize("overwrite", [False, True])
def test_an_interrupted_start_leaves_no_trace(
    place: str, error: Any, overwrite: bool, tmp_path: Path, digits: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    config = dataclasses.replace(tiny_config(tmp_path / "deep" / "run"), overwrite=overwrite)
    if overwrite:
        (tmp_path / "deep" / "run").mkdir(parents=True)
        for name in ("result.json", "labels.csv", "config.json", "notes.txt"):
            (tmp_path / "deep" / "run" / name).write_text("of an earlier run")
    owner: Any = Loop if place == "Loop.train_step" else imc.train
    monkeypatch.setattr(owner, place.rpartition(".")[2], fail)
    before = snapshot(tmp_path)
    with pytest.raises((KeyboardInterrupt, MemoryError, RuntimeError)):
        train(config, digits)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("write", [0, 1])
def test_a_disk_that_takes_no_run_is_left_as_it_was(
    write: int, tmp_path: Path, digits: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = snapshot(tmp_path)
    fails_at(write, monkeypatch)
    with pytest.raises(RunError, match="could not be written"):
        train(tiny_config(tmp_path / "deep" / "run"), digits)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("stage", ["read_header", "decode"])
def test_an_interrupted_decoding_leaves_no_trace(stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = snapshot(tmp_path)
    monkeypatch.setattr(f"imc.data.folders.{stage}", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train(Config(data="photos", clusters=2))
    assert snapshot(tmp_path) == before


def test_a_folder_that_may_not_be_written_is_refused_at_once(
    tiny: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    access: Callable[..., bool] = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: mode == os.R_OK and access(path, mode))
    assert main(["train", "--out", "deep/run"]) == 2
    assert "--out must be a folder that can be written: Permission denied (deep/run)" in capsys.readouterr().err
