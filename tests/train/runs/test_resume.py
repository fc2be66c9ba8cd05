"""An interrupted run, continued, is the uninterrupted one."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import itertools
import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import running
from torch import Tensor
from train.conftest import crlc_config, tiny_config

import imc.training.loop
from imc.config import Config
from imc.data import Dataset, Images
from imc.errors import RunError, StoppedError, UserError
from imc.files.run_places import CHECKPOINT
from imc.files.torch_archive import read_torch_file
from imc.train import train
from imc.training.checkpoint import read_checkpoint
from imc.training.loop import Loop


@pytest.fixture(autouse=True)
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests compare the runs, not their scores."""
    monkeypatch.setattr("imc.train._report", lambda *_: {})


@pytest.fixture(scope="module")
def whole(digits: Images, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the uninterrupted run of two epochs of three updates leaves."""
    config = tiny_config(tmp_path_factory.mktemp("whole") / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("imc.train._report", lambda *_: {})
        train(config, digits)
    return left_by(config)


def left_by(config: Config) -> dict[str, Any]:
    checkpoint = read_checkpoint(Path(config.out))
    lines = (Path(config.out) / "metrics.jsonl").read_text().splitlines()
    return {
        "checkpoint": {name: checkpoint[name] for name in ("model", "optimizer", "training", "monitor", "random")},
        "metrics": [line.split(', "images_per_second"')[0] for line in lines],
    }


def assert_same(a: Any, b: Any, where: str = "") -> None:
    if isinstance(a, Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for position, pair in enumerate(zip(a, b, strict=True)):
            assert_same(*pair, f"{where}/{position}")
    else:
        assert a == b, where


def interrupt_after(update: int, monkeypatch: pytest.MonkeyPatch, number: int = signal.SIGTERM) -> None:
    """Send this process a signal during the step that makes this many updates."""
    step = Loop.train_step

    def interrupted(self: Loop, *arguments: Any) -> None:
        step(self, *arguments)
        if self.update == update:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(Loop, "train_step", interrupted)


@pytest.mark.parametrize("update", [1, 2, 3, 5])
def test_a_signal_saves_and_the_resumed_run_is_bitwise_the_whole(
    update: int, tiny: Config, digits: Images, whole: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupt_after(update, patch)
        with pytest.raises(StoppedError, match=r"continue with: imc train --out .*run --resume"):
            train(tiny, digits)
    assert read_checkpoint(Path(tiny.out))["update"] == update
    torch.rand(7)  # what came between must not matter
    train(dataclasses.replace(tiny, resume=True), digits)
    assert_same(left_by(tiny), whole)


def test_stop_after_epoch_leaves_as_an_interruption_would(tiny: Config, digits: Images, whole: dict[str, Any]) -> None:
    with pytest.raises(StoppedError, match="stopped after epoch 1; continue"):
        train(dataclasses.replace(tiny, stop_after_epoch=1), digits)
    assert len(left_by(tiny)["metrics"]) == 1
    train(Config(out=tiny.out, resume=True), digits)
    assert_same(left_by(tiny), whole)


def test_what_was_written_after_the_checkpoint_is_written_again(
    tiny: Config, digits: Images, whole: dict[str, Any]
) -> None:
    with pytest.raises(StoppedError):
        train(dataclasses.replace(tiny, stop_after_epoch=1), digits)
    with (Path(tiny.out) / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 2, "loss": 1.0}\n{"epo')
    train(dataclasses.replace(tiny, resume=True), digits)
    assert_same(left_by(tiny), whole)


def test_the_bank_and_the_queue_are_in_the_checkpoint(
    tiny: Config, digits: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = split(digits)
    config = dataclasses.replace(tiny, bank=True, queue=64, queue_start_epoch=0, epochs=2)
    complete = dataclasses.replace(config, out=str(tmp_path / "complete"))
    train(complete, data)
    with monkeypatch.context() as patch:
        interrupt_after(2, patch)
        with pytest.raises(StoppedError):
            train(config, data)
    saved = read_checkpoint(Path(config.out))["training"]
    assert saved["bank"]["rows"] is not None
    assert saved["queue"]["count"] == 64
    train(dataclasses.replace(config, resume=True), data)
    assert_same(left_by(config), left_by(complete))


def test_crlc_resumes_too(tiny: Config, digits: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = crlc_config(tiny, sub_heads=2)
    complete = dataclasses.replace(config, out=str(tmp_path / "complete"))
    train(complete, digits)
    with monkeypatch.context() as patch:
        interrupt_after(4, patch)
        with pytest.raises(StoppedError):
            train(config, digits)
    train(dataclasses.replace(config, resume=True), digits)
    assert_same(left_by(config), left_by(complete))


def split(digits: Images) -> Dataset:
    """The first third as the clustered split, the rest as images without labels."""
    train_part = dataclasses.replace(digits, images=digits.images[:64], labels=digits.labels[:64])
    rest = dataclasses.replace(digits, images=digits.images[64:], labels=None)
    return Dataset("digits", train_part, test=None, unlabeled=rest, mean=(0.5,), std=(0.5,), note="")


def test_kill_9_leaves_a_checkpoint_that_continues(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "imc.train", "--out", str(tmp_path / "run"), "--threads", "1", "--epochs", "2"]
    small = ["--widths", "4", "8", "--pool-after", "1", "--small-crops", "0", "--checkpoint-minutes", "1e-9"]
    deadline = time.monotonic() + 120
    update = 0
    with running([*command, *small], stderr=subprocess.DEVNULL):
        while update < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
            if (tmp_path / "run" / CHECKPOINT).exists():
                update = read_checkpoint(tmp_path / "run")["update"]  # at any moment a whole file
    saved = read_checkpoint(tmp_path / "run")
    assert saved["update"] >= 2
    resumed = train(Config(out=str(tmp_path / "run"), resume=True, threads=1))
    assert resumed == {"out": str(tmp_path / "run")}
    assert read_checkpoint(tmp_path / "run")["update"] == 2 * 14


def test_more_epochs_may_be_asked_for_and_another_method_may_not(tiny: Config, digits: Images) -> None:
    train(tiny, digits)
    train(dataclasses.replace(tiny, epochs=3, resume=True), digits)
    assert len(left_by(tiny)["metrics"]) == 3
    with pytest.raises(UserError, match="--prototypes was 12 when the run began, got 13; leave it out"):
        train(dataclasses.replace(tiny, prototypes=13, resume=True), digits)


def test_a_file_that_is_no_checkpoint_is_named(tiny: Config, digits: Images) -> None:
    Path(tiny.out).mkdir()
    (Path(tiny.out) / CHECKPOINT).write_bytes(b"not one")
    with pytest.raises(UserError, match=r"checkpoint\.pt is no checkpoint that can be read"):
        train(dataclasses.replace(tiny, resume=True), digits)


def test_a_loss_that_is_not_finite_keeps_the_last_good_checkpoint(
    tiny: Config, digits: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute = Loop.compute

    def spoiled(self: Loop, *arguments: Any) -> Any:
        if self.update == 4:
            with torch.no_grad():
                self.model.classifier.layers[0].weight.fill_(torch.nan)
        return compute(self, *arguments)

    monkeypatch.setattr(Loop, "compute", spoiled)
    with pytest.raises(RunError, match="loss term mutual_information became nan at update 4"):
        train(tiny, digits)
    assert read_checkpoint(Path(tiny.out))["update"] == 3


def test_a_parameter_that_is_not_finite_is_not_saved(
    tiny: Config, digits: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute = Loop.compute

    def spoiled(self: Loop, *arguments: Any) -> Any:
        step = compute(self, *arguments)
        if self.update == 5:  # the last of its epoch: no loss has seen it yet
            with torch.no_grad():
                self.model.projection[0].weight[0, 0] = torch.inf
        return step

    monkeypatch.setattr(Loop, "compute", spoiled)
    with pytest.raises(RunError, match=r"projection\.0\.weight became NaN or infinite before update 6"):
        train(tiny, digits)
    assert read_checkpoint(Path(tiny.out))["update"] == 3


def test_resume_without_a_checkpoint_starts_anew(
    tiny: Config, digits: Images, capsys: pytest.CaptureFixture[str]
) -> None:
    train(dataclasses.replace(tiny, resume=True), digits)
    assert "holds no run to continue: a new one starts" in capsys.readouterr().err


def test_a_second_ctrl_c_interrupts_at_once() -> None:
    with imc.training.loop.StopSignals() as signals:
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.received
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def fails_at(write: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full from this fsync on."""
    count = itertools.count()

    def fsync(_: int) -> None:
        if next(count) >= write:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("imc.files.whole.os.fsync", fsync)


# The images' fingerprint, config, checkpoint, metrics, checkpoint, metrics, checkpoint, model.
@pytest.mark.parametrize("write", range(8))
def test_a_full_disk_is_a_sentence_and_the_resumed_run_is_bitwise_the_whole(
    write: int, tiny: Config, digits: Images, whole: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        fails_at(write, patch)
        with pytest.raises(RunError, match=r"could not be written: No space left on device; --resume continues"):
            train(tiny, digits)
    assert not list(Path(tiny.out).glob("*.tmp"))
    train(dataclasses.replace(tiny, resume=True), digits)
    assert_same(left_by(tiny), whole)


def stopped_at(write: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGTERM before and after this fsync, and after the rename that follows."""
    count, fsync, replace = itertools.count(), os.fsync, os.replace

    def terminate(happens: bool) -> None:
        if happens:
            os.kill(os.getpid(), signal.SIGTERM)

    def fsync_with_signal(number: int) -> None:
        current = next(count)
        terminate(current == write)
        fsync(number)
        terminate(current == write)

    def replace_with_signal(*arguments: Any) -> None:
        replace(*arguments)
        terminate(next(count) == write + 1)

    monkeypatch.setattr("imc.files.whole.os.fsync", fsync_with_signal)
    monkeypatch.setattr("imc.files.whole.os.replace", replace_with_signal)


# The images' fingerprint, config, the first checkpoint, the first epoch's metrics and checkpoint, and the last epoch's,
# when the run has nothing left to stop; the renames between them count too.
@pytest.mark.parametrize("write", [0, 2, 4, 6, 7, 9, 10])
def test_a_signal_while_a_file_is_written_stops_and_the_resumed_run_is_bitwise_the_whole(
    write: int, tiny: Config, digits: Images, whole: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stopped_at(write, patch)
        with pytest.raises(StoppedError, match="continue with: imc train") if write < 9 else nullcontext():
            train(tiny, digits)
    assert not list(Path(tiny.out).glob("*.tmp"))
    train(dataclasses.replace(tiny, resume=True), digits)
    assert_same(left_by(tiny), whole)


def test_every_flipped_bit_of_a_checkpoint_is_refused_or_harmless(tiny: Config, digits: Images) -> None:
    """torch.load alone takes a flipped bit of a parameter for the parameter."""
    train(tiny, digits)
    path = Path(tiny.out) / CHECKPOINT
    content, exact, refused = path.read_bytes(), read_checkpoint(path.parent), 0
    for place in range(0, len(content), len(content) // 150):
        path.write_bytes(content[:place] + bytes([content[place] ^ 16]) + content[place + 1 :])
        try:
            found = read_checkpoint(path.parent)
        except UserError:
            refused += 1
        else:
            assert_same(found, exact)
    assert refused > 75


def test_every_flipped_bit_of_an_archives_directory_is_refused_or_harmless(tmp_path: Path) -> None:
    """torch.load leaves the memory of a tensor as it is where the directory calls its entry a folder."""
    path, exact = tmp_path / "state.pt", {"step": torch.tensor(6.0), "moment": torch.arange(5.0)}
    torch.save(exact, path)
    content = path.read_bytes()
    for place in range(content.index(b"PK\x01\x02"), len(content)):
        for bit in range(8):
            path.write_bytes(content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :])
            with contextlib.suppress(ValueError):
                assert_same(read_torch_file(path), exact)


@pytest.mark.parametrize("threads", [1, 2])
def test_one_seed_is_bitwise_one_run(threads: int, tiny: Config, digits: Images) -> None:
    """From run to run; two threads round torch's convolutions otherwise than one."""
    before = torch.get_num_threads()
    try:
        results = []
        for name in ("first", "second"):
            config = dataclasses.replace(tiny, out=str(Path(tiny.out) / name), threads=threads, backend="auto")
            train(config, digits)
            results.append(left_by(config))
    finally:
        torch.set_num_threads(before)
    assert_same(*results)


class Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch executed",)


def test_a_checkpoint_never_runs_code(tiny: Config, digits: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(tiny.out)
    folder.mkdir()
    monkeypatch.chdir(folder)
    torch.save({"format": 1, "config": Payload()}, folder / CHECKPOINT)
    with pytest.raises(UserError, match=r"checkpoint\.pt is no checkpoint that can be read"):
        train(dataclasses.replace(tiny, resume=True), digits)
    assert not (folder / "executed").exists()


def test_nothing_is_written_outside_the_run_folder(tmp_path: Path) -> None:
    code = (
        "import os, sys\n"
        "outside = set()\n"
        "def hook(event, arguments):\n"
        "    writes = event == 'open' and (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)\n"
        "    if (writes or event in ('os.mkdir', 'os.rename', 'os.remove')) and isinstance(arguments[0], str):\n"
        "        outside.add(os.path.abspath(arguments[0]))\n"
        "sys.addaudithook(hook)\n"
        "from imc.cli import main\n"
        "code = main(['train', '--out', 'run', '--epochs', '1', '--widths', '4', '8', '--pool-after', '1'])\n"
        "inside = tuple(os.path.abspath(name) for name in ('run', 'caches', '/dev', '/proc'))\n"
        "print(code, sorted(path for path in outside if not path.startswith(inside)))\n"
    )
    caches = {name: str(tmp_path / "caches") for name in ("MPLCONFIGDIR", "TORCHINDUCTOR_CACHE_DIR")}
    environment = os.environ | caches | {"PYTHONDONTWRITEBYTECODE": "1"}
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert result.stdout.splitlines()[-1] == "0 []", result.stderr
    assert {path.name for path in tmp_path.iterdir()} <= {"run", "caches"}
