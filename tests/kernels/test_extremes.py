"""Inputs at the ends of what a dtype holds, and sizes of 1: the answer is finite and that of the specification."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from operations import OPERATIONS, Operation, Sizes
from torch import Tensor

SIZES = {
    "plain": Sizes(2, 6, 9, 5, 4),
    "B = 1": Sizes(2, 1, 9, 5, 4),
    "K = C = 1": Sizes(2, 6, 1, 1, 4),
    "all 1": Sizes(2, 1, 1, 1, 2, heads=1),
}
# Applied to every input that a gradient can reach; assignments stay probabilities.
VALUES: dict[str, Callable[[Tensor], Tensor]] = {
    "+-1e4": lambda x: x.sign() * 1e4,
    "constant": lambda x: torch.full_like(x, 3.0),
    "zeros": torch.zeros_like,
    "one-hot": lambda x: torch.nn.functional.one_hot(x.argmax(-1), x.shape[-1]).to(x.dtype) * 1e4,
    "denormal": lambda x: x * torch.finfo(x.dtype).tiny / 1e3,
    "smallest normal": lambda x: x.sign() * torch.finfo(x.dtype).tiny,
    "half's largest": lambda x: x.sign() * 65504,
}
SIGNS = ("+-1e4", "smallest normal", "half's largest")  # numbers of one size
CASES = [
    (operation, backend, values, size, dtype)
    for operation in OPERATIONS
    for backend in operation.backends
    for values in VALUES
    for size in SIZES
    for dtype in (torch.float32, torch.bfloat16, torch.float16)
    # An emulated backend is slow: what its arithmetic can get wrong, not how it is launched.
    if backend == "cpu" or (dtype == torch.float32 and size == "plain" and values != "half's largest")
]


def run(operation: Operation, inputs: tuple[Tensor, ...], backend: str, like: Tensor | None = None) -> list[Tensor]:
    """Value and gradients; what flows back is rounded to the dtype of ``like``."""
    leaves = [x.clone().requires_grad_(n) for x, n in zip(inputs, operation.differentiable, strict=True)]
    result = operation(*leaves, backend=backend)
    weights = torch.linspace(-1, 2, result.numel()).reshape(result.shape).to((result if like is None else like).dtype)
    wanted = [x for x in leaves if x.requires_grad]
    return [result.detach(), *torch.autograd.grad(result, wanted, weights.to(result.dtype))]


@pytest.mark.parametrize("operation", OPERATIONS, ids=str)
@pytest.mark.parametrize("values", VALUES)
def test_the_answer_is_finite_and_right(operation: Operation, values: str) -> None:
    """As exact as eager PyTorch in float32; only what the dtype or float32 cannot hold may be infinite or NaN."""
    if str(operation) == "per_view_batch_norm-residual" and values in SIGNS:
        pytest.skip("bias and residual add up to 0, where relu has a kink: float64's rounding decides the gradient too")
    for backend, size, dtype in ((b, s, d) for o, b, v, s, d in CASES if o is operation and v == values):
        made = operation.inputs(SIZES[size], dtype)
        extreme = (VALUES[values](x) if n else x for x, n in zip(made, operation.differentiable, strict=True))
        inputs = tuple(extreme)
        ours = run(operation, inputs, backend)
        single = run(operation, tuple(x.float() for x in inputs), "eager", ours[0])
        truth = run(operation, tuple(x.double() for x in inputs), "eager", ours[0])
        largest = max(1.0, *(float(x.double().abs().max()) for x in inputs))
        for result, rival, exact in zip(ours, single, truth, strict=True):
            representable = exact.to(result.dtype).isfinite() & rival.isfinite()
            assert result[representable].isfinite().all(), (backend, size, dtype)
            compared = representable & result.isfinite()
            error, rivals, scale = (
                float(x[compared].abs().max()) if compared.any() else 0.0
                for x in (result - exact, rival - exact, exact)
            )
            unit = torch.finfo(result.dtype)
            # A result below 1e-12 is 0 up to the rounding of terms, of the size of the inputs, that cancel.
            allowed = 3 * rivals + 16 * unit.eps * scale + unit.tiny + (1e-5 * largest if scale < 1e-12 else 0)
            assert error <= allowed, (backend, size, dtype, error, allowed)


SATURATING = [o for o in OPERATIONS if o.is_loss or o.name == "sinkhorn"]


@pytest.mark.parametrize(
    ("operation", "backend"), [(o, backend) for o in SATURATING for backend in o.backends], ids=str
)
@pytest.mark.parametrize("factor", [3, 10, 30, 100, 300, 1000])
def test_gradients_of_saturated_rows(operation: Operation, backend: str, factor: float) -> None:
    """As rows go from soft to one-hot, a gradient is what is left where terms cancel or underflow. The error budget is
    the contract's: that of eager PyTorch in float32 against float64, plus a little."""
    sizes = [Sizes(2, 5, 7, 3, 4)] if backend != "cpu" else [Sizes(2, 5, 7, 3, 4), Sizes(3, 37, 129, 7, 33)]
    grows = factor**0.5 if operation.name == "info_nce_loss" else factor  # whose rows meet in products
    for size in sizes:
        made = operation.inputs(size, torch.float32)
        inputs = tuple(x * grows if n else x for x, n in zip(made, operation.differentiable, strict=True))
        ours, single = run(operation, inputs, backend), run(operation, inputs, "eager")
        truth = run(operation, tuple(x.double() for x in inputs), "eager", ours[0])
        for result, rival, exact in list(zip(ours, single, truth, strict=True))[1:]:
            error, rivals, norm = (float(x.norm()) for x in (result - exact, rival - exact, exact))
            if norm < 1e-12:  # zero up to the rounding of the specification itself
                assert result.abs().max() < 1e-5, size
            else:
                assert error <= 3 * rivals + 16 * torch.finfo(torch.float32).eps * norm, (size, error / norm)
