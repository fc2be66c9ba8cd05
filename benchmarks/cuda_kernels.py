"""Compile the CUDA kernels for every architecture and write what each takes of it: docs/cuda-kernels.md.

    python benchmarks/cuda_kernels.py

Needs nvcc and no GPU. A warning of the compiler is an error.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "cuda-kernels.md"
ARCHITECTURES = ("sm_80", "sm_90a", "sm_100")

HEAD = """# The CUDA kernels without a GPU

Written by `python benchmarks/cuda_kernels.py` and compared by `tests/build/test_cuda_kernels.py`. Nothing here was
measured on a GPU. The shared memory is what a kernel declares; sinkhorn_kernel, log_dot_product_kernel and the kernels of
its phases are launched with as much dynamic shared memory beside it as holds their rows, multi_crop_kernel as holds its
crop.

## Registers of a thread / bytes of shared memory / bytes of stack, nvcc {version}

No kernel spills a register.

| kernel | {architectures} |
|---|{rules}
"""


class Usage(NamedTuple):
    registers: int
    shared: int
    stack: int
    spilled: int


def nvcc() -> str | None:
    return shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")


def version(compiler: str) -> str:
    text = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"release (\S+),", text)
    assert found is not None
    return found[1]


def compile_source(compiler: str, source: Path) -> str:
    """What the assembler reports for one file, for every architecture."""
    targets = [f"arch={name.replace('sm', 'compute')},code={name}" for name in ARCHITECTURES]
    newest = ARCHITECTURES[-1].replace("sm", "compute")
    flags = ["-O3", "-std=c++17", "-Werror", "all-warnings", "-Xptxas", "-v", f"-I{ROOT / 'csrc' / 'include'}"]
    for target in (*targets, f"arch={newest},code={newest}"):
        flags += ["-gencode", target]
    with tempfile.TemporaryDirectory() as folder:
        command = [compiler, *flags, "-c", str(source), "-o", f"{folder}/kernels.o"]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode != 0:
        raise RuntimeError(f"{source.name} does not compile:\n{run.stderr}")
    return run.stderr


def short_names(mangled: list[str]) -> list[str]:
    """Such as ``sinkhorn_kernel<float, 4, true, false>``."""
    text = subprocess.run(["c++filt", *mangled], capture_output=True, text=True, check=True).stdout
    names = []
    for line in text.splitlines():
        name = line.replace("imc::cuda::", "").replace("(anonymous namespace)::", "").removeprefix("void ")
        names.append(re.sub(r"\((?:int|bool)\)", "", name.split(">(")[0] + ">" if ">(" in name else name.split("(")[0]))
    return [name.replace("__nv_bfloat16", "bfloat16").replace("__half", "half") for name in names]


def usages(report: str) -> dict[tuple[str, str], Usage]:
    """(kernel, architecture) -> what it takes."""
    entry = re.compile(
        r"Compiling entry function '(\w+)' for '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
        r"(\d+) bytes spill loads.*?Used (\d+) registers([^\n]*)",
        re.DOTALL,
    )
    found = entry.findall(report)
    result = {}
    for name, (_, architecture, stack, stores, loads, registers, rest) in zip(
        short_names([match[0] for match in found]), found, strict=True
    ):
        shared = re.search(r"(\d+) bytes smem", rest)
        result[name, architecture] = Usage(
            int(registers), int(shared[1]) if shared else 0, int(stack), int(stores) + int(loads)
        )
    return result


def measure(compiler: str) -> dict[tuple[str, str], Usage]:
    sources = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
    with ThreadPoolExecutor(2) as pool:
        reports = pool.map(lambda source: compile_source(compiler, source), sources)
        return {key: usage for report in reports for key, usage in usages(report).items()}


def page(compiler: str, found: dict[tuple[str, str], Usage]) -> str:
    text = HEAD.format(
        version=version(compiler), architectures=" | ".join(ARCHITECTURES), rules="---|" * len(ARCHITECTURES)
    )
    for kernel in sorted({kernel for kernel, _ in found}):
        cells = (found[kernel, architecture] for architecture in ARCHITECTURES)
        text += f"| `{kernel}` | {' | '.join(f'{c.registers} / {c.shared} / {c.stack}' for c in cells)} |\n"
    return text


if __name__ == "__main__":
    compiler = nvcc()
    if compiler is None:
        raise SystemExit("nvcc was not found; install the CUDA toolkit")
    PAGE.write_text(page(compiler, measure(compiler)))
