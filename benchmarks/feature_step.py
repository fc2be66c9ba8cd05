"""The share of the loss in a training step on features, by the kernels and by the looped form of the released codes.

    python benchmarks/feature_step.py                       # TEMI at its presets, then with 50 heads and 100 clusters
    python benchmarks/feature_step.py --rows 1024 --columns 768

A step is what ``imc train --features --method temi`` does in one: the heads and their teachers on a batch of rows and
their neighbours, the loss, the gradient and the optimiser. The forms take turns, and the processor time of one thread
is told, which other work on the machine changes less than the time on the wall.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from unittest import mock

import torch
from rivals import released_self_distillation
from torch import Tensor

from imc.config.presets import METHODS_ON_FEATURES
from imc.methods.temi import Temi
from imc.models.standardise import Standardise

SIZES = ((30, 10), (50, 100))  # heads and clusters
ROUNDS = 15


def looped(students: Tensor, teachers: Tensor, *, prior: Tensor, **_: object) -> Tensor:
    """The form of the authors' code, with its temperature and exponent, in the kernel's place."""
    return released_self_distillation(students, teachers, prior)


def forms(heads: int, clusters: int, rows: int, columns: int) -> dict[str, Callable[[], None]]:
    """A step by the kernel, one by the looped form, and the kernel's and the loop's loss with its gradient alone."""
    preset = METHODS_ON_FEATURES["temi"]
    options = {name: preset[name] for name in ("head_hidden", "beta", "temperature", "teacher_momentum")}
    model = Temi(Standardise((columns,), "none"), clusters=clusters, sub_heads=heads, **options).train()
    optimizer = torch.optim.Adam(model.classifier_parameters(), lr=preset["lr"], fused=True)
    batch = torch.randn(2, rows, columns)
    students = torch.randn(heads, 2, rows, clusters, requires_grad=True)
    teachers, prior = torch.randn(heads, 2, rows, clusters), torch.full((heads, clusters), 1 / clusters)

    def step() -> None:
        optimizer.zero_grad()
        model([batch]).loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    def loss_alone(loss: Callable[..., Tensor]) -> None:
        students.grad = None
        loss(students, teachers, prior=prior).mean().backward()  # type: ignore[no-untyped-call]

    def in_place(form: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            with mock.patch("imc.methods.temi.self_distillation_loss", looped):
                form()

        return run

    from imc_kernels import self_distillation_loss

    return {
        "step": step,
        "step, looped": in_place(step),
        "loss": lambda: loss_alone(self_distillation_loss),
        "loss, looped": lambda: loss_alone(looped),
    }


def main() -> None:
    """A line for each size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--columns", type=int, default=1280)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for heads, clusters in SIZES:
        times: dict[str, list[float]] = {}
        timed = forms(heads, clusters, options.rows, options.columns)
        for _ in range(ROUNDS):
            for name, form in timed.items():
                start = time.thread_time()
                form()
                times.setdefault(name, []).append(1e3 * (time.thread_time() - start))
        median = {name: statistics.median(x) for name, x in times.items()}
        print(f"{heads} heads, {clusters} clusters, {options.rows} rows of {options.columns}:", end=" ")
        for suffix, title in (("", "kernel"), (", looped", "looped")):
            step, loss = median[f"step{suffix}"], median[f"loss{suffix}"]
            print(f"{title}: step {step:.1f} ms, loss {loss:.1f} ms, {loss / step:.0%};", end=" ")
        print(f"the loss {median['loss, looped'] / median['loss']:.1f} x")


if __name__ == "__main__":
    main()
