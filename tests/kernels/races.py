"""The CPU kernels on four threads under ThreadSanitizer (make sanitize-threads), which ends the process at a race.

There the items of a parallel loop run on plain threads (csrc/cpu/parallel.h); who runs which item is the same. torch
stays on one thread, whose OpenMP library ThreadSanitizer does not know.
"""

from __future__ import annotations

import threading

import pytest
import torch
from operations import OPERATIONS, Operation, Sizes

from imc_kernels import draw_crop_parameters, multi_crop, native

CASES = [(operation, dtype) for operation in OPERATIONS for dtype in (torch.float32, torch.float64)]
SIZES = (Sizes(3, 150, 700, 10, 70), Sizes(2, 2200, 24, 11, 5), Sizes(2, 900, 1100, 40, 130))


@pytest.fixture(autouse=True)
def four_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(native, "threads", lambda: 4)


def step(operation: Operation, sizes: Sizes, dtype: torch.dtype) -> None:
    """The value and the gradients."""
    inputs = operation.inputs(sizes, dtype)
    leaves = [x.requires_grad_(n) for x, n in zip(inputs, operation.differentiable, strict=True)]
    operation(*leaves, backend="cpu").sum().backward()


@pytest.mark.parametrize(("operation", "dtype"), CASES, ids=str)
def test_operations_have_no_race(operation: Operation, dtype: torch.dtype) -> None:
    for sizes in SIZES:
        step(operation, sizes, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_crops_have_no_race(dtype: torch.dtype) -> None:
    images = torch.randint(0, 256, (40, 32, 32, 3), dtype=torch.uint8)
    indices = torch.arange(40)
    parameters = draw_crop_parameters(0, 0, indices, views=2, height=32, width=32, blur_probability=0.5)
    options = {"size": 28, "mean": [0.5] * 3, "std": [0.2] * 3, "dtype": dtype, "backend": "cpu"}
    multi_crop(images, indices, parameters, **options)


def test_calls_from_several_threads_have_no_race() -> None:
    operations = [operation for operation in OPERATIONS if not operation.label]

    def work() -> None:
        for operation in operations:
            step(operation, SIZES[0], torch.float32)

    workers = [threading.Thread(target=work) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
