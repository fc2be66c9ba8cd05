"""Threads of the CPU, and runs whose bits do not depend on their number."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch

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


def products_depend_on_threads() -> bool:
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
