"""Threads of the CPU, and runs whose bits do not depend on their number."""

from __future__ import annotations

import os

import torch


def set_threads(count: int) -> None:
    """Let torch use so many threads; 0: as many as it chooses.

    The kernels of this package and torch's convolutions give the same bits on any number of them. The products of Intel
    MKL, which linear layers run on, do so in its strict mode alone. It reads the variable at the first product of the
    process, so one made before this call leaves the run's bits to the number of threads; a value that is already set
    stays.
    """
    os.environ.setdefault("MKL_CBWR", "AVX2,STRICT")
    if count:
        torch.set_num_threads(count)
