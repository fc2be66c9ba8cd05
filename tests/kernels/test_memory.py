"""The scratch memory of the CPU kernels: what the docstrings say, and MemoryError where it is not to be had.

Measured in processes of their own, each in a fork of its own, so that nothing of an earlier call counts.
"""

from __future__ import annotations

import functools
import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import imc_kernels
from imc_kernels import backends, native

pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/status"),
    pytest.mark.skipif("cpu" not in backends.available(), reason="the CPU kernels are not built"),
]
NOISE = 6 << 20  # bytes: what Python and the allocator take beside, in pages of 2 MiB
CPU: dict[str, Any] = {"backend": "cpu"}


AMX = native.missing("_cpu") is None and native.module("_cpu").instruction_set() == "amx"
PACKED = 1.5 if AMX else 1  # the copies that products are made from, in numbers of float32 for each of their own


def rounded(n: int, up_to: int) -> int:
    return -(-n // up_to) * up_to


def sinkhorn(batch: int, prototypes: int) -> tuple[Callable[[], Any], int]:
    scores = torch.linspace(-9, 9, batch * prototypes).view(1, batch, prototypes)  # iterated on logarithms
    said = 12 * min(batch // 32 + 1, 64) * prototypes + 8 * (batch + prototypes)
    return lambda: imc_kernels.sinkhorn(scores, **CPU), said


def prototype_scores(rows: int, prototypes: int, dim: int, *needs: bool) -> tuple[Callable[[], Any], int]:
    x, w = torch.ones(rows, dim, requires_grad=needs[0]), torch.ones(prototypes, dim, requires_grad=needs[1])
    said = int(4 * (PACKED * dim * max(prototypes, rows if needs[1] else 0) + rows + prototypes))
    return lambda: with_gradients(imc_kernels.prototype_scores(x, w, **CPU), x, w), said


def per_view_batch_norm(rows: int, channels: int) -> tuple[Callable[[], Any], int]:
    x = torch.ones(rows, channels, requires_grad=True)
    said = (16 + 24) * -(-rows // 32) * channels + 64 * channels  # the forward's stays with the thread
    return lambda: with_gradients(imc_kernels.per_view_batch_norm(x, **CPU), x), said


def swapped_prediction_loss(batch: int, prototypes: int) -> tuple[Callable[[], Any], int]:
    scores, assignments = torch.ones(2, batch, prototypes, requires_grad=True), torch.ones(1, batch, prototypes)
    said = 8 * batch + 4 * 3 * prototypes
    return lambda: with_gradients(imc_kernels.swapped_prediction_loss(scores, assignments, **CPU), scores), said


def linear_swapped_prediction_loss(batch: int, prototypes: int, dim: int) -> tuple[Callable[[], Any], int]:
    z, w = torch.randn(2, batch, dim, requires_grad=True), torch.randn(prototypes, dim, requires_grad=True)
    rows, width = 2 * batch, min(prototypes // 32, 1024)
    said = 4 * (rows * width + 4 * width * torch.get_num_threads() + 2 * width * dim + rows * dim) + 16 * prototypes
    assert width < 1024 or said < 0.05 * 4 * rows * prototypes  # of the scores
    return lambda: with_gradients(
        imc_kernels.linear_swapped_prediction_loss(z, w, iterations=1, epsilon=0.3, **CPU), z, w
    ), said


def mutual_information_loss(batch: int, clusters: int, prototypes: int, *needs: bool) -> tuple[Callable[[], Any], int]:
    views = 2
    logits = torch.ones(views, batch, clusters, requires_grad=needs[0])
    scores = torch.ones(views, batch, prototypes, requires_grad=needs[1])
    wide, columns = rounded(views * clusters, 32 if AMX else 16), rounded(views * prototypes, 64 if AMX else 48)
    joint, u, y = wide * columns, rounded(batch, 12) * columns, batch * wide
    for_logits = y + (PACKED * joint if AMX else 0)
    said = joint + y + PACKED * y + u + (for_logits if needs[0] else 0) + (PACKED * joint + u if needs[1] else 0)
    said = int(4 * said)
    return lambda: with_gradients(imc_kernels.mutual_information_loss(logits, scores, **CPU), logits, scores), said


def log_dot_product_loss(heads: int, batch: int, clusters: int) -> tuple[Callable[[], Any], int]:
    logits = torch.ones(heads, 2, batch, clusters, requires_grad=True)
    group = max(2**22 // (2 * batch * clusters), 1)
    said = int(4 * group * (2.4 * 2 * batch * clusters + 3 * batch))
    return lambda: with_gradients(imc_kernels.log_dot_product_loss(logits, **CPU).sum(), logits), said


def self_distillation_loss(heads: int, batch: int, clusters: int, given: bool) -> tuple[Callable[[], Any], int]:
    students, teachers = (
        torch.ones(heads, 2, batch, clusters, requires_grad=True),
        torch.ones(heads, 2, batch, clusters),
    )
    prior = torch.ones(heads, clusters) if given else None
    means = 0 if given else 24 * clusters * heads * -(-batch // 32)
    said = 4 * (5 * heads * rounded(batch, 32) + 64 * clusters * torch.get_num_threads()) + means
    call = functools.partial(imc_kernels.self_distillation_loss, students, teachers, prior=prior, **CPU)
    return lambda: with_gradients(call(), students), said


def info_nce_loss(batch: int, dim: int, needs: bool) -> tuple[Callable[[], Any], int]:
    embeddings = torch.full((2, batch, dim), dim**-0.5, requires_grad=needs)
    said = int(4 * (PACKED * 2 * batch * dim * (2 if needs else 1) + 4 * 2 * batch)) + 2**20
    return lambda: with_gradients(imc_kernels.info_nce_loss(embeddings, **CPU), embeddings), said


def multi_crop(side: int, size: int) -> tuple[Callable[[], Any], int]:
    images, indices = torch.ones(1, side, side, 3, dtype=torch.uint8), torch.tensor([0])
    parameters = imc_kernels.draw_crop_parameters(0, 0, indices, views=1, height=side, width=side, blur_probability=1.0)
    options: dict[str, Any] = {"size": size, "mean": [0.5] * 3, "std": [0.5] * 3}
    said = 4 * (3 * size * (side + 3 * size) + 4 * 2 * side)
    return lambda: imc_kernels.multi_crop(images, indices, parameters, **options, **CPU), said


def draw_crop_parameters(crops: int) -> tuple[Callable[[], Any], int]:
    indices = torch.arange(crops)
    return lambda: imc_kernels.draw_crop_parameters(0, 0, indices, views=1, height=32, width=32), 2048 * crops


CASES: list[tuple[Callable[..., tuple[Callable[[], Any], int]], tuple[Any, ...]]] = [
    (sinkhorn, (64, 2**19)),
    (prototype_scores, (16, 200_000, 64, False, False)),
    (prototype_scores, (200_000, 16, 64, True, True)),
    (per_view_batch_norm, (2**17, 512)),
    (swapped_prediction_loss, (4, 2**21)),
    (linear_swapped_prediction_loss, (512, 2**16, 8)),
    (mutual_information_loss, (64, 16, 2**17, False, False)),
    (mutual_information_loss, (64, 16, 2**17, True, True)),
    (mutual_information_loss, (2**18, 16, 16, True, False)),
    (log_dot_product_loss, (100, 512, 64)),
    (log_dot_product_loss, (1, 2**16, 64)),
    (self_distillation_loss, (64, 2**15, 2, True)),
    (self_distillation_loss, (32, 256, 2**10, False)),
    (info_nce_loss, (512, 2**13, False)),
    (info_nce_loss, (512, 2**13, True)),
    (multi_crop, (2000, 1000)),
    (draw_crop_parameters, (40_000,)),
]


def with_gradients(result: Tensor, *inputs: Tensor) -> list[Tensor]:
    """The result and its gradient, and those of the inputs that require one."""
    wanted, ones = [x for x in inputs if x.requires_grad], torch.ones_like(result)
    return [result, ones, *(torch.autograd.grad(result, wanted, ones) if wanted else ())]


def status(field: str) -> int:
    """Bytes of a field of this process's status."""
    return 1024 * int(re.findall(rf"{field}:\s*(\d+)", Path("/proc/self/status").read_text())[0])


def scratch(position: int) -> tuple[int, int]:
    """What a call's peak lies above inputs, result and gradients, and what its docstring says, in bytes."""
    make, sizes = CASES[position]
    make(*(min(size, 40) if type(size) is int else size for size in sizes))[0]()  # what is set up once
    call, said = make(*sizes)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before, result = status("VmRSS"), call()
    results = result if isinstance(result, list) else [result]
    return status("VmHWM") - before - sum(x.numel() * x.element_size() for x in results), said


def starved() -> None:
    """Runs out of memory inside and outside of parallel loops, and works again when there is some."""
    torch.set_num_threads(2)
    scores, assignments = torch.zeros(2, 1, 2**24), torch.empty(2, 1, 2**24)
    rest = (None, None, 0.05, 1)
    native.call("_cpu", "sinkhorn", torch.zeros(2, 64, 2**9), None, torch.empty(2, 64, 2**9), *rest)
    logits = torch.zeros(2, 1, 2**23)
    works = (
        lambda: native.call("_cpu", "sinkhorn", scores, None, assignments, *rest),  # a problem a thread
        lambda: native.call("_cpu", "sinkhorn", scores[:1], None, assignments[:1], *rest),
        lambda: native.call(
            "_cpu", "mutual_information_loss", logits, logits, logits.new_empty(()), None, None, 0.1, 4.0, 1.0, False
        ),
    )
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (status("VmSize") + 2**20, limits[1]))
    sentences = [refusal(work) for work in works]
    resource.setrlimit(resource.RLIMIT_AS, limits)
    native.call("_cpu", "sinkhorn", scores, None, assignments, *rest)
    print(json.dumps([*sentences, float(assignments.sum())]))


def refusal(work: Callable[[], None]) -> str:
    try:
        work()
    except MemoryError as error:
        return str(error)
    return "served"


def run(work: str) -> Any:
    command = [sys.executable, str(Path(__file__)), work]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.fixture(scope="module")
def measured() -> Any:
    return run("scratch")


@pytest.mark.parametrize("position", range(len(CASES)), ids=[f"{make.__name__}-{sizes}" for make, sizes in CASES])
def test_a_call_takes_the_memory_that_its_docstring_says(position: int, measured: Any) -> None:
    taken, said = measured[position]
    assert said / 3 - NOISE < taken < said + NOISE, f"{taken / 2**20:.1f} MiB, {said / 2**20:.1f} MiB are said"


def test_a_call_that_lacks_memory_says_so_and_the_next_one_works() -> None:
    *sentences, total = run("starved")[0]
    names = ("sinkhorn", "sinkhorn", "mutual_information_loss")
    assert sentences == [f"imc_kernels._cpu.{name}: there is not enough memory for its scratch" for name in names]
    assert total == pytest.approx(2)


if __name__ == "__main__":
    if sys.argv[1] == "starved":
        starved()
        sys.exit()
    for position in range(len(CASES)):  # none uses a thread before it forks
        if os.fork() == 0:
            print(json.dumps(scratch(position)), flush=True)
            os._exit(0)
        if os.wait()[1]:
            sys.exit(1)
