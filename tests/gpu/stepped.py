"""What the tests of a GPU share: the backends of this machine, inputs of an operation, and its step."""

from __future__ import annotations

import functools

import pytest
import torch
from operations import Operation, Sizes
from torch import Tensor

from imc_kernels import backends

GPU = [
    name
    for name in ("cuda", "triton")
    if torch.cuda.is_available() and backends.BACKENDS[name].refusal("cuda", torch.float32) is None
]
EMULATED = [
    name
    for name in ("cuda", "triton")
    if backends.BACKENDS[name].emulated() and backends.BACKENDS[name].missing() is None
]
DEVICE = "cuda" if GPU else "cpu"
SIZES = Sizes(4, 96, 200, 10, 64) if GPU else Sizes(3, 40, 72, 10, 24)  # emulators take a second for these


def leaves(operation: Operation, sizes: Sizes = SIZES, device: str = DEVICE) -> tuple[Tensor, ...]:
    inputs = operation.inputs(sizes, torch.float32)
    return tuple(x.to(device).requires_grad_(n) for x, n in zip(inputs, operation.differentiable, strict=True))


@functools.cache
def grad_output(shape: torch.Size, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The same random numbers on every device and in every dtype, which reach it once: a capture may not copy them.

    Not ones: the rows of assignments sum to 1 and the maps of batch normalisation to their biases, whatever the input,
    so that the gradient of the sum is nothing but rounding.
    """
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(device, dtype)


def gradients(result: Tensor, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """The value, and the gradients of the inputs that need one."""
    needed = [x for x in inputs if x.requires_grad]
    received = grad_output(result.shape, result.device, result.dtype)
    return [result.detach(), *torch.autograd.grad(result, needed, received)]


def step(operation: Operation, inputs: tuple[Tensor, ...], backend: str) -> list[Tensor]:
    """The value and the gradients."""
    return gradients(operation(*inputs, backend=backend), inputs)


def relative(result: Tensor, truth: Tensor) -> float:
    """The L2 norm of the difference over that of the truth."""
    return float((result.double() - truth).norm() / truth.norm())


def require(backend: str, operation: Operation) -> None:
    """Skip where the backend has no form of the operation."""
    if backend not in operation.backends:
        pytest.skip(f"{backend} has no {operation.name}")
