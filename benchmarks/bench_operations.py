"""Every operation against the eager specification, forward and forward + backward: `pytest --benchmark-only`.

One table per operation, size and pass; its rows are the backends of this machine. `eager` is the specification, written
to be read; `eager-scaling` is Sinkhorn as one would write it for speed in PyTorch.
"""

from __future__ import annotations

import pytest
import torch
from operations import OPERATIONS, Operation, Sizes, measured_backends
from rivals import batched_sinkhorn
from torch import Tensor

SIZES = {
    "small": Sizes(views=2, batch=32, prototypes=30, clusters=10, dim=32),
    "digits": Sizes(views=6, batch=256, prototypes=100, clusters=10, dim=64),
    "imc-swav-cifar10": Sizes(views=6, batch=256, prototypes=1000, clusters=10, dim=128),
    "crlc-cifar10": Sizes(views=2, batch=512, prototypes=100, clusters=10, dim=128, heads=10),
    "imc-swav-tiny-imagenet": Sizes(views=6, batch=512, prototypes=1000, clusters=200, dim=128),
}
PLAIN = [operation for operation in OPERATIONS if not operation.label]


def rows() -> list[tuple[Operation, str]]:
    made = [(operation, backend) for operation in PLAIN for backend in measured_backends()]
    return [*made, (next(o for o in PLAIN if o.name == "sinkhorn"), "eager-scaling")]


@pytest.mark.parametrize("direction", ["forward", "forward+backward"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("operation", "backend"), rows(), ids=str)
def bench(benchmark, operation: Operation, backend: str, size: str, direction: str) -> None:  # type: ignore[no-untyped-def]
    benchmark.group = f"{operation.name} {size} {SIZES[size]} {direction}"
    benchmark.name = backend
    inputs = operation.inputs(SIZES[size], torch.float32)
    backward = direction != "forward"
    if backward:
        # What IMC-SwAV differentiates: the mutual-information loss trains the classifier only.
        needs = (True, False) if operation.name == "mutual_information_loss" else operation.differentiable
        inputs = tuple(x.requires_grad_(need) for x, need in zip(inputs, needs, strict=True))

    def forward() -> Tensor:
        return batched_sinkhorn(*inputs) if backend == "eager-scaling" else operation(*inputs, backend=backend)

    grad_output = torch.ones_like(forward())

    def step() -> None:
        result = forward()
        if backward:
            torch.autograd.grad(result, [x for x in inputs if x.requires_grad], grad_output)

    benchmark(step)
