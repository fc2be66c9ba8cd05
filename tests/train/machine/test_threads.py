"""One seed gives one run on one number of threads; with --thread-independent on any."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torture.threads import batch_norm, differing

from imc.config import Config
from imc.errors import UserError
from imc.training.placement import require_thread_independent

UNSET = ("MKL_CBWR", "OMP_NUM_THREADS", "IMC_BACKEND")
without_mkl = pytest.mark.skipif(
    not torch.backends.mkl.is_available(), reason="linear layers run on another library than Intel MKL"
)


TRAIN = """
from imc.config import Config
from imc.train import train

for threads in {threads}:
    config = Config(method="{method}", epochs=1, threads=threads, out=f"{out}/{{threads}}", thread_independent={option})
    train(config, report=False)
"""


def in_a_process(script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Of its own, since MKL asks once a process what it shall do."""
    environment = {k: v for k, v in os.environ.items() if k not in UNSET} | environment
    return subprocess.run([sys.executable, "-c", script], env=environment, check=True, capture_output=True, text=True)


def models(folder: Path, method: str, threads: tuple[int, ...], option: bool, **environment: str) -> set[bytes]:
    """The different models that runs on these numbers of threads leave."""
    in_a_process(TRAIN.format(method=method, threads=threads, out=folder, option=option), **environment)
    return {(folder / str(count) / "model.safetensors").read_bytes() for count in threads}


@without_mkl
@pytest.mark.parametrize("method", ["imc-swav", "crlc"])
def test_a_thread_independent_run_is_the_same_bits_on_any_number_of_threads(tmp_path: Path, method: str) -> None:
    assert len(models(tmp_path, method, (1, 2, 3), option=True)) == 1


GRADIENTS = """
import torch
from imc.models.convolution import make_thread_independent
from imc.models.resnet import ResNet
from imc.machine.threads import set_threads

def gradients(threads):
    set_threads(threads)
    torch.manual_seed(0)
    encoder = ResNet("{name}", 3, stem="{stem}", bn_momentum=0.1, width=16).to(memory_format=torch.{order})
    make_thread_independent(encoder)
    images = torch.rand(32, 3, {side}, {side}).contiguous(memory_format=torch.{order})
    encoder(images, 2).square().sum().backward()
    return [parameter.grad for parameter in encoder.parameters()]

one = gradients(1)
for threads in (2, 3, 8):
    assert all(torch.equal(a, b) for a, b in zip(one, gradients(threads))), threads
"""


@without_mkl
@pytest.mark.parametrize(
    ("name", "stem", "side", "order"),
    [
        ("resnet18", "cifar", 28, "channels_last"),
        ("resnet50", "cifar", 28, "channels_last"),
        ("resnet18", "imagenet", 32, "channels_last"),  # whose last maps are of one pixel
        ("resnet34", "cifar-pool", 28, "contiguous_format"),
    ],
)
def test_a_thread_independent_resnet_s_gradients_are_the_same_bits(name: str, stem: str, side: int, order: str) -> None:
    in_a_process(GRADIENTS.format(name=name, stem=stem, side=side, order=order))


def test_torch_s_own_batch_normalisation_would_not(tmp_path: Path) -> None:
    """So the runs above can differ."""
    if not differing((batch_norm, "contiguous", (128, 256), (256,)), (1, 2)):
        pytest.skip("torch's batch normalisation does not split its sums by the number of threads here")
    assert len(models(tmp_path, "imc-swav", (1, 2), option=False, IMC_BACKEND="eager")) == 2


PRODUCT_BEFORE = """
import torch
product = torch.rand(64, 64) @ torch.rand(64, 64)
from imc.config import Config
from imc.errors import UserError
from imc.machine.threads import products_depend_on_threads, set_threads
from imc.training.placement import require_thread_independent
set_threads(2)
if not products_depend_on_threads():
    print("independent")
try:
    require_thread_independent(Config(), "cpu", torch.device("cpu"))
except UserError as error:
    print(error)
"""


@without_mkl
def test_a_product_that_came_before_is_noticed() -> None:
    said = in_a_process(PRODUCT_BEFORE).stdout
    if "independent\n" in said:
        pytest.skip("this library's products do not depend on the number of threads outside its strict mode either")
    assert said.startswith("--thread-independent needs Intel MKL in its strict mode")


@pytest.mark.parametrize(
    ("options", "backend", "device", "says"),
    [
        ({"compile": True}, "cpu", "cpu", "with --compile"),
        ({"sync_bn": True}, "cpu", "cpu", "with --sync-bn"),
        ({"amp": "bf16"}, "cpu", "cpu", "with --amp bf16"),
        ({"encoder": "custom"}, "cpu", "cpu", "with an encoder of your own"),
        ({}, "eager", "cpu", "needs the kernels of --backend cpu, this run has eager"),
        ({}, "cuda", "cuda", "is about the threads of a CPU, this run is on cuda"),
    ],
)
def test_what_cannot_be_thread_independent_is_refused(
    options: dict[str, object], backend: str, device: str, says: str
) -> None:
    with pytest.raises(UserError, match=f"^--thread-independent .*{says}"):
        require_thread_independent(Config(**options), backend, torch.device(device))  # type: ignore[arg-type]
