"""The CUDA kernels compile for every architecture without a warning, spill nothing, and take what docs/ says."""

import cuda_kernels
import pytest


def test_kernels_spill_nothing_and_take_what_the_page_says() -> None:
    compiler = cuda_kernels.nvcc()
    if compiler is None:
        pytest.skip("nvcc is not installed here")
    found = cuda_kernels.measure(compiler)
    assert {kernel: usage.spilled for kernel, usage in found.items() if usage.spilled} == {}
    written = cuda_kernels.PAGE.read_text()
    if f"nvcc {cuda_kernels.version(compiler)}\n" not in written:
        pytest.skip(f"the page was not written by nvcc {cuda_kernels.version(compiler)}: it may differ by a register")
    assert cuda_kernels.page(compiler, found) == written
