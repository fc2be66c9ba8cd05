"""What a call costs beside its kernel: checks, autograd, memory for the result, and of `cuda` the launch.

    python benchmarks/call_path.py --backend cpu    # the kernels run, on a few numbers: a microsecond or two each

Of the `cuda` backend, the default, the kernels are empty. It is measured on the emulator: `make simt`, then in
build/simt `PYTHONPATH=lib ../../.venv/bin/python ../../benchmarks/call_path.py`. Autograd's own share is in the columns
"with gradient" (the call on an input that requires one) and "and backward".
"""

from __future__ import annotations

import argparse
import functools
import importlib
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from imc_kernels import (
    draw_crop_parameters,
    log_dot_product_loss,
    multi_crop,
    mutual_information_loss,
    native,
    sinkhorn,
    swapped_prediction_loss,
)

Call = Callable[[], torch.Tensor]


def fastest(*calls: Callable[[], object], rounds: int = 400) -> list[float]:
    """Microseconds of each: the best mean of 50, which other load on the machine hardly reaches; they take turns."""
    best = [float("inf")] * len(calls)
    for _ in range(rounds):
        for i, call in enumerate(calls):
            start = time.perf_counter()
            for _ in range(50):
                call()
            best[i] = min(best[i], (time.perf_counter() - start) / 50)
    return [1e6 * seconds for seconds in best]


def calls(requires_grad: bool, backend: str) -> dict[str, Call]:
    """Public calls on tiny tensors, by name."""
    scores, logits = (torch.rand(2, 3, n).requires_grad_(requires_grad) for n in (4, 5))
    heads = torch.rand(2, 2, 3, 5).requires_grad_(requires_grad)
    assignments = torch.rand(2, 3, 4)
    made = {
        "sinkhorn": functools.partial(sinkhorn, scores),
        "swapped_prediction_loss": functools.partial(swapped_prediction_loss, scores, assignments),
        "mutual_information_loss": functools.partial(mutual_information_loss, logits, assignments),
        "log_dot_product_loss": functools.partial(log_dot_product_loss, heads),
    }
    if not requires_grad:
        indices = torch.arange(3)
        images = torch.zeros(3, 8, 8, 3, dtype=torch.uint8)
        parameters = draw_crop_parameters(0, 0, indices, views=2, height=8, width=8)
        options: dict[str, Any] = {"size": 6, "mean": [0.5] * 3, "std": [0.2] * 3}
        made["multi_crop"] = functools.partial(multi_crop, images, indices, parameters, **options)
    return {name: functools.partial(call, backend=backend) for name, call in made.items()}


def backward(call: Call) -> Call:
    grad_output = torch.ones_like(call())

    def both() -> torch.Tensor:
        result = call()
        result.backward(grad_output)
        return result

    return both


def prepare_cuda() -> None:
    """Switch the emulator's kernels off."""
    if native.missing("_cuda") is not None or not native.module("_cuda").emulated():
        sys.exit("imc_kernels._cuda is not built on the emulator: run this in build/simt after `make simt`")
    # Crops' values are checked on CPU tensors only, which on a GPU they are not.
    vars(importlib.import_module("imc_kernels.ops.multi_crop"))["_check_values"] = lambda *tensors: None
    native.module("_cuda").emulate(run=False)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", choices=("cuda", "cpu"), default="cuda")
    backend = parser.parse_args().backend
    torch.set_num_threads(1)
    if backend == "cuda":
        prepare_cuda()
    small, grown = torch.rand(2, 3, 4), torch.rand(2, 3, 4, requires_grad=True)
    plain, with_gradient = calls(False, backend), calls(True, backend)
    plain = {"torch.relu": lambda: torch.relu(small), **plain}
    with_gradient = {"torch.relu": lambda: torch.relu(grown), **with_gradient}
    forward = dict(zip(plain, fastest(*plain.values()), strict=True))
    recorded = dict(zip(with_gradient, fastest(*with_gradient.values()), strict=True))
    both = [backward(call) for call in with_gradient.values()]
    trained = dict(zip(with_gradient, fastest(*both, rounds=150), strict=True))
    print("| microseconds | forward | with gradient | and backward |\n| --- | --- | --- | --- |")
    for name, seconds in forward.items():
        further = [f"{table[name]:.1f}" if name in table else "-" for table in (recorded, trained)]
        print(f"| `{name}` | {seconds:.1f} | {further[0]} | {further[1]} |")


if __name__ == "__main__":
    main()
