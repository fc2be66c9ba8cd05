"""One seed gives one run, whatever the number of threads."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

UNSET = ("MKL_CBWR", "OMP_NUM_THREADS", "IMC_BACKEND")
without_mkl = pytest.mark.skipif(
    not torch.backends.mkl.is_available(), reason="linear layers run on another library than Intel MKL"
)


TRAIN = """
from imc.config import Config
from imc.train import train

train(Config(method="{method}", epochs=1, threads={threads}, out="{out}"), report=False)
"""


def in_a_process(script: str, **environment: str) -> None:
    """Of its own, since MKL asks once a process what it shall do."""
    environment = {k: v for k, v in os.environ.items() if k not in UNSET} | environment
    subprocess.run([sys.executable, "-c", script], env=environment, check=True, capture_output=True, text=True)


def models(folder: Path, method: str, **environment: str) -> list[bytes]:
    """The trained models of a run on one thread and of one on two."""
    outs = [folder / str(threads) for threads in (1, 2)]
    for threads, out in enumerate(outs, start=1):
        in_a_process(TRAIN.format(method=method, threads=threads, out=out), **environment)
    return [(out / "model.safetensors").read_bytes() for out in outs]


@without_mkl
@pytest.mark.parametrize("method", ["imc-swav", "crlc"])
def test_one_and_two_threads_give_the_same_bits(tmp_path: Path, method: str) -> None:
    one, two = models(tmp_path, method)
    assert one == two


GRADIENTS = """
import torch
from imc.models.resnet import ResNet
from imc.threads import set_threads

def gradients(threads):
    set_threads(threads)
    torch.manual_seed(0)
    encoder = ResNet("{name}", 3, stem="cifar", bn_momentum=0.1, width=16).to(memory_format=torch.channels_last)
    images = torch.rand(32, 3, 28, 28).contiguous(memory_format=torch.channels_last)
    encoder(images, 2).square().sum().backward()
    return [parameter.grad for parameter in encoder.parameters()]

assert all(torch.equal(one, two) for one, two in zip(gradients(1), gradients(2)))
"""


@without_mkl
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_a_resnet_s_gradients_are_the_same_bits(name: str) -> None:
    in_a_process(GRADIENTS.format(name=name))


def test_torch_s_own_batch_normalisation_would_not(tmp_path: Path) -> None:
    """So the runs above can differ."""
    one, two = models(tmp_path, "imc-swav", IMC_BACKEND="eager")
    assert one != two
