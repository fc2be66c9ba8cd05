"""A run and its images: found again from anywhere, compared when it goes on, and never taken for others."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from train.conftest import tiny_config

from imc.cli import main
from imc.config import Config
from imc.data import Images
from imc.data.fingerprint import DATA, difference, fingerprint
from imc.errors import StoppedError, UserError
from imc.files.run_places import CHECKPOINT
from imc.runs.data import other_data, run_data
from imc.runs.folder import CONFIG, read_config
from imc.several_runs import train_each
from imc.train import plan, train

COUNT = 16


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("imc.train._report", lambda *_: {})
    monkeypatch.chdir(tmp_path)


def write(path: Path, seed: int, side: int = 8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side), dtype=np.uint8)).save(path)


def write_photos(folder: Path) -> Path:
    for index in range(COUNT):
        write(folder / ("cat" if index < COUNT // 2 else "dog") / f"{index}.bmp", index)
    return folder


def config_of(out: str) -> Config:
    options: dict[str, Any] = {"data": "photos", "image_size": 8, "labels_from_folders": True, "batch_size": 8}
    return dataclasses.replace(tiny_config(Path(out)), out=out, prototypes=8, **options)


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds photos/, and run/ which was stopped after the first of two epochs on them."""
    folder = tmp_path_factory.mktemp("half")
    write_photos(folder / "photos")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IMC_CACHE", str(folder / "cache"))
        patch.chdir(folder)
        with pytest.raises(StoppedError):
            train(dataclasses.replace(config_of("run"), stop_after_epoch=1))
    return folder


@pytest.fixture
def place(half: Path, tmp_path: Path) -> Path:
    """The same under a path of its own, as if it had been trained there."""
    shutil.copytree(half / "photos", tmp_path / "photos")
    shutil.copytree(half / "run", tmp_path / "run")
    path = tmp_path / "run" / CHECKPOINT
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["config"]["data"] = str(tmp_path / "photos")
    torch.save(checkpoint, path)
    return tmp_path


def test_a_run_records_where_its_images_are_from_anywhere(half: Path) -> None:
    config = json.loads((half / "run" / CONFIG).read_text())
    assert config["data"] == str(half / "photos")
    assert json.loads((half / "run" / DATA).read_text())["images"] == COUNT


def touch(photos: Path) -> None:
    for path in photos.rglob("*.bmp"):
        os.utime(path, ns=(1, 1))


def to_png(photos: Path) -> None:
    for path in list(photos.rglob("*.bmp")):
        Image.open(path).save(path.with_suffix(".png"))
        path.unlink()


SAME: dict[str, Callable[[Path], object]] = {
    "untouched": lambda photos: None,
    "other dates": touch,
    "copied": lambda photos: (photos.rename("x"), shutil.copytree("x", "photos")),
    "another format of the same pixels": to_png,
    "a hidden file": lambda photos: write(photos / "cat" / "._0.bmp", 99),
    "a note": lambda photos: (photos / "notes.txt").write_text("x"),
    "a run beside the images": lambda photos: shutil.copytree("run", photos / "run"),
}


