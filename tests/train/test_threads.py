"""One seed gives one run, whatever the number of threads."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

# Their learning rates make rounding visible within a few updates.
METHODS = {"imc-swav": ["--epochs", "2"], "crlc": ["--method", "crlc", "--epochs", "2"]}


def run(folder: Path, method: str, threads: int, **environment: str) -> Path:
    """The folder of a run in a process of its own: MKL asks once a process what it shall do."""
    environment = {k: v for k, v in os.environ.items() if k not in ("MKL_CBWR", "OMP_NUM_THREADS")} | environment
    command = [sys.executable, "-m", "imc.train", *METHODS[method], "--threads", str(threads), "--out", str(folder)]
    subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return folder


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="linear layers run on another library than Intel MKL")
@pytest.mark.parametrize("method", METHODS)
def test_one_and_two_threads_give_the_same_bits(tmp_path: Path, method: str) -> None:
    one, two = (run(tmp_path / str(threads), method, threads) for threads in (1, 2))
    for name in ("model.safetensors", "labels.csv"):
        assert (one / name).read_bytes() == (two / name).read_bytes()


def test_torch_s_own_batch_normalisation_would_not(tmp_path: Path) -> None:
    """So the runs above can differ."""
    weights = [
        load_file(run(tmp_path / str(threads), "imc-swav", threads, IMC_BACKEND="eager") / "model.safetensors")
        for threads in (1, 2)
    ]
    assert any(not torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
