"""What the GPU kernels' inner loops consist of, and the time that follows, without a GPU: writes docs/machine-code.md.

    pip install . && python benchmarks/machine_code.py           four minutes of processor time, to disassemble
    pip install . && python benchmarks/machine_code.py --cuda    one: what is written of the Triton kernels stays

The CUDA kernels are those of the built module, the Triton ones what its compiler makes of the calls of
triton_kernels.py. Needs nvcc, whose build it describes, and Triton, for its compiler and its cuobjdump.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cuda_kernels
import kernel_times
import sass

from imc_kernels import native

PAGE = Path(__file__).resolve().parents[1] / "docs" / "machine-code.md"
ARCHITECTURES = {"sm_80": "sm_80", "sm_90a": "sm_90", "sm_100": "sm_100"}  # as nvcc and as Triton call them
TIMED = "sm_90a"
HEAD = """# The machine code of the GPU kernels, and the times that follow

Written by `python benchmarks/machine_code.py`, which says what it needs, and compared by
`tests/build/test_machine_code.py` for the kernels that have a time. Nothing here was measured on a GPU. A change that
moves a figure fails the test; where it makes one worse, write the page anew only if that is worth it.

## Predicted times

Microseconds on an H200: {multiprocessors} multiprocessors at {clock} GHz, {memory} TB/s, {of_one} bytes a cycle between
one of them and L2. What a case asks of its loops stands in `benchmarks/kernel_times.py`, what a loop costs in the
tables below. "Issue", "special" (functions) and "shared" (memory and first-level cache) are what these units need if
nothing else takes time, "memory" the bytes, "waiting" a warp's trips one after the other, each with its own loads to
wait for and nothing beside it (by the compiler's scoreboards, and latencies from published measurements). "Fixed" is
{launch} us a launch and {cluster} or {grid} us for a barrier of a cluster or a grid: assumptions until there is a
measurement. Predicted is "fixed" and the largest of the others: less than it will be, since units do not overlap
wholly, blocks end unevenly, and code outside of the loops counts for `swapped_prediction_loss` alone, which has little
else. The floor is each input read once and each output written once.
"""
TIMES = (
    "case", "blocks", "multiprocessors, blocks on each", "issue", "special", "shared", "memory", "waiting", "fixed",
    "predicted", "floor", "bound by",
)  # fmt: skip
COLUMNS = (
    "kernel", "loop", "elements", "instructions", "float32", "special", "shared", "bytes read", "bytes written",
    "loads", "in flight", "to float64", "matrix", "cycles",
)  # fmt: skip
READING = """A row is a loop without those inside it; of several that do the same only the widest, without its
remainders. "Elements" are those of a trip of one thread: what it exponentiates, else writes, else reads. The next six
columns are for an element, the others for a trip: float32 operations, the special-function unit's, accesses of shared
memory, and bytes of global memory. "Loads" are of global memory, as number x bytes, "in flight" how many are under way
when the first is waited for; then come conversions to or from float64, matrix instructions, and the cycles of a warp
alone whose loads come from L2. Of the CUDA kernels the float32 forms stand here, and those of bfloat16 crops; of the
Triton kernels those of one call of an operation, without those that have no loop.
"""
A_PRODUCT = "prototype_scores [6, 256, 128], [1000, 128] bfloat16"
TRITON_CALLS = (
    "sinkhorn [2, 256, 1000] float32",
    "swapped_prediction_loss [6, 256, 1000], [2, 256, 1000] float32",
    "mutual_information_loss [6, 256, 10], [6, 256, 1000] float32",
    "log_dot_product_loss [10, 2, 512, 10] float32",
    "self_distillation_loss [10, 2, 512, 10], [10, 2, 512, 10] float32",
    A_PRODUCT,
    "info_nce_loss [2, 128, 128] bfloat16",
)
SHOWN = re.compile(r"<float|<bfloat16, 3, true|^[^<]*$|<(?:true|false)>$")


def row(cells: Iterable[object]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def table_head(columns: tuple[str, ...]) -> list[str]:
    return [row(columns), "|" + "---|" * len(columns)]


def short(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def loop_rows(kernel: str, code: list[sass.Instruction], size: int) -> Iterator[str]:
    """Of a kernel whose elements in global memory have ``size`` bytes."""
    for region in sass.main_loops(code, size):
        each = region.elements(size)
        costs = (
            region.instructions, region.float32, region.special, region.shared, region.bytes("LDG", "LDGSTS"),
            region.bytes("STG"),
        )  # fmt: skip
        cells = (region.widths or 0, sass.in_flight(region.code), region.float64, region.matrix)
        yield row(
            [kernel, region.kind, each, *(short(x / each) for x in costs), *cells, sass.cycles(region.code, "L2")]
        )


def cuda_code(dump: str, architecture: str, only: Collection[str] = ()) -> dict[str, list[sass.Instruction]]:
    """kernel -> its code in the built module."""
    path = str(native.module("_cuda").__file__)
    report = subprocess.run([dump, "--dump-resource-usage", path], capture_output=True, text=True, check=True).stdout
    mangled = sorted(set(re.findall(r"Function (\w+):", report)))
    names = dict(zip(mangled, cuda_kernels.short_names(mangled), strict=True))
    # Of some, one by one; of all, at once, which is faster.
    some = ["-fun", ",".join(name for name in mangled if names[name] in only)] if only else []
    code = sass.disassemble(dump, path, "-arch", architecture, *some)
    return {names[name]: instructions for name, instructions in code if only or SHOWN.search(names[name])}


def cuda_rows(code: dict[str, list[sass.Instruction]]) -> Iterator[str]:
    for kernel in sorted(code):
        yield from loop_rows(f"`{kernel}`", code[kernel], 2 if "bfloat16" in kernel else 4)


def time_rows(dump: str, code: dict[str, list[sass.Instruction]]) -> Iterator[str]:
    usage = cuda_kernels.measure(dump)
    for case in kernel_times.cases():
        takes = usage[case.kernel, TIMED]
        time = kernel_times.predict(case, code[case.kernel], takes.registers, takes.shared)
        parts = (time.issue, time.special, time.shared, time.memory, time.waiting, time.fixed, time.predicted)
        places = f"{time.multiprocessors}, {time.resident}"
        yield row([case.name, case.blocks, places, *(f"{x:.1f}" for x in (*parts, time.floor)), time.bound])


def triton_rows(architecture: str, chosen: Collection[str]) -> None:
    """Prints a row for each loop of each kernel that the chosen calls of triton_kernels.py need."""
    import triton_kernels
    from triton import knobs

    target = triton_kernels.Target(architecture)
    calls = [call for call in triton_kernels.calls() if call.name in chosen]
    for call, launch in triton_kernels.variants(target, lambda: calls).values():
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(target.machine_code(launch))
            file.flush()
            for _, code in sass.disassemble(knobs.nvidia.cuobjdump.path, file.name):
                for line in loop_rows(f"{launch.kernel.__name__}, {call}", code, 2 if "float16" in call else 4):
                    print(json.dumps(line), flush=True)


def triton_worker(architecture: str, chosen: Collection[str] = TRITON_CALLS) -> list[str]:
    """The rows, from a process of its own: compiled and interpreted kernels do not mix."""
    command = [sys.executable, __file__, "--triton", architecture, *chosen]
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def triton_sections() -> list[str]:
    """For each architecture its section, made anew."""
    import triton

    with ThreadPoolExecutor(2) as pool:
        made = list(pool.map(triton_worker, ARCHITECTURES.values()))
    return [
        "\n".join([title("Triton", named, f"Triton {triton.__version__}"), *table_head(COLUMNS), *rows])
        for named, rows in zip(ARCHITECTURES.values(), made, strict=True)
    ]


def written_sections() -> list[str]:
    """The same, of the page that is there."""
    parts = [f"## {part}".rstrip() for part in PAGE.read_text(encoding="utf-8").split("\n## ")[1:]]
    return [part for part in parts if part.startswith("## Loops of the Triton kernels")]


def title(what: str, architecture: str, version: str) -> str:
    return f"## Loops of the {what} kernels, {architecture}, {version}\n"


def page(compiler: str, dump: str, of_triton: list[str]) -> str:
    with ThreadPoolExecutor(2) as pool:
        code = dict(zip(ARCHITECTURES, pool.map(lambda name: cuda_code(dump, name), ARCHITECTURES), strict=True))
    text = HEAD.format(
        multiprocessors=kernel_times.MULTIPROCESSORS,
        clock=kernel_times.CLOCK / 1e9,
        memory=kernel_times.MEMORY / 1e12,
        of_one=kernel_times.OF_ONE,
        launch=kernel_times.LAUNCH,
        **kernel_times.BARRIERS,
    )
    lines = [text, *table_head(TIMES), *time_rows(dump, code[TIMED]), "", "## Reading the tables\n", READING]
    for architecture, triton_section in zip(ARCHITECTURES, of_triton, strict=True):
        lines.append(title("CUDA", architecture, f"nvcc {cuda_kernels.version(compiler)}"))
        lines += [*table_head(COLUMNS), *cuda_rows(code[architecture]), "", triton_section, ""]
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cuda", action="store_true", help="keep what the page says of the Triton kernels")
    parser.add_argument("--triton", nargs="+", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.triton:
        triton_rows(chosen.triton[0], chosen.triton[1:])
    else:
        nvcc, cuobjdump = cuda_kernels.nvcc(), cuda_kernels.cuobjdump()
        if nvcc is None or cuobjdump is None:
            raise SystemExit("nvcc and cuobjdump were not both found; install the CUDA toolkit")
        of_triton = written_sections() if chosen.cuda else triton_sections()
        PAGE.write_text(page(nvcc, cuobjdump, of_triton), encoding="utf-8")
