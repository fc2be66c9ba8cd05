"""The forms that the kernels are measured against compute what the specification computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from bench_operations import PLAIN
from operations import Sizes
from rivals import RIVALS, batched_losses, released_losses
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

SIZES = Sizes(views=6, batch=16, prototypes=30, clusters=5, dim=8, heads=3)


class Launches(TorchDispatchMode):
    """Counts the operators that launch a kernel: views do not."""

    count = 0

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        view = operator.is_view or operator in (torch.ops.aten.detach.default, torch.ops.aten._unsafe_view.default)
        self.count += not view
        return operator(*args, **(kwargs or {}))


@pytest.mark.parametrize("operation", PLAIN, ids=str)
def test_every_rival_is_the_specification_with_its_gradient(operation) -> None:  # type: ignore[no-untyped-def]
    inputs = tuple(
        x.requires_grad_(need) for x, need in zip(operation.inputs(SIZES), operation.differentiable, strict=True)
    )
    if operation.name == "mutual_information_loss":
        inputs[1].requires_grad_(False)  # it trains the classifier only
    leaves = [x for x in inputs if x.requires_grad]
    expected = operation(*inputs, backend="eager")
    upstream = torch.rand_like(expected)
    for form, rival in RIVALS[operation.name].items():
        result = rival(*inputs)
        torch.testing.assert_close(
            result, expected, rtol=1e-6, atol=1e-9, msg=lambda text, form=form: f"{form}: {text}"
        )
        if operation.name != "sinkhorn":  # the assignments are constants of a step
            for ours, exact in zip(
                *(torch.autograd.grad(y, leaves, upstream, True) for y in (result, expected)), strict=True
            ):
                torch.testing.assert_close(ours, exact, rtol=1e-6, atol=1e-9)


def step(losses: Callable[[Tensor, Tensor], Tensor]) -> int:
    scores, logits = torch.rand(6, 16, 30, requires_grad=True), torch.randn(6, 16, 5, requires_grad=True)
    with Launches() as launches:
        torch.autograd.grad(losses(scores, logits), (scores, logits))
    return launches.count


def test_the_released_form_makes_as_many_calls_as_the_authors_code() -> None:
    assert step(released_losses) == pytest.approx(
        2307, rel=0.01
    )  # counted on a GPU: Sinkhorn, cross-entropy, information


def test_the_batched_form_makes_few() -> None:
    assert step(batched_losses) < 150


@pytest.mark.parametrize("excess", [0.0, 30.0])
def test_the_guard_of_the_released_heads_has_the_loss_s_gradient(excess: float) -> None:
    logits = (torch.randn(2, 2, 8, 5, dtype=torch.float64) + excess * torch.eye(8, 5).double()).requires_grad_()
    forms = RIVALS["log_dot_product_loss"]
    released, batched = (torch.autograd.grad(forms[name](logits).sum(), logits)[0] for name in ("released", "batched"))
    torch.testing.assert_close(released, batched, rtol=1e-6, atol=1e-9)
