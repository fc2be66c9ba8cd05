"""What the tests of the CUDA kernels' machine code need."""

from __future__ import annotations

import cuda_kernels
import pytest

from imc_kernels import native


@pytest.fixture
def cuda_tools() -> tuple[str, str]:
    """nvcc and cuobjdump, where both are installed and the kernels are built for the architectures of the pages."""
    compiler, dump = cuda_kernels.nvcc(), cuda_kernels.cuobjdump()
    if compiler is None or dump is None:
        pytest.skip("nvcc or cuobjdump is not installed here")
    if reason := native.missing("_cuda"):
        pytest.skip(reason)
    module = native.module("_cuda")
    if module.architectures() != " ".join(cuda_kernels.ARCHITECTURES.values()):
        pytest.skip(f"imc_kernels._cuda was built for {module.architectures()}")
    return compiler, dump
