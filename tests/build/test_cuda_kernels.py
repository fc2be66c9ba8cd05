"""The CUDA kernels, built with warnings as errors, are there for every architecture and take what docs/ says."""

import cuda_kernels
import pytest

from imc_kernels import native


def test_kernels_spill_nothing_and_take_what_the_page_says() -> None:
    compiler, dump = cuda_kernels.nvcc(), cuda_kernels.cuobjdump()
    if compiler is None or dump is None:
        pytest.skip("nvcc or cuobjdump is not installed here")
    if reason := native.missing("_cuda"):
        pytest.skip(reason)
    module = native.module("_cuda")
    if module.architectures() != " ".join(cuda_kernels.ARCHITECTURES.values()):
        pytest.skip(f"imc_kernels._cuda was built for {module.architectures()}")
    found = cuda_kernels.measure(dump)
    assert {architecture for _, architecture in found} == set(cuda_kernels.ARCHITECTURES)
    assert {key: usage for key, usage in found.items() if usage.stack} == {}
    written = cuda_kernels.PAGE.read_text()
    if f"nvcc {cuda_kernels.version(compiler)}\n" not in written:
        pytest.skip(f"the page was not written by nvcc {cuda_kernels.version(compiler)}: it may differ by a register")
    assert cuda_kernels.page(compiler, found) == written
