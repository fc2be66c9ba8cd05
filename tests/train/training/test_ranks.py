"""A run on several processes, each with its part of the batch, is the run of one process with the whole batch."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from numpy.typing import NDArray
from processes import running
from train.conftest import crlc_config, tiny_config
from train.training.replayed import emulated

import imc.train
from imc import ImageClusterer
from imc.config import Config
from imc.data import Dataset, Images, load
from imc.errors import StoppedError, UserError
from imc.methods.imc_swav import FILLS, QUEUED
from imc.training.checkpoint import read_checkpoint
from imc.training.loop import Loop

# 60 divides into 2 and 3; synchronised, the statistics are those of one process. SGD, since Adam makes a whole step of
# the rounding error in a gradient of 0 (that of a bias before a normalisation).
PLAIN = {"batch_size": 60, "sync_bn": True, "optimizer": "sgd", "lr": 0.05, "classifier_lr": 0.05}
CASES = {
    "plain": PLAIN,
    "bank-and-queue": {**PLAIN, "bank": True, "queue": 120, "queue_start_epoch": 0},
    "crops": {**PLAIN, "augmentation": "crops", "queue": 60, "queue_start_epoch": 0, "epochs": 6},
    "crlc": {**PLAIN, "sub_heads": 2},
}


def data() -> Dataset:
    digits = load("digits")
    images, labels = digits.train.images, digits.train.labels
    train = dataclasses.replace(digits.train, images=images[:100], labels=labels[:100])
    rest = dataclasses.replace(digits.train, images=images[100:190], labels=None)
    return dataclasses.replace(digits, train=train, unlabeled=rest)


def configure(folder: Path, case: str) -> Config:
    plain = dataclasses.replace(tiny_config(folder / case), threads=1)
    return crlc_config(plain, **CASES[case]) if case == "crlc" else dataclasses.replace(plain, **CASES[case])


def fitted_probabilities() -> NDArray[np.float32]:
    """What an estimator says of the images that it was fitted to."""
    options = {"widths": (4,), "pool_after": 1, "feature_dim": 8, "projection_hidden": 8, "small_crops": 1}
    clusterer = ImageClusterer(3, epochs=1, random_state=0, options={**options, "threads": 1})
    return clusterer.fit(data().train.images[..., 0].numpy()).predict_proba(data().train.images[..., 0].numpy())


def save_fitted(_rank: int, path: Path) -> None:
    np.save(path, fitted_probabilities())


@pytest.fixture(scope="module")
def fitted_alone(tmp_path_factory: pytest.TempPathFactory) -> NDArray[np.float32]:
    """These, of a new process: one that has multiplied matrices before may round otherwise (docs/robustness.md)."""
    path = tmp_path_factory.mktemp("alone") / "estimator.npy"
    mp.start_processes(save_fitted, args=(path,), nprocs=1, start_method="spawn")
    return np.load(path)


def run(config: Config) -> None:
    imc.train._report = lambda *_: {}  # type: ignore[assignment]
    imc.train.train(config, data())


def process(rank: int, world: int, folder: str, port: int) -> None:
    import torch.distributed as dist

    # Not by the variables of torchrun, which another test has: a caller may have its processes from elsewhere.
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    if rank == 0:  # alone: nobody answers
        np.save(Path(folder) / f"{world}-estimator.npy", fitted_probabilities())
    for case in CASES:
        run(configure(Path(folder) / str(world), case))
    with emulated(1) as replays:  # as NCCL's exchanges are in a CUDA graph
        run(configure(Path(folder) / f"{world}-replayed", "crops"))
    assert replays[frozenset({FILLS, QUEUED})] == 1
    # One process's checkpoint in the middle of the last epoch, continued by these.
    run(
        dataclasses.replace(
            configure(Path(folder) / "half", "bank-and-queue"), out=f"{folder}/{world}-half", resume=True
        )
    )
    dist.destroy_process_group()


def stop_in_the_middle(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    step = Loop.train_step

    def interrupted(self: Loop, *arguments: Any) -> None:
        step(self, *arguments)
        if self.update == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Loop, "train_step", interrupted)
    with pytest.raises(StoppedError):
        run(config)
    monkeypatch.setattr(Loop, "train_step", step)


def losses(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("world", [2, 3])
def test_equals_one_process(
    world: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fitted_alone: NDArray[np.float32]
) -> None:
    monkeypatch.setattr(imc.train, "_report", lambda *_: {})
    for case in CASES:
        run(configure(tmp_path / "1", case))
    half = dataclasses.replace(configure(tmp_path / "half", "bank-and-queue"), out=str(tmp_path / f"{world}-half"))
    stop_in_the_middle(half, monkeypatch)
    context = mp.start_processes(
        process, args=(world, str(tmp_path), free_port()), nprocs=world, start_method="spawn", join=False
    )
    deadline = time.monotonic() + 300
    while not context.join(timeout=5):
        assert time.monotonic() < deadline, "the processes did not end"
    np.testing.assert_array_equal(np.load(tmp_path / f"{world}-estimator.npy"), fitted_alone)
    pairs = [(tmp_path / "1" / case, tmp_path / str(world) / case) for case in CASES]
    pairs.append((tmp_path / "1" / "crops", tmp_path / f"{world}-replayed" / "crops"))
    for one, many in [*pairs, (tmp_path / "1" / "bank-and-queue", tmp_path / f"{world}-half")]:
        for expected, line in zip(losses(one), losses(many), strict=True):
            assert line.keys() == expected.keys()
            for name in expected.keys() - {"images_per_second", "seconds"}:
                assert line[name] == pytest.approx(expected[name], rel=1e-5), (many, name)
        models = [read_checkpoint(folder)["model"] for folder in (one, many)]
        for name, expected in models[0].items():
            torch.testing.assert_close(
                models[1][name], expected, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
            )


def free_port() -> int:
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def torchrun(*arguments: str, world: int) -> list[str]:
    return [
        *(sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={world}", "--rdzv-backend=c10d"),
        *("--rdzv-endpoint=127.0.0.1:0", "-m", "imc.train", "--threads", "1", *arguments),
    ]


def test_a_rank_that_dies_ends_the_run(tmp_path: Path) -> None:
    code = (
        "import os, imc.training.loop\n"
        "step = imc.training.loop.Loop.train_step\n"
        "def dying(self, *arguments):\n"
        "    step(self, *arguments)\n"
        "    if self.ranks.rank == 1 and self.update == 3: os.kill(os.getpid(), 9)\n"
        "imc.training.loop.Loop.train_step = dying\n"
        "from imc.cli import main\n"
        "raise SystemExit(main(['train', '--threads', '1', '--epochs', '3', '--out', 'run']))\n"
    )
    port = str(free_port())
    common = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    with contextlib.ExitStack() as stack:
        ranks = [
            stack.enter_context(
                running(
                    [sys.executable, "-c", code],
                    cwd=tmp_path,
                    stderr=subprocess.PIPE,
                    text=True,
                    env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                )
            )
            for rank in (0, 1)
        ]
        _, message = ranks[0].communicate(timeout=200)
        ranks[1].wait(timeout=10)
    assert ranks[0].returncode == 1
    assert "rank 0 of 2: another rank ended or did not answer" in message
    assert "continue from the last checkpoint with --resume" in message
    assert "Traceback" not in message
    assert read_checkpoint(tmp_path / "run")["update"] == 1  # that with which the folder is made


def test_torchrun_writes_one_run(tmp_path: Path) -> None:
    small = ["--epochs", "1", "--widths", "4", "8", "--pool-after", "1", "--small-crops", "0", "--out", "run"]
    result = subprocess.run(
        torchrun(*small, world=2), cwd=tmp_path, capture_output=True, text=True, timeout=400, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("k-means on pixels") == 1
    assert len(losses(tmp_path / "run")) == 1
    assert (tmp_path / "run" / "result.json").exists()


def test_a_batch_that_the_ranks_cannot_share_is_refused(
    tiny: Config, digits: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    from imc.training.ranks import Ranks

    with pytest.raises(UserError, match="--batch-size must be a multiple of 3, the ranks, got 64"):
        Loop(imc.train.build_model(imc.train.plan(tiny, digits)), [digits.images], tiny, Ranks(0, 3))
