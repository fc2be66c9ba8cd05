"""What every operation promises, on every native backend of this machine."""

from __future__ import annotations

import pytest
import torch
from operations import CASES, Operation, Sizes, each_case
from torch import Tensor

from imc_kernels import backends

SMALL = Sizes(2, 5, 7, 3, 4)
SIZES = [
    SMALL,
    Sizes(2, 1, 1, 1, 1),
    Sizes(3, 37, 129, 7, 33),  # ragged: no block, panel or chunk is full
    Sizes(6, 96, 100, 10, 64),
    Sizes(2, 2200, 24, 11, 5, heads=1),  # more rows than 64 chunks of 32
    Sizes(4, 130, 1040, 12, 128),  # more columns than one block
]
EMULATED_SIZES = [*SIZES[:3], Sizes(2, 5, 1030, 17, 65)]  # the last two: past one block along every dimension


def sizes_for(backend: str) -> list[Sizes]:
    return EMULATED_SIZES if backends.BACKENDS[backend].emulated() else SIZES


each_case_and_size = pytest.mark.parametrize(
    ("operation", "backend", "sizes"),
    [(operation, backend, sizes) for operation, backend in CASES for sizes in sizes_for(backend)],
    ids=str,
)
exact_cases = [case for case in CASES if torch.float64 in backends.BACKENDS[case[1]].dtypes]
each_exact_case_and_size = pytest.mark.parametrize(
    ("operation", "backend", "sizes"), [(*case, sizes) for case in exact_cases for sizes in SIZES], ids=str
)


