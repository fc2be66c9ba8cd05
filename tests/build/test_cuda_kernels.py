"""The CUDA kernels, built with warnings as errors, are there for every architecture and take what docs/ says."""

import cuda_kernels
import pytest


def test_kernels_spill_nothing_and_take_what_the_page_says(cuda_tools: tuple[str, str]) -> None:
    compiler, dump = cuda_tools
    found = cuda_kernels.measure(dump)
    assert {architecture for _, architecture in found} == set(cuda_kernels.ARCHITECTURES)
    assert {key: usage for key, usage in found.items() if usage.stack} == {}
    written = cuda_kernels.PAGE.read_text()
    if f"nvcc {cuda_kernels.version(compiler)}\n" not in written:
        pytest.skip(f"the page was not written by nvcc {cuda_kernels.version(compiler)}: it may differ by a register")
    assert cuda_kernels.page(compiler, found) == written
