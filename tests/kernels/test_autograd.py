"""What autograd may ask of an operation: a kernel gives first derivatives, and refuses whatever else would be lost."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from operations import OPERATIONS, Operation, Sizes, each_boundary_case
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

import imc_kernels

SMALL = Sizes(2, 3, 4, 3, 3)
REFUSED = r'{}: .*pass backend="eager"'

each_operation = pytest.mark.parametrize("operation", OPERATIONS, ids=str)


def leaves_of(operation: Operation, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    inputs = operation.inputs(SMALL, dtype)
    return [x.requires_grad_(n) for x, n in zip(inputs, operation.differentiable, strict=True)]


def grown(leaves: list[Tensor]) -> list[Tensor]:
    return [x for x in leaves if x.requires_grad]


class Forms:
    """Ways in which a call reaches the kernels."""

    @staticmethod
    def direct(operation: Operation, backend: str) -> Callable[..., Tensor]:
        return lambda *x: operation(*x, backend=backend)

    @staticmethod
    def operator(operation: Operation, backend: str) -> Callable[..., Tensor]:
        """The registered operator, called without a compiler: as a recorded graph calls it."""
        inputs = leaves_of(operation)
        return torch.jit.trace(lambda *x: operation(*x, backend=backend), tuple(inputs), check_trace=False)

    @staticmethod
    def checkpointed(operation: Operation, backend: str) -> Callable[..., Tensor]:
        return lambda *x: checkpoint(lambda *y: operation(*y, backend=backend), *x, use_reentrant=False)

    @staticmethod
    def offloaded(operation: Operation, backend: str) -> Callable[..., Tensor]:
        def call(*x: Tensor) -> Tensor:
            with torch.autograd.graph.save_on_cpu():
                return operation(*x, backend=backend)

        return call


each_form = pytest.mark.parametrize(
    "form", [Forms.direct, Forms.operator, Forms.checkpointed, Forms.offloaded], ids=lambda form: form.__name__
)
# Upstream gradients: of ones, constant, and one that itself requires a gradient.
UPSTREAM: dict[str, Callable[[Tensor], Tensor]] = {
    "ones": lambda x: x.sum(),
    "constant": lambda x: 3 * x.sum(),
    "growing": lambda x: x.square().sum(),
}


@each_boundary_case
@each_form
@pytest.mark.parametrize("upstream", UPSTREAM)
def test_a_second_derivative_is_refused_when_it_is_asked_for(
    operation: Operation, backend: str, form: Callable[..., Any], upstream: str
) -> None:
    leaves = leaves_of(operation)
    call = form(operation, backend)
    expected = torch.autograd.grad(UPSTREAM[upstream](operation(*leaves, backend=backend)), grown(leaves))
    gradients = torch.autograd.grad(UPSTREAM[upstream](call(*leaves)), grown(leaves), create_graph=True)
    for gradient, value in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, value, rtol=0, atol=0)
    for gradient in gradients:
        for leaf in grown(leaves):  # also those of another leaf, and where an answer of None would do
            with pytest.raises(NotImplementedError, match=REFUSED.format(operation.name)):
                torch.autograd.grad(gradient.sum(), leaf, retain_graph=True, allow_unused=True)
    with pytest.raises(NotImplementedError, match=REFUSED.format(operation.name)):
        sum(gradient.square().sum() for gradient in gradients).backward()


@each_boundary_case
def test_a_reentrant_checkpoint_gives_the_gradients(operation: Operation, backend: str) -> None:
    """It calls the operation without gradients, and again in the backward."""
    leaves = leaves_of(operation)
    expected = torch.autograd.grad(operation(*leaves, backend=backend).square().sum(), grown(leaves))
    checkpoint(lambda *x: operation(*x, backend=backend), *leaves, use_reentrant=True).square().sum().backward()
    for leaf, value in zip(grown(leaves), expected, strict=True):
        assert torch.equal(leaf.grad, value)


@each_boundary_case
def test_functions_of_second_derivatives_are_refused(operation: Operation, backend: str) -> None:
    leaves = leaves_of(operation)

    def loss(x: Tensor) -> Tensor:
        return operation(x, *leaves[1:], backend=backend).sum()

    x = leaves[0].detach()
    for function in (torch.autograd.functional.hessian, torch.autograd.functional.hvp, torch.autograd.functional.vhp):
        further = () if function is torch.autograd.functional.hessian else (torch.ones_like(x),)
        with pytest.raises(NotImplementedError, match=REFUSED.format(operation.name)):
            function(loss, x, *further)
    with pytest.raises(NotImplementedError, match=REFUSED.format(operation.name)):
        torch.autograd.functional.jacobian(lambda x: operation(x, *leaves[1:], backend=backend), x, vectorize=True)


@each_boundary_case
def test_a_graph_created_for_something_else_is_of_no_consequence(operation: Operation, backend: str) -> None:
    """loss.backward(create_graph=True), then a penalty on the gradient of another function of the same leaves."""
    leaves = leaves_of(operation)
    plain = torch.autograd.grad(operation(*leaves, backend=backend).sum(), grown(leaves))
    operation(*leaves, backend=backend).sum().backward(create_graph=True)
    for leaf, gradient in zip(grown(leaves), plain, strict=True):
        assert torch.equal(leaf.grad, gradient)
        with torch.no_grad():
            leaf.grad *= 2  # as clipping does, in place: it is no view of anything
        leaf.grad = None
    (other,) = torch.autograd.grad(leaves[0].pow(3).sum(), leaves[0], create_graph=True)
    (operation(*leaves, backend=backend).sum() + other.sum()).backward()
    torch.testing.assert_close(leaves[0].grad, plain[0] + 6 * leaves[0].detach())


@each_operation
def test_eager_has_second_derivatives(operation: Operation) -> None:
    leaves = leaves_of(operation, torch.float64)
    if operation.options.get("relu"):
        pytest.skip("relu has a kink, which finite differences may meet")
    if operation.constant:
        pytest.skip("finite differences would move what it holds constant; its form with a teacher is tried")
    assert torch.autograd.gradgradcheck(lambda *x: operation(*x, backend="eager"), leaves)


@each_boundary_case
def test_a_graph_goes_when_it_is_let_go(operation: Operation, backend: str) -> None:
    """No cycle keeps memory until the garbage collector comes: not with a graph of gradients either."""
    gc.collect()
    gc.disable()
    try:
        for create_graph in (False, True):
            leaves = leaves_of(operation)
            result = operation(*leaves, backend=backend)
            gradients = torch.autograd.grad(result.sum(), grown(leaves), create_graph=create_graph)
            function = [result.grad_fn] if hasattr(result.grad_fn, "__weakref__") else []  # torch's own have none
            watched = [weakref.ref(x) for x in (*function, *leaves, *gradients)]
            del function, leaves, result, gradients
            assert all(reference() is None for reference in watched)
    finally:
        gc.enable()


@each_boundary_case
def test_a_loss_may_be_changed_in_place(operation: Operation, backend: str) -> None:
    if not operation.is_loss:
        pytest.skip("only a loss is not saved for its backward")
    leaves = leaves_of(operation)
    expected = torch.autograd.grad(operation(*leaves, backend=backend).sum(), grown(leaves))
    loss = operation(*leaves, backend=backend)
    loss *= 2
    for gradient, value in zip(torch.autograd.grad(loss.sum(), grown(leaves)), expected, strict=True):
        assert torch.equal(gradient, 2 * value)


@each_boundary_case
@each_form
@pytest.mark.parametrize("upstream", ["ones", "constant"])
def test_a_gradient_is_the_callers_own(
    operation: Operation, backend: str, form: Callable[..., Any], upstream: str
) -> None:
    """To change it in place changes no later gradient, whether or not the graph was kept."""
    leaves = leaves_of(operation)
    total = UPSTREAM[upstream](form(operation, backend)(*leaves))
    first = torch.autograd.grad(total, grown(leaves), retain_graph=True)
    kept = [gradient.clone() for gradient in first]
    for gradient in first:
        gradient.zero_()
    created = torch.autograd.grad(total, grown(leaves), create_graph=True)
    for gradient, value in zip(created, kept, strict=True):
        assert torch.equal(gradient, value)
        gradient.detach().zero_()
    for gradient, value in zip(torch.autograd.grad(total, grown(leaves)), kept, strict=True):
        assert torch.equal(gradient, value)


@each_boundary_case
@pytest.mark.parametrize("grad", [True, False], ids=["with gradient", "without"])
def test_a_result_is_the_callers_own(operation: Operation, backend: str, grad: bool) -> None:
    """It shares no memory with an input, nor with the result of another call."""
    leaves = [x.detach().requires_grad_(grad and x.requires_grad) for x in leaves_of(operation)]
    kept = [x.detach().clone() for x in leaves]
    result = operation(*leaves, backend=backend).detach()
    value = result.clone()
    result.fill_(7)
    assert all(torch.equal(x, y) for x, y in zip(leaves, kept, strict=True))
    assert torch.equal(operation(*leaves, backend=backend), value)


@each_boundary_case
def test_a_forward_mode_derivative_is_refused(operation: Operation, backend: str) -> None:
    inputs = operation.inputs(SMALL, torch.float32)
    for position, grows in enumerate(operation.differentiable):
        for requires_grad in (False, True):
            with forward_ad.dual_level():
                x = list(inputs)
                primal = x[position].clone().requires_grad_(requires_grad and grows)
                x[position] = forward_ad.make_dual(primal, torch.ones_like(primal))
                with pytest.raises(NotImplementedError, match=REFUSED.format(operation.name)):
                    operation(*x, backend=backend)
    with forward_ad.dual_level():  # no tangent, no refusal
        operation(*inputs, backend=backend)


@each_operation
def test_eager_has_forward_mode_derivatives(operation: Operation) -> None:
    inputs = operation.inputs(SMALL)
    direction = torch.randn(inputs[0].shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(inputs[0], direction)
        tangent = forward_ad.unpack_dual(operation(dual, *inputs[1:], backend="eager")).tangent
    leaf = inputs[0].clone().requires_grad_()
    result = operation(leaf, *inputs[1:], backend="eager")
    weights = torch.randn(result.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (gradient,) = torch.autograd.grad(result, leaf, weights)
    torch.testing.assert_close((tangent * weights).sum(), (gradient * direction).sum())


TRANSFORMS: dict[str, Callable[[Callable[[Tensor], Tensor], Tensor], object]] = {
    "grad": lambda f, x: torch.func.grad(lambda y: f(y).sum())(x),
    "vjp": lambda f, x: torch.func.vjp(f, x)[1](torch.ones_like(f(x))),
    "jvp": lambda f, x: torch.func.jvp(f, (x,), (torch.ones_like(x),)),
    "jacrev": lambda f, x: torch.func.jacrev(f)(x),
    "jacfwd": lambda f, x: torch.func.jacfwd(f)(x),
    "hessian": lambda f, x: torch.func.hessian(lambda y: f(y).sum())(x),
    "vmap": lambda f, x: torch.vmap(f)(torch.stack([x, x])),
    "functionalize": lambda f, x: torch.func.functionalize(f)(x),
}


@each_boundary_case
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_transforms_of_torch_func_are_refused(operation: Operation, backend: str, transform: str) -> None:
    inputs = operation.inputs(SMALL, torch.float32)
    with pytest.raises(NotImplementedError, match=REFUSED.format(operation.name)):
        TRANSFORMS[transform](lambda x: operation(x, *inputs[1:], backend=backend), inputs[0])


@each_boundary_case
def test_constants_inside_a_transform_are_refused(operation: Operation, backend: str) -> None:
    """A transform wraps what is made inside it, of whatever."""
    for inputs in (leaves_of(operation), [x.detach() for x in leaves_of(operation)]):
        with pytest.raises(NotImplementedError, match=REFUSED.format(operation.name)):
            torch.func.grad(lambda x, y=inputs: x * operation(*y, backend=backend).sum())(torch.ones(()))


@pytest.mark.parametrize("transform", [name for name in TRANSFORMS if name != "vmap"])
@each_operation
def test_eager_inside_a_transform(operation: Operation, transform: str) -> None:
    inputs = operation.inputs(SMALL)
    TRANSFORMS[transform](lambda x: operation(x, *inputs[1:], backend="eager"), inputs[0])


@each_boundary_case
def test_functional_call_is_an_ordinary_call(operation: Operation, backend: str) -> None:
    leaves = leaves_of(operation)

    class Module(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = torch.nn.Parameter(leaves[0].detach().clone())

        def forward(self) -> Tensor:
            return operation(self.first, *leaves[1:], backend=backend)

    result = torch.func.functional_call(Module(), {"first": leaves[0]}, ())
    assert torch.equal(result, operation(*leaves, backend=backend))
    assert result.requires_grad


@each_boundary_case
def test_lazily_negated_gradients(operation: Operation, backend: str) -> None:
    """That of a conjugate's imaginary part is a view whose memory holds its negative."""
    leaves = leaves_of(operation)
    result = operation(*leaves, backend=backend)
    upstream = torch.linspace(-1, 2, result.numel()).reshape(result.shape)
    lazy = torch.complex(torch.zeros_like(upstream), -upstream).conj().imag
    assert lazy.is_neg()
    expected = torch.autograd.grad(result, grown(leaves), upstream, retain_graph=True)
    for gradient, value in zip(torch.autograd.grad(result, grown(leaves), lazy), expected, strict=True):
        assert torch.equal(gradient, value)


@pytest.mark.parametrize("name", sorted({operation.name for operation in OPERATIONS}))
def test_the_docstring_names_what_is_refused(name: str) -> None:
    raised = (getattr(imc_kernels, name).__doc__ or "").partition("Raises:")[2]
    assert "NotImplementedError: " in raised