def run(
    operation: Operation, inputs: tuple[Tensor, ...], backend: str, needs: tuple[bool, ...] | None = None
) -> list[Tensor]:
    """The result and the gradients of the inputs that need one, for a fixed grad_output."""
    leaves = [x.clone().requires_grad_(need) for x, need in zip(inputs, needs or operation.differentiable, strict=True)]
    result = operation(*leaves, backend=backend)
    generator = torch.Generator().manual_seed(1)
    result.backward(torch.randn(result.shape, generator=generator, dtype=torch.float64).to(result.dtype))
    return [result.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


def relative(result: Tensor, truth: Tensor) -> float:
    """The L2 norm of the difference over that of the truth."""
    difference, norm = (result.double() - truth).norm(), truth.norm()
    return float(difference / norm) if norm > 0 else float(difference)


@each_case_and_size
def test_float32_error_is_within_the_error_of_eager(operation: Operation, backend: str, sizes: Sizes) -> None:
    truth = run(operation, operation.inputs(sizes), "eager")
    eager = run(operation, operation.inputs(sizes, torch.float32), "eager")
    ours = run(operation, operation.inputs(sizes, torch.float32), backend)
    for name, exact, rival, result in zip(("value", "first", "second"), truth, eager, ours, strict=False):
        slack = 16 * torch.finfo(torch.float32).eps
        assert result.dtype == torch.float32
        if exact.norm() < 1e-12:  # zero up to the rounding of the specification itself
            assert result.abs().max() < 1e-5, name
        else:
            assert relative(result, exact) <= 3 * relative(rival, exact) + slack, name


@each_exact_case_and_size
def test_float64_is_the_specification(operation: Operation, backend: str, sizes: Sizes) -> None:
    for exact, result in zip(
        run(operation, operation.inputs(sizes), "eager"), run(operation, operation.inputs(sizes), backend), strict=True
    ):
        torch.testing.assert_close(result, exact, rtol=1e-10, atol=1e-12 * max(1.0, float(exact.abs().max())))


@pytest.mark.parametrize(("operation", "backend"), [case for case in exact_cases if not case[0].constant], ids=str)
def test_gradcheck(operation: Operation, backend: str) -> None:
    inputs = [x.requires_grad_(need) for x, need in zip(operation.inputs(SMALL), operation.differentiable, strict=True)]
    assert torch.autograd.gradcheck(lambda *x: operation(*x, backend=backend), inputs)


@each_case
def test_gradient_direction_and_bias(operation: Operation, backend: str) -> None:
    """Closeness by element hides a small missing term: the whole vectors must agree in direction and in signed sum."""
    sizes = Sizes(4, 64, 90, 10, 32)
    exact = run(operation, operation.inputs(sizes), "eager")[1:]
    ours = run(operation, operation.inputs(sizes, torch.float32), backend)[1:]
    for truth, gradient in zip(exact, ours, strict=True):
        gradient = gradient.double()
        cosine = (truth * gradient).sum() / (truth.norm() * gradient.norm())
        assert 1 - float(cosine) < 1e-9
        assert abs(float((gradient - truth).sum())) < 1e-5 * float(truth.abs().sum())


@pytest.mark.parametrize(("operation", "backend"), [case for case in CASES if case[1] == "cpu"], ids=str)
def test_bitwise_the_same_for_any_number_of_threads(operation: Operation, backend: str) -> None:
    threads = torch.get_num_threads()
    try:
        for sizes in (Sizes(3, 150, 700, 10, 70), Sizes(2, 2200, 24, 11, 5)):
            results = []
            for count in (1, 2, 3, 2):
                torch.set_num_threads(count)
                results.append(run(operation, operation.inputs(sizes, torch.float32), backend))
            for other in results[1:]:
                assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    finally:
        torch.set_num_threads(threads)


@each_case
def test_memory_layout_does_not_matter(operation: Operation, backend: str) -> None:
    sizes = Sizes(2, 12, 20, 5, 6)
    inputs = operation.inputs(sizes, torch.float32)
    expected = run(operation, inputs, backend)
    strided = [torch.stack([x, torch.full_like(x, torch.nan)], dim=-1)[..., 0] for x in inputs]
    permuted = [x.mT.contiguous().mT if x.dim() > 1 else other for x, other in zip(inputs, strided, strict=True)]
    for variant in (permuted, strided):
        leaves = [x.detach().requires_grad_(n) for x, n in zip(variant, operation.differentiable, strict=True)]
        assert not any(leaf.is_contiguous() for leaf in leaves)
        result = operation(*leaves, backend=backend)
        grad_output = torch.randn(result.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).float()
        if grad_output.dim() > 1:
            grad_output = grad_output.transpose(-1, -2).contiguous().transpose(-1, -2)
        result.backward(grad_output)
        assert torch.equal(result, expected[0])
        for leaf, gradient in zip([leaf for leaf in leaves if leaf.requires_grad], expected[1:], strict=True):
            assert torch.equal(leaf.grad, gradient)


@each_case
def test_an_expanded_grad_output(operation: Operation, backend: str) -> None:
    """sum() sends a gradient of stride 0 back."""
    sizes = Sizes(2, 12, 20, 5, 6)
    needs = operation.differentiable
    gradients = []
    for reduce in (lambda x: x.sum(), lambda x: (x * torch.ones_like(x)).sum()):
        leaves = [x.requires_grad_(n) for x, n in zip(operation.inputs(sizes, torch.float32), needs, strict=True)]
        reduce(operation(*leaves, backend=backend)).backward()
        gradients.append([leaf.grad for leaf in leaves if leaf.requires_grad])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@each_case
def test_one_input_alone_requires_a_gradient(operation: Operation, backend: str) -> None:
    sizes = Sizes(2, 12, 20, 5, 6)
    inputs = operation.inputs(sizes, torch.float32)
    expected = iter(run(operation, inputs, backend)[1:])
    for position in (i for i, possible in enumerate(operation.differentiable) if possible):
        needs = tuple(i == position for i in range(len(inputs)))
        assert torch.equal(run(operation, inputs, backend, needs)[1], next(expected))


@each_case
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_computed_in_float32(operation: Operation, dtype: torch.dtype, backend: str) -> None:
    sizes = Sizes(2, 12, 20, 5, 6)
    half = operation.inputs(sizes, dtype)
    ours = run(operation, half, backend)
    exact = run(operation, tuple(x.float() for x in half), backend)
    assert ours[0].dtype == (torch.float32 if operation.is_loss else dtype)
    torch.testing.assert_close(ours[0], exact[0].to(ours[0].dtype), rtol=0, atol=0)
    for gradient, reference in zip(ours[1:], exact[1:], strict=True):
        assert gradient.dtype == dtype
        assert relative(gradient, reference.double()) < 4 * torch.finfo(dtype).eps


@each_case
@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf], ids=str)
def test_a_poisoned_input_never_gives_a_plausible_number(operation: Operation, poison: float, backend: str) -> None:
    inputs = operation.inputs(Sizes(2, 12, 20, 5, 6), torch.float32)
    for position in range(len(inputs)):
        poisoned = [x.clone(memory_format=torch.contiguous_format) for x in inputs]
        values = poisoned[position].flatten()
        values[17 % len(values)] = poison
        result = operation(*poisoned, backend=backend)
        eager = operation(*poisoned, backend="eager")
        assert torch.equal(result.isfinite(), eager.isfinite())
        if not operation.options.get("relu") or poison != -torch.inf:  # max(-infinity, 0) is 0
            assert not result.isfinite().all()


@each_case
def test_without_gradients(operation: Operation, backend: str) -> None:
    inputs = operation.inputs(SMALL, torch.float32)
    expected = run(operation, inputs, backend)[0]
    with torch.no_grad():
        leaves = [x.requires_grad_(n) for x, n in zip(inputs, operation.differentiable, strict=True)]
        result = operation(*leaves, backend=backend)
    assert not result.requires_grad
    assert torch.equal(result, expected)


@each_case
def test_a_second_derivative_is_refused(operation: Operation, backend: str) -> None:
    inputs = operation.inputs(SMALL, torch.float32)
    leaves = [x.requires_grad_(n) for x, n in zip(inputs, operation.differentiable, strict=True)]
    result = operation(*leaves, backend=backend)
    (gradient,) = torch.autograd.grad(result.square().sum(), leaves[0], create_graph=True)
    with pytest.raises(RuntimeError, match=f'{operation.name}: .* pass backend="eager"'):
        gradient.sum().backward()
