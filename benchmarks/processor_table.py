"""README's table of the CPU kernels, by this processor's best instruction set and held to AVX2: one command.

    python benchmarks/processor_table.py                       # about ten minutes on two quiet cores
    python benchmarks/processor_table.py --operation sinkhorn --seconds 1

Milliseconds at the papers' sizes, forward and, but for Sinkhorn, backward. All forms of a row take turns call by call
in one process: the kernels, the eager specification, and the rivals of rivals.py with torch.compile of the best
batched one. The line below holds the losses of a step against what float32's bytes and products allow (targets.py).
AVX2 is a process of its own with IMC_CPU_CAPABILITY, ATEN_CPU_CAPABILITY, ONEDNN_MAX_CPU_ISA and
MKL_ENABLE_INSTRUCTIONS set, so that every form is held to it: MKL's products take 2.7 times as long then.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).parents[1] / "tests"))

import bench_step
from bench_operations import FORWARD_ONLY, PAPERS, PLAIN, SIZES, call
from measure import in_turns
from operations import Operation
from rivals import RIVALS
from targets import STEP, measured_floors

from imc_kernels import native

AVX2 = {
    "IMC_CPU_CAPABILITY": "avx2",
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
}
LOSSES = "losses of an IMC-SwAV step"
NAMES = [*dict.fromkeys(operation.name for operation in PLAIN), LOSSES]


def forms_of(operation: Operation, size: str) -> dict[str, Callable[[], object]]:
    """A call of each form, with the gradients that training takes."""
    forward_only = operation.name in FORWARD_ONLY
    needs = (True, False) if operation.name == "mutual_information_loss" else operation.differentiable
    inputs = tuple(
        x.requires_grad_(need and not forward_only)
        for x, need in zip(operation.inputs(SIZES[size], torch.float32), needs, strict=True)
    )
    leaves = [x for x in inputs if x.requires_grad]
    grad_output = torch.rand_like(operation(*inputs, backend="eager"))

    def step(form: str) -> Callable[[], object]:
        def run() -> object:
            result = call(operation, form, inputs)
            return torch.autograd.grad(result, leaves, grad_output) if leaves else result

        return run

    return {form: step(form) for form in ("cpu", "eager", "torch.compile", *RIVALS[operation.name])}


def losses_of_a_step() -> dict[str, Callable[[], object]]:
    scores, logits = (torch.rand(6, 256, n) * 2 - 1 for n in (1000, 10))
    inputs = scores.requires_grad_(), logits.requires_grad_()

    def step(form: str) -> Callable[[], object]:
        return lambda: torch.autograd.grad(bench_step.FORMS[form](*inputs), inputs)

    return {form: step(form) for form in bench_step.FORMS if form != "triton"}


def rows(names: list[str]) -> Iterator[tuple[str, dict[str, Callable[[], object]]]]:
    for operation in PLAIN:
        for size in PAPERS.get(operation.name, ("imc-swav-cifar10",)) if operation.name in names else ():
            yield f"`{operation.name}` {size}", forms_of(operation, size)
    if LOSSES in names:
        yield LOSSES, losses_of_a_step()


def table(names: list[str], seconds: float) -> None:
    """Print it for this process's instruction set."""
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {native.module('_cpu').instruction_set()}")
    print("| work | kernels (`cpu`) | eager specification | others |\n|---|---|---|---|", flush=True)
    ours = 0.0
    for title, forms in rows(names):
        times = {
            form: statistics.median(x) / 1e3 for form, x in in_turns(forms, [()], seconds=seconds, warming=2).items()
        }
        ours, eager = times.pop("cpu"), times.pop("eager")
        others = ", ".join(
            f"{form} {milliseconds:.3g}" for form, milliseconds in sorted(times.items(), key=lambda x: x[1])
        )
        print(f"| {title} | {ours:.3g} | {eager:.3g} | {others} |", flush=True)
    if LOSSES in names:
        floors, rates = measured_floors()
        floor = floors[STEP] * 1e3
        print(f"losses of a step: {ours / floor:.2f} x the floor of {floor:.3g} ms; {rates}", flush=True)


def main() -> None:
    """Print the table, then, in a process that is held to AVX2, once more."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--operation", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--seconds", type=float, default=5.0, help="for each row")
    options = parser.parse_args()
    table(options.operation, options.seconds)
    if native.module("_cpu").instruction_set() != "avx2" and "avx2" in native.module("_cpu").instruction_sets():
        subprocess.run([sys.executable, *sys.argv], env={**os.environ, **AVX2}, check=True)


if __name__ == "__main__":
    main()
