"""Every operation in every form, forward and forward + backward: `pytest --benchmark-only`.

One table per operation, size and pass. Its rows are the backends of this machine, on the GPU where there is one;
`eager` is the specification, written to be read. At the size of the paper that the operation comes from, and in the
direction that its training step takes, there are also the forms of `rivals.py`: `released`, the structure of the
authors' code; `batched`, the best form we know in PyTorch; and `torch.compile` of that. These are held against the
specification first, value and gradient.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from measure import DEVICE, finish
from operations import OPERATIONS, Operation, Sizes, measured_backends
from rivals import OPTIONS, RIVALS
from targets import keep
from torch import Tensor

from imc_kernels import backends

SIZES = {
    "small": Sizes(views=2, batch=32, prototypes=30, clusters=10, dim=32),
    "digits": Sizes(views=6, batch=256, prototypes=100, clusters=10, dim=64),
    "imc-swav-cifar10": Sizes(views=6, batch=256, prototypes=1000, clusters=10, dim=128),
    "crlc-cifar10": Sizes(views=2, batch=512, prototypes=100, clusters=10, dim=128, heads=10),
    "temi-cifar10": Sizes(views=2, batch=1024, prototypes=100, clusters=10, dim=128, heads=16),
    "temi-50-heads": Sizes(views=2, batch=512, prototypes=100, clusters=100, dim=128, heads=50),
    "imc-swav-tiny-imagenet": Sizes(views=6, batch=512, prototypes=1000, clusters=200, dim=128),
}
EVERY = ("small", "digits", "imc-swav-tiny-imagenet")
# Where an operation's rivals run.
PAPERS = {
    "log_dot_product_loss": ("crlc-cifar10",),
    "info_nce_loss": ("crlc-cifar10",),
    "self_distillation_loss": ("temi-cifar10", "temi-50-heads"),
}
FORWARD_ONLY = ("sinkhorn",)  # no gradient passes through the assignments
BOTH = ("forward", "forward+backward")
PLAIN = [replace(o, options=OPTIONS.get(o.name, {})) for o in OPERATIONS if not o.label]
COMPILED = {name: torch.compile(forms["batched"], fullgraph=True) for name, forms in RIVALS.items()}


def rows() -> list[tuple[Operation, str, str, str]]:
    """(operation, size, direction, form) of every row."""
    made = []
    for operation in PLAIN:
        papers = PAPERS.get(operation.name, ("imc-swav-cifar10",))
        for size in (name for name in SIZES if name in papers or name in EVERY):
            made += [
                (operation, size, direction, name) for name in measured_backends(DEVICE.type) for direction in BOTH
            ]
        direction = BOTH[operation.name not in FORWARD_ONLY]
        forms = (*RIVALS[operation.name], "torch.compile")
        made += [(operation, paper, direction, form) for paper in papers for form in forms]
    return made


def call(operation: Operation, form: str, inputs: tuple[Tensor, ...]) -> Tensor:
    if form == "torch.compile":
        return COMPILED[operation.name](*inputs)
    rival = RIVALS[operation.name].get(form)
    return operation(*inputs, backend=form) if rival is None else rival(*inputs)


@pytest.mark.parametrize(("operation", "size", "direction", "form"), rows(), ids=str)
def bench(benchmark, operation: Operation, size: str, direction: str, form: str) -> None:  # type: ignore[no-untyped-def]
    benchmark.group = f"{operation.name} {size} {SIZES[size]} {direction}"
    benchmark.name = form
    inputs = tuple(x.to(DEVICE) for x in operation.inputs(SIZES[size], torch.float32))
    backward = direction != "forward"
    if backward:
        # What IMC-SwAV differentiates: the mutual-information loss trains the classifier only.
        needs = (True, False) if operation.name == "mutual_information_loss" else operation.differentiable
        inputs = tuple(x.requires_grad_(need) for x, need in zip(inputs, needs, strict=True))
    leaves = [x for x in inputs if x.requires_grad]
    result = call(operation, form, inputs)
    grad_output = torch.rand_like(result)  # with ones, Sinkhorn's gradient is 0: its rows have fixed sums

    def step() -> None:
        result = call(operation, form, inputs)
        if backward:
            torch.autograd.grad(result, leaves, grad_output)
        finish(DEVICE)

    if form not in backends.BACKENDS:
        expected = operation(*inputs, backend="eager")
        torch.testing.assert_close(result, expected, rtol=1e-3, atol=1e-5 * max(1.0, float(expected.abs().max())))
        if backward:
            ours, exact = (torch.autograd.grad(y, leaves, grad_output) for y in (result, expected))
            for mine, theirs in zip(ours, exact, strict=True):
                assert (mine - theirs).norm() <= 1e-2 * theirs.norm() + 1e-12
    keep(benchmark.group, form, step)
    benchmark(step)
