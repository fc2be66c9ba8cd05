"""transport_plan beside POT, torch.compile and the eager form on the CPU, in turns within one process.

    python benchmarks/transport_plans.py                 # pip install pot, or it is left out; minutes
    python benchmarks/transport_plans.py --work quantiser --rounds 3

A quantiser of semantic IDs, [20480, 256] at epsilon 0.003, and plans of the size of matched keypoints, [8, 2049, 2049]
at epsilon 0.05, 100 iterations each, float32. POT runs on the same tensors: its logarithmic solver, a problem at a
time, as plain exponentials of the first overflow. torch.compile has one iteration of both log-sum-exps, called in a
loop: of all unrolled it takes longer to compile than to run. A ratio is that of the medians; `apart` is the L1 distance
of the plans.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from rivals import log_iteration
from torch import Tensor

from imc_kernels import transport_plan

WORK = {"quantiser": ((20480, 256), 0.003), "matching": ((8, 2049, 2049), 0.05)}
ITERATIONS = 100


def by_kernel(scores: Tensor, epsilon: float) -> Any:
    return transport_plan(scores, epsilon=epsilon, iterations=ITERATIONS)


def by_pot(scores: Tensor, epsilon: float) -> Tensor:
    import ot

    rows, columns = (torch.full((n,), 1 / n) for n in scores.shape[-2:])
    options = {"method": "sinkhorn_log", "numItermax": ITERATIONS, "stopThr": 0.0, "warn": False}
    problems = scores.reshape(-1, *scores.shape[-2:])
    return torch.stack([ot.sinkhorn(rows, columns, -s, epsilon, **options) for s in problems]).view(scores.shape)


def by_compiler(scores: Tensor, epsilon: float) -> Tensor:
    x = scores / epsilon
    u, v = x.new_zeros(*x.shape[:-1], 1), x.new_zeros(*x.shape[:-2], 1, x.shape[-1])
    for _ in range(ITERATIONS):
        u, v = compiled(x, u, v)
    return (x + u + v).exp()


compiled = torch.compile(log_iteration, fullgraph=True)


def main() -> None:
    """Print a row for each piece of work and form."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", nargs="+", choices=WORK, default=list(WORK))
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads\n| work | form | s | ratio | apart |")
    for name in options.work:
        shape, epsilon = WORK[name]
        scores = torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
        forms: dict[str, Callable[..., Any]] = {"transport_plan": by_kernel, "torch.compile": by_compiler}
        if find_spec("ot"):
            forms["POT"] = by_pot
        results = {form: call(scores, epsilon) for form, call in forms.items()}  # warm, and compared
        times: dict[str, list[float]] = {form: [] for form in forms}
        for _ in range(options.rounds):
            for form, call in forms.items():
                start = time.perf_counter()
                call(scores, epsilon)
                times[form].append(time.perf_counter() - start)
        ours, plan = statistics.median(times["transport_plan"]), results["transport_plan"]
        for form, taken in times.items():
            middle, apart = statistics.median(taken), float((results[form] - plan).abs().sum() / plan.sum())
            print(f"| {name} {list(shape)} | {form} | {middle:.3f} | {middle / ours:.1f} | {apart:.1e} |", flush=True)


if __name__ == "__main__":
    main()
