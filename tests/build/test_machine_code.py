"""The loops of the kernels that have a predicted time are those of docs/machine-code.md, and so are the times."""

from __future__ import annotations

import importlib.util

import cuda_kernels
import kernel_times
import machine_code
import pytest
import sass

TEXT = machine_code.PAGE.read_text()


def section(title: str) -> list[str]:
    """The lines of the page under a title that begins so."""
    return TEXT.split(f"\n## {title}")[1].split("\n## ")[0].splitlines()


def test_cuda_kernels_have_the_loops_and_times_of_the_page(cuda_tools: tuple[str, str]) -> None:
    compiler, dump = cuda_tools
    title = f"Loops of the CUDA kernels, {machine_code.TIMED}, nvcc {cuda_kernels.version(compiler)}\n"
    if title not in TEXT:
        pytest.skip(f"the page was not written by nvcc {cuda_kernels.version(compiler)}, whose loops may differ")
    timed = {case.kernel for case in kernel_times.cases()}
    code = machine_code.cuda_code(dump, machine_code.TIMED, timed)
    written = [line for line in section(title) if line.split("`")[1:2] and line.split("`")[1] in timed]
    assert list(machine_code.cuda_rows(code)) == written
    assert [line for line in section("Predicted times") if line[:2] == "| "][1:] == list(
        machine_code.time_rows(dump, code)
    )


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_a_triton_kernel_has_the_loops_of_the_page() -> None:
    import triton

    title = f"Loops of the Triton kernels, sm_90, Triton {triton.__version__}\n"
    if title not in TEXT:
        pytest.skip(f"the page was not written by Triton {triton.__version__}")
    made = machine_code.triton_worker("sm_90", [machine_code.A_PRODUCT])
    assert made
    assert made == [line for line in section(title) if f", {machine_code.A_PRODUCT} |" in line]


LISTING = """
        Function : _Z6kernelPf
        /*0000*/                   S2R R0, SR_TID.X ;                       /* 0x0000000000007919 */
                                                                            /* 0x000e280000002100 */
        /*0010*/                   LDG.E.128 R4, desc[UR4][R2.64] ;         /* 0x0000000402047981 */
                                                                            /* 0x001ea8000c1e9d00 */
        /*0020*/                   LDG.E.128 R8, desc[UR4][R2.64+0x200] ;   /* 0x0000000402047981 */
                                                                            /* 0x000ee8000c1e9d00 */
        /*0030*/                   FADD R12, R4, R8 ;                       /* 0x0000000804047221 */
                                                                            /* 0x00cfc80000000000 */
        /*0040*/               @P0 BRA 0x10 ;                               /* 0xfffffff000007947 */
                                                                            /* 0x000fea000383ffff */
        /*0050*/                   EXIT ;                                   /* 0x000000000000794d */
                                                                            /* 0x000fea0003800000 */
        /*0060*/                   BRA 0x60;                                /* 0xfffffff000007947 */
                                                                            /* 0x000fc0000383ffff */
"""


def test_a_listing_is_read() -> None:
    ((name, code),) = sass.functions(LISTING)
    assert (name, len(code)) == ("_Z6kernelPf", 7)
    ((region),) = map(sass.Region, sass.loops(code))
    assert [x.address for x in region.code] == [0x10, 0x20, 0x30, 0x40]
    assert (region.kind, region.widths, region.elements(), region.float32) == ("load", "2x16", 8, 1)
    assert sass.in_flight(region.code) == 2
    # The second load is issued 4 cycles after the first; the sum waits for both, and is followed by 4 and 5 cycles.
    assert sass.cycles(region.code, "L2") == 4 + sass.GLOBAL["L2"] + 4 + 5


def test_a_loop_that_is_gone_is_said() -> None:
    ((_, code),) = sass.functions(LISTING)
    with pytest.raises(LookupError, match="no loop does 'load exp2'"):
        kernel_times.Sweep("load exp2", 1).region(code)
