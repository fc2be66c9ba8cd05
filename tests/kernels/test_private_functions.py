"""torch's functions that are not public: a version without one takes the slower way, with the same results."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from operations import OPERATIONS, Operation, Sizes
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental import symbolic_shapes
from torch.fx.experimental.proxy_tensor import make_fx

from imc_kernels import backends, swapped_prediction_loss
from imc_kernels.ops import autograd, scheduled

SIZES = Sizes(2, 5, 7, 3, 4)
LACKING = [*autograd.PRIVATE, "all of them"]
ONE_OF_EACH_FORM = [o for o in OPERATIONS if str(o) in ("sinkhorn", "prototype_scores", "swapped_prediction_loss")]
needs_cpu_kernels = pytest.mark.skipif("cpu" not in backends.available(), reason="the CPU kernels are not built")


@pytest.fixture(params=LACKING)
def lacking(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The module as it is where torch has no such function."""
    for name, value in list(vars(autograd).items()):
        for path, instead in autograd.PRIVATE.items():
            if value is found(path) and request.param in (path, "all of them"):
                monkeypatch.setattr(autograd, name, instead)
    if request.param == "all of them":
        monkeypatch.setattr(autograd, "_levels", autograd.levels(object()))
    return request.param


def found(path: str) -> Any:
    value: Any = torch
    for name in path.split("."):
        value = getattr(value, name)
    return value


def test_each_is_looked_up_and_replaced_where_it_is_not_there() -> None:
    for path, instead in autograd.PRIVATE.items():
        assert autograd.private(path) is found(path)
        assert autograd.private(path, torch_without=path) is instead
        assert any(value is found(path) for value in vars(autograd).values())


@needs_cpu_kernels
@pytest.mark.parametrize("operation", ONE_OF_EACH_FORM, ids=str)
def test_results_gradients_and_recordings_stay_right(operation: Operation, lacking: str) -> None:
    inputs = operation.inputs(SIZES, torch.float32)
    leaves = [x.requires_grad_(n) for x, n in zip(inputs, operation.differentiable, strict=True)]
    grown = [x for x in leaves if x.requires_grad]
    expected = operation(*leaves, backend="eager")
    result = operation(*leaves, backend="cpu")
    torch.testing.assert_close(result, expected)
    weights = torch.linspace(-1, 2, result.numel()).reshape(result.shape)
    exact = torch.autograd.grad(expected, grown, weights)
    for _ in range(2):
        for ours, theirs in zip(torch.autograd.grad(result, grown, weights, retain_graph=True), exact, strict=True):
            torch.testing.assert_close(ours, theirs)
            ours.zero_()  # the caller's own
    recorded = make_fx(lambda *x: operation(*x, backend="cpu"))(*leaves)
    torch.testing.assert_close(recorded(*leaves), expected)
    with FakeTensorMode() as mode:
        assert operation(*map(mode.from_tensor, leaves), backend="cpu").shape == expected.shape


@needs_cpu_kernels
@pytest.mark.parametrize("operation", ONE_OF_EACH_FORM, ids=str)
def test_derivatives_are_still_refused(operation: Operation, lacking: str) -> None:
    inputs = operation.inputs(SIZES, torch.float32)
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match='backend="eager"'):
        operation(forward_ad.make_dual(inputs[0], torch.ones_like(inputs[0])), *inputs[1:], backend="cpu")
    with pytest.raises((RuntimeError, NotImplementedError)):  # not lost without a word
        torch.func.grad(lambda x: operation(x, *inputs[1:], backend="cpu").sum())(inputs[0])


@needs_cpu_kernels
def test_a_compiler_that_does_not_tell_which_numbers_change(monkeypatch: pytest.MonkeyPatch) -> None:
    assert hasattr(symbolic_shapes, scheduled.STATIC)
    monkeypatch.setattr(scheduled, "STATIC", "there_is_no_such_function")
    torch.compiler.reset()
    scores, targets = torch.rand(3, 4, 5), torch.rand(2, 4, 5)
    compiled = torch.compile(swapped_prediction_loss, fullgraph=True, backend="aot_eager")
    for temperature in (0.1, 0.2, 0.3):
        result = compiled(scores, targets, temperature=temperature)
        torch.testing.assert_close(result, swapped_prediction_loss(scores, targets, temperature=temperature))
