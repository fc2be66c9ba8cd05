"""Every Triton kernel compiles for every target without a spill, and docs/triton-kernels.md says what it needs."""

from __future__ import annotations

import importlib.util
import re
from concurrent.futures import ThreadPoolExecutor

import pytest
import triton_groups
import triton_kernels

TEXT = triton_kernels.PAGE.read_text()
WHOLLY = "sm_90"
pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


def rows(text: str, columns: int) -> list[list[str]]:
    """The cells of the tables with so many columns, without their heads."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:2] == "| "]
    return [cells for cells in lines if len(cells) == columns][1:]


@pytest.fixture
def same_triton() -> None:
    import triton

    version = re.search(r"Triton (\S+)\n", TEXT)
    assert version is not None
    if version[1] != triton.__version__:
        pytest.skip(f"the page is of Triton {version[1]}, installed is {triton.__version__}")


@pytest.mark.usefixtures("same_triton")
def test_bytes_and_what_the_kernels_compile_to_are_those_of_the_page() -> None:
    """For one target wholly; the others, of which each compilation takes as long, by the first of each kernel."""
    found = {}
    with ThreadPoolExecutor(2) as pool:
        moved = pool.submit(triton_kernels.byte_rows)
        for name in triton_kernels.TARGETS:
            only = () if name == WHOLLY else ("--first",)
            found[name] = pool.submit(triton_kernels.worker, "--resources", name, *only)
    table = rows(TEXT, 3 + len(triton_kernels.TARGETS))
    for position, (name, lines) in enumerate(found.items(), start=3):
        made = [[*map(str, line[:3]), " / ".join(map(str, line[3:6]))] for line in lines.result()]
        written = [[*cells[:3], cells[position]] for cells in table]
        first = {triton_kernels.first_of(*cells[:2]): cells for cells in reversed(written)}
        expected = [cells for cells in written if name == WHOLLY or cells is first[triton_kernels.first_of(*cells[:2])]]
        assert made == expected, name
    assert TEXT.startswith(triton_kernels.INTRODUCTION)
    assert [line for line in TEXT.splitlines() if line in moved.result()] == moved.result()
    assert len(moved.result()) == len(rows(TEXT, 5))


def test_no_kernel_spills() -> None:
    made = rows(TEXT, 3 + len(triton_kernels.TARGETS))
    assert made
    for kernel, call, _, *usages in made:
        assert all(usage.endswith("/ 0") for usage in usages), (kernel, call, usages)


@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
def test_the_kernels_of_groups_compile_without_a_spill(target: str) -> None:
    made = triton_kernels.worker(target, script=triton_groups.__file__)
    assert {"own_columns_kernel", "column_sums_kernel", "entropies_kernel", "process_sums_kernel"} <= {
        k for k, _ in made
    }
    assert all(spilled == 0 for _, spilled in made), made


@pytest.mark.parametrize("target", triton_kernels.WITHOUT_TF32)
def test_products_compile_where_there_is_no_tf32(target: str) -> None:
    """Of AMD's GPUs gfx942 alone has it: the others multiply in float32 what is meant for it."""
    made = triton_kernels.worker("--without-tf32", target)
    assert len(made) == 8
    assert len(set(made)) == 4


def test_a_batch_size_compiles_nothing_new() -> None:
    (counts,) = triton_kernels.worker("--specialisations")
    assert counts
    for kernel, (one, twenty) in counts.items():
        assert twenty == one, kernel
