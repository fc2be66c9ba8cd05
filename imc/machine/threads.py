"""Threads of the CPU, and runs whose bits do not depend on their number."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch

from imc.config import Config
from imc.errors import UserError
from imc.machine.arithmetic import processor


def set_threads(count: int) -> None:
    """Let torch use so many threads; 0: as many as it chooses.

    The kernels of this package give the same bits on any number of them. So do the products of Intel MKL, which linear
    layers run on, in its strict mode. It reads the variable at the first product of the process, so one made before
    this call leaves them to the number of threads; a value that is already set stays.
    """
    # The branch for AVX2, which leaves half of the width of AVX-512 unused, is the one that was tried on AMD's.
    wide = torch.backends.cpu.get_cpu_capability() == "AVX512" and "Intel" in processor()
    os.environ.setdefault("MKL_CBWR", "AVX512,STRICT" if wide else "AVX2,STRICT")
    if count:
        torch.set_num_threads(count)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def require_thread_independent(config: Config, backend: str, device: torch.device) -> None:
    """The bits of this run can be kept from depending on the number of threads. To be asked after :func:`set_threads`.

    Args:
        config: of the run.
        backend: that runs the kernels.
        device: of the run.

    Raises:
        UserError: they cannot.
    """
    if device.type != "cpu":
        raise UserError(f"--thread-independent is about the threads of a CPU, this run is on {device.type}")
    if backend != "cpu":
        raise UserError(f"--thread-independent needs the kernels of --backend cpu, this run has {backend}")
    for given, name in (
        (config.amp == "bf16", "--amp bf16"),
        (config.compile, "--compile"),
        (config.sync_bn, "--sync-bn"),
        (config.encoder == "custom", "an encoder of your own"),
    ):
        if given:
            raise UserError(f"--thread-independent cannot be kept with {name}, whose sums torch splits by the threads")
    if _products_depend_on_threads():
        raise UserError(
            "--thread-independent needs Intel MKL in its strict mode, which it enters at a process's first product: "
            "this torch has another library, or matrices were multiplied before imc set MKL_CBWR"
        )


def _products_depend_on_threads() -> bool:
    """Whether they differ at two of the sizes at which MKL's do outside its strict mode."""
    before = torch.get_num_threads()
    generator = torch.Generator().manual_seed(0)
    pairs = [
        tuple(torch.randn(shape, generator=generator, dtype=torch.float32) for shape in ((m, k), (k, n)))
        for m, k, n in ((10, 768, 256), (128, 256, 512), (1000, 3072, 128))
    ]
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append([a @ b for a, b in pairs])
    finally:
        torch.set_num_threads(before)
    return not all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))
