"""The loss of many prototypes, forward and backward, against the matrices of scores that it does without, on the CPU.

    python benchmarks/many_prototypes.py                        # time and peak memory, [1200, 65536] at D = 256
    python benchmarks/many_prototypes.py --forms linear -v 2 -b 1024 -k 262144 -d 256
    python benchmarks/many_prototypes.py --small                # beside the separate kernels, up to [2, 512, 16384]

`linear` is `linear_swapped_prediction_loss`, `separate` the three operations of this package on stored scores,
`batched` the best form we know in PyTorch, compiled as `torch.compile`. Times are medians of calls in turns, of one
process. The memory is the growth of the peak of a process of its own, beside inputs and gradients, that has called the
form before at a small size.
"""

from __future__ import annotations

import argparse
import re
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from measure import in_turns
from rivals import batched_linear_swapped_prediction
from torch import Tensor

import imc_kernels as k

Form = Callable[[Tensor, Tensor], Tensor]


def separate(embeddings: Tensor, prototypes: Tensor) -> Tensor:
    scores = k.prototype_scores(embeddings, prototypes)
    return k.swapped_prediction_loss(scores, k.sinkhorn(scores[:2].detach()))


FORMS: dict[str, Form] = {
    "linear": k.linear_swapped_prediction_loss,
    "separate": separate,
    "batched": batched_linear_swapped_prediction,
    "torch.compile": torch.compile(batched_linear_swapped_prediction, fullgraph=True),
}
SMALL = ((6, 256, 1000, 128), (2, 256, 3000, 128), (8, 512, 3000, 128), (2, 256, 8192, 128), (2, 512, 16384, 256))


def inputs(sizes: argparse.Namespace) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((sizes.views, sizes.batch, sizes.dim), (sizes.prototypes, sizes.dim))
    return tuple(torch.randn(shape, generator=generator).requires_grad_() for shape in shapes)  # type: ignore[return-value]


def step(form: Form, z: Tensor, w: Tensor) -> list[Tensor]:
    loss = form(z, w)
    return [loss, *torch.autograd.grad(loss, (z, w))]


def status(field: str) -> int:
    return 1024 * int(re.findall(rf"{field}:\s*(\d+)", Path("/proc/self/status").read_text(encoding="utf-8"))[0])


def peak(form: Form, sizes: argparse.Namespace) -> tuple[int, int]:
    """Bytes beside inputs and gradients, and of the whole process."""
    step(form, *inputs(argparse.Namespace(views=2, batch=8, prototypes=64, dim=8)))
    z, w = inputs(sizes)
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak begins anew
    before, _ = status("VmRSS"), step(form, z, w)
    return status("VmHWM") - before - z.nbytes - w.nbytes, status("VmHWM")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, size in (("views", 2), ("batch", 600), ("prototypes", 65536), ("dim", 256)):
        parser.add_argument(f"-{name[0].replace('p', 'k')}", f"--{name}", type=int, default=size)
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    parser.add_argument("--seconds", type=float, default=60.0, help="of the timing")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--memory", choices=FORMS, help="print the bytes of one form")
    given = parser.parse_args()
    if given.memory:
        print(*peak(FORMS[given.memory], given))
        return
    if given.small:
        for sizes in SMALL:
            z, w = inputs(argparse.Namespace(**dict(zip(("views", "batch", "prototypes", "dim"), sizes, strict=True))))
            forms = {name: lambda name=name: step(FORMS[name], z, w) for name in ("linear", "separate")}  # noqa: B023
            times = {name: statistics.median(x) for name, x in in_turns(forms, [()], seconds=5).items()}
            print("V{} B{} K{} D{}".format(*sizes), f"linear / separate: {times['linear'] / times['separate']:.2f}")
        return
    scores = 4 * given.views * given.batch * given.prototypes
    print(f"V{given.views} B{given.batch} K{given.prototypes} D{given.dim}; {torch.get_num_threads()} threads")
    for name in given.forms:
        arguments = [f"--{x}={getattr(given, x)}" for x in ("views", "batch", "prototypes", "dim")]
        command = [sys.executable, __file__, "--memory", name, *arguments]
        beside, whole = map(int, subprocess.check_output(command, text=True).split())
        share, mib = beside / scores, (beside >> 20, whole >> 20)
        print(f"{name:14} peak {mib[0]:,} MiB, {share:.1%} of the scores; of the process {mib[1]:,} MiB")
    z, w = inputs(given)
    steps = {name: lambda name=name: step(FORMS[name], z, w) for name in given.forms}
    for work in steps.values():
        work()
    for name, samples in in_turns(steps, [()], seconds=given.seconds).items():
        print(f"{name:14} {statistics.median(samples) / 1e6:8.2f} s")


if __name__ == "__main__":
    main()
