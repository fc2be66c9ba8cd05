"""What the CUDA kernels take of each architecture, read from the built module: writes docs/cuda-kernels.md.

    pip install . && python benchmarks/cuda_kernels.py

Needs nvcc, whose build it describes, and cuobjdump, which is Triton's or the toolkit's; no GPU.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from imc_kernels import native

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "cuda-kernels.md"
ARCHITECTURES = {"sm_80": "8.0", "sm_90a": "9.0a", "sm_100": "10.0+PTX"}  # as cuobjdump and as the build call them

HEAD = """# The CUDA kernels without a GPU

Written by `python benchmarks/cuda_kernels.py` and compared by `tests/build/test_cuda_kernels.py`. Nothing here was
measured on a GPU. The shared memory is what a kernel declares, with the 1,024 bytes that sm_90a and sm_100 reserve
where there is any; sinkhorn_kernel, log_dot_product_kernel and the kernels of its phases are launched with as much
dynamic shared memory beside it as holds their rows, multi_crop_kernel as holds its crop.

## Registers of a thread / bytes of shared memory / bytes of stack, nvcc {version}

A kernel without a stack spills no register.

| kernel | {architectures} |
|---|{rules}
"""


class Usage(NamedTuple):
    registers: int
    shared: int
    stack: int


def nvcc() -> str | None:
    return shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")


def cuobjdump() -> str | None:
    if find_spec("triton") is not None:
        from triton import knobs

        return str(knobs.nvidia.cuobjdump.path)
    return shutil.which("cuobjdump")


def version(compiler: str) -> str:
    text = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"release (\S+),", text)
    assert found is not None
    return found[1]


def short_names(mangled: list[str]) -> list[str]:
    """Such as ``sinkhorn_kernel<float, 4, true, false>``."""
    text = subprocess.run(["c++filt", *mangled], capture_output=True, text=True, check=True).stdout
    names = []
    for line in text.splitlines():
        name = line.replace("imc::cuda::", "").replace("(anonymous namespace)::", "").removeprefix("void ")
        names.append(re.sub(r"\((?:int|bool)\)", "", name.split(">(")[0] + ">" if ">(" in name else name.split("(")[0]))
    return [name.replace("__nv_bfloat16", "bfloat16").replace("__half", "half") for name in names]


def measure(dump: str) -> dict[tuple[str, str], Usage]:
    """(kernel, architecture) -> what it takes, of the built module."""
    path = str(native.module("_cuda").__file__)
    report = subprocess.run([dump, "--dump-resource-usage", path], capture_output=True, text=True, check=True).stdout
    result = {}
    for part in report.split("Fatbin elf code:")[1:]:
        architecture = re.search(r"arch = (\w+)", part)
        assert architecture is not None
        found = re.findall(r"Function (\w+):\s*REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", part)
        for name, (_, registers, stack, shared, local) in zip(short_names([x[0] for x in found]), found, strict=True):
            result[name, architecture[1]] = Usage(int(registers), int(shared), int(stack) + int(local))
    return result


def page(compiler: str, found: dict[tuple[str, str], Usage]) -> str:
    text = HEAD.format(
        version=version(compiler), architectures=" | ".join(ARCHITECTURES), rules="---|" * len(ARCHITECTURES)
    )
    for kernel in sorted({kernel for kernel, _ in found}):
        cells = (found[kernel, architecture] for architecture in ARCHITECTURES)
        text += f"| `{kernel}` | {' | '.join(f'{c.registers} / {c.shared} / {c.stack}' for c in cells)} |\n"
    return text


if __name__ == "__main__":
    compiler, dump = nvcc(), cuobjdump()
    if compiler is None or dump is None:
        raise SystemExit("nvcc and cuobjdump were not both found; install the CUDA toolkit")
    PAGE.write_text(page(compiler, measure(dump)), encoding="utf-8")