@pytest.mark.parametrize("change", SAME)
def test_the_same_images_are_accepted(change: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    SAME[change](place / "photos")
    train(Config(out="run", resume=True))
    assert "changed" not in capsys.readouterr().err


def replace_keeping_size_and_date(photos: Path) -> None:
    path = photos / "cat" / "0.bmp"
    before = path.stat()
    write(path, 77)
    assert path.stat().st_size == before.st_size
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


CHANGED: dict[str, tuple[Callable[[Path], object], str]] = {
    "added": (lambda photos: write(photos / "cat" / "99.bmp", 99), "they were 16, and are 17"),
    "removed": (lambda photos: (photos / "cat" / "0.bmp").unlink(), "they were 16, and are 15"),
    "damaged": (lambda photos: (photos / "cat" / "0.bmp").write_bytes(b"BM"), "they were 16, and are 15"),
    "replaced": (lambda photos: write(photos / "cat" / "0.bmp", 99), "they are 16 as before, but not all the same"),
    "replaced at size and date": (replace_keeping_size_and_date, "they are 16 as before, but not all the same"),
    "reordered": (
        lambda photos: (photos / "cat" / "0.bmp").rename(photos / "dog" / "0.bmp"),
        "they are the same in another order",
    ),
    "now in colour": (
        lambda photos: Image.new("RGB", (8, 8), "red").save(photos / "cat" / "0.bmp"),
        "they had 8x8 pixels of 1 channel, and have 8x8 pixels of 3 channels",
    ),
    "moved in part": (lambda photos: (photos / "cat").rename("cats"), "they were 16, and are 8"),
}


@pytest.mark.parametrize("change", CHANGED)
def test_changed_images_are_refused_with_what_changed(
    change: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alter, sentence = CHANGED[change]
    before = (place / "run" / CHECKPOINT).read_bytes()
    alter(place / "photos")
    capsys.readouterr()
    assert main(["train", "--out", "run", "--resume"]) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("imc train: --resume needs the images that run began with, and those of ")
    assert f"photos have changed: {sentence}" in message
    assert (place / "run" / CHECKPOINT).read_bytes() == before


def test_changed_labels_are_said_and_accepted(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("8.bmp", "9.bmp"):  # in the same order still
        (place / "photos" / "dog" / name).rename(place / "photos" / "cat" / name)
    train(Config(out="run", resume=True))
    assert "the labels have changed since the run began; training reads none" in capsys.readouterr().err


def test_images_that_moved_are_found_by_data(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "photos").rename(place / "moved")
    with pytest.raises(UserError, match=r"the images of the run in run are no longer at '.*photos'; give --data"):
        train(Config(out="run", resume=True))
    (place / "work").mkdir()
    monkeypatch.chdir(place / "work")
    train(Config(out="../run", data="../moved", resume=True))
    assert read_config(place / "run").data == str(place / "moved")
    config = read_config(place / "run")
    data = other_data(place / "run", config, None, labels_from_folders=False)
    assert data.train.class_names == ("cat", "dog")
    (place / "moved").rename(place / "again")
    data = other_data(place / "run", config, "../again", labels_from_folders=False)
    assert data.train.class_names == ("cat", "dog")  # as the run read them
    with pytest.raises(UserError, match="give --data, where they are"):
        other_data(place / "run", config, None, labels_from_folders=False)


def test_a_run_goes_on_from_any_working_folder(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "elsewhere").mkdir()
    shutil.move(place / "run", place / "elsewhere" / "renamed")
    monkeypatch.chdir(place / "elsewhere")
    assert train(Config(out="renamed", resume=True)) == {"out": "renamed"}
    assert not (place / "run").exists()


def test_a_run_of_an_earlier_version_goes_on_with_a_note(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "run" / DATA).unlink()
    train(Config(out="run", resume=True))
    assert "run does not record its images, so whether they have changed" in capsys.readouterr().err
    assert json.loads((place / "run" / DATA).read_text())["images"] == COUNT


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"images": 16, "shape": [8], "content": "", "members": ""}'])
def test_a_damaged_record_is_a_sentence(content: str, place: Path) -> None:
    (place / "run" / DATA).write_text(content)
    with pytest.raises(UserError, match=r"data\.json is damaged"):
        train(Config(out="run", resume=True))


def test_looking_at_a_run_says_that_its_images_have_changed(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = read_config(place / "run")
    config = dataclasses.replace(config, data=str(place / "photos"))
    other_data(place / "run", config, None, labels_from_folders=False)
    assert "changed" not in capsys.readouterr().err
    (place / "photos" / "cat" / "0.bmp").unlink()
    other_data(place / "run", config, None, labels_from_folders=False)
    assert "have changed since the training: they were 16, and are 15" in capsys.readouterr().err
    other_data(place / "run", config, str(write_photos(place / "new")), labels_from_folders=False)
    assert "changed" not in capsys.readouterr().err


def test_runs_of_several_are_kept_for_the_same_images_only(place: Path) -> None:
    (place / "run" / "result.json").write_text('{"acc": 0.5}')
    config = config_of("run")
    assert train_each([config], run_data(config)) == [{"acc": 0.5}]
    write(place / "photos" / "cat" / "0.bmp", 99)
    with pytest.raises(UserError, match="holds a run on other images than those of photos: they are 16 as before"):
        train_each([config], run_data(config))


NO_RUN: dict[str, tuple[Callable[[Path], object], str]] = {
    "runs/phtos": (lambda path: None, "which is not there; .*; did you mean runs/photos"),
    "nothing/like/it": (lambda path: None, "which is not there; to start a run there, say on which --data"),
    "runs/empty": (lambda path: path.mkdir(), "which is not the folder of a run: it holds no config.json"),
    "runs/file": (lambda path: path.touch(), "which is not a folder"),
    "runs/of-pictures": (lambda path: write(path / "x.png", 0), "which is not the folder of a run"),
}


@pytest.mark.parametrize(("name", "flag"), [*((name, "--out") for name in NO_RUN), ("runs/phtos", "--name")])
def test_resume_of_what_is_no_run_trains_nothing(
    name: str, flag: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make, sentence = NO_RUN[name]
    (place / "runs").mkdir()
    shutil.copytree(place / "run", place / "runs" / "photos")
    make(place / name)
    before = sorted(place.rglob("*"))
    capsys.readouterr()
    assert main(["train", flag, name.removeprefix("runs/") if flag == "--name" else name, "--resume"]) == 2
    message = capsys.readouterr().err
    assert "\n" not in message.strip()
    assert re.search(f"--resume cannot continue {name}, {sentence}", message)
    assert sorted(place.rglob("*")) == before


def test_a_run_stopped_before_its_first_checkpoint_starts_as_it_was_asked_to(place: Path) -> None:
    (place / "run" / CHECKPOINT).unlink()
    config = read_config(place / "run")
    (place / "run" / CONFIG).write_text(json.dumps(config.to_dict() | {"data": str(place / "photos")}))
    train(Config(out="run", resume=True))
    assert read_config(place / "run").prototypes == 8
    assert len((place / "run" / "metrics.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("flags", "name", "was"),
    [
        (["--method", "imc-swav", "--seed", "1"], "seed", "0"),
        (["--method", "crlc"], "method", "imc-swav"),
        (["--encoder", "resnet18"], "encoder", "digits"),
        (["--image-size", "9"], "image-size", "8"),
        (["--bn", "per-size"], "bn", "per-view"),
    ],
)
def test_another_value_is_refused_with_what_may_be_told_anew(
    flags: list[str], name: str, was: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--out", "run", "--resume", *flags]) == 2
    message = capsys.readouterr().err
    assert f"imc train: --{name} was {was} when the run began, got {flags[-1]}; leave it out (--resume takes" in message


def test_a_value_at_its_default_counts_as_asked_for_where_it_was_given(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = torch.load(place / "run" / CHECKPOINT, weights_only=True)
    checkpoint["config"]["seed"] = 3
    torch.save(checkpoint, place / "run" / CHECKPOINT)
    assert main(["train", "--out", "run", "--resume", "--seed", "0"]) == 2
    assert "--seed was 3 when the run began, got 0" in capsys.readouterr().err
    assert main(["train", "--out", "run", "--resume", "--data", "digits"]) == 2
    assert "those of digits have changed: they were 16, and are 1,797" in capsys.readouterr().err


def test_a_finished_run_says_so_and_fewer_epochs_are_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(Config(out="run", resume=True))
    capsys.readouterr()
    train(Config(out="run", resume=True))
    assert (
        "run has made 2 epochs, which is all: its results are written again; --epochs takes more"
        in capsys.readouterr().err
    )
    with pytest.raises(UserError, match="--epochs must be at least 2, as run has made, got 1"):
        train(Config(out="run", epochs=1, resume=True))
    assert plan(Config(out="run", resume=True)).prototypes == 8


def test_a_fingerprint_is_of_pixels_and_order() -> None:
    images = torch.randint(0, 256, (5, 4, 6, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(5)
    found = fingerprint([images], labels)
    assert difference(found, fingerprint([images[:2], images[2:]], labels)) == ""
    assert difference(found, fingerprint([images.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)], None)) == ""
    assert difference(found, fingerprint([images.flip(0)], labels)) == "they are the same in another order"
    for pixel in range(images[0].numel()):
        changed = images.clone()
        changed[pixel % 5].view(-1)[pixel] ^= 1
        assert difference(found, fingerprint([changed], labels)) == "they are 5 as before, but not all the same"
    assert "4x6 pixels" in difference(found, fingerprint([images.transpose(1, 2)], labels))
    assert fingerprint([images], labels.flip(0))["labels"] != found["labels"]


def test_images_given_by_a_program_are_compared_too(digits: Images, tmp_path: Path) -> None:
    config = tiny_config(tmp_path / "given")
    with pytest.raises(StoppedError):
        train(dataclasses.replace(config, stop_after_epoch=1), digits)
    with pytest.raises(UserError, match="they were 192, and are 1,797"):
        train(Config(out=config.out, resume=True))
    train(Config(out=config.out, resume=True), digits)
