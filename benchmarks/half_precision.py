"""What half precision costs or gains on the CPU: every operation in bfloat16 and float16 beside float32, in turns.

    python benchmarks/half_precision.py                    # about five minutes on two cores
    python benchmarks/half_precision.py --operation sinkhorn --seconds 5
    IMC_CPU_CAPABILITY=avx2 python benchmarks/half_precision.py

At the sizes of the benchmark (bench_operations.py), forward and, but for Sinkhorn, backward. A form's time is the
median of its calls, its ratio float32's time over it: above 1 half precision is the faster. The ratio of the fastest
calls stands beside it: where there is other work, it says more.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

sys.path.append(str(Path(__file__).parents[1] / "tests"))

from bench_operations import EVERY, FORWARD_ONLY, PAPERS, PLAIN, SIZES
from measure import in_turns
from operations import Operation, Sizes

from imc_kernels import native

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def step(operation: Operation, sizes: Sizes, dtype: torch.dtype) -> Callable[[], object]:
    """A call, with the gradients that training takes."""
    forward_only = operation.name in FORWARD_ONLY
    needs = (True, False) if operation.name == "mutual_information_loss" else operation.differentiable
    inputs = [
        x.requires_grad_(need and not forward_only)
        for x, need in zip(operation.inputs(sizes, dtype), needs, strict=True)
    ]
    leaves = [x for x in inputs if x.requires_grad]
    grad_output = torch.rand_like(operation(*inputs, backend="cpu"))

    def call() -> tuple[Tensor, ...] | Tensor:
        result = operation(*inputs, backend="cpu")
        return torch.autograd.grad(result, leaves, grad_output) if leaves else result

    return call


def main() -> None:
    """Print a row for each operation and size as it is done."""
    names = sorted({operation.name for operation in PLAIN})
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--operation", nargs="+", choices=names, default=names)
    parser.add_argument("--seconds", type=float, default=3.0, help="for each row")
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {native.module('_cpu').instruction_set()}")
    print("| operation | size | float32, us | bfloat16 | float16 |\n|---|---|---|---|---|")
    for operation in PLAIN:
        papers = PAPERS.get(operation.name, ("imc-swav-cifar10",))
        for size in (name for name in SIZES if operation.name in options.operation and name in (*papers, *EVERY)):
            forms = {str(dtype): step(operation, SIZES[size], dtype) for dtype in DTYPES}
            samples = in_turns(forms, [()], seconds=options.seconds, warming=2)
            exact, *half = samples.values()
            ratios = [
                f"{statistics.median(exact) / statistics.median(x):.2f} ({min(exact) / min(x):.2f})" for x in half
            ]
            print(f"| {operation.name} | {size} | {statistics.median(exact):.0f} | {' | '.join(ratios)} |", flush=True)


if __name__ == "__main__":
    main()
