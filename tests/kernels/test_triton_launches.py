"""How many launches a step's losses take on the Triton backend: its kernels, and torch's operations around them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from operations import native_backends
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from imc_kernels import (
    backends,
    info_nce_loss,
    log_dot_product_loss,
    mutual_information_loss,
    sinkhorn,
    swapped_prediction_loss,
)

MOST = 20
pytestmark = pytest.mark.skipif(
    not backends.BACKENDS["triton"].emulated() or backends.BACKENDS["triton"].missing() is not None,
    reason="Triton's interpreter is not on",
)

# Operations of torch that start nothing on a device, and the question whether grad_output is 1, asked on the CPU only.
FREE = {"empty", "empty_like", "detach", "view", "split_with_sizes", "split", "slice", "expand", "lift_fresh"}
ASKED = {"eq", "all", "_local_scalar_dense", "is_nonzero"}


class Launches(TorchDispatchMode):
    """Counts the operations of torch that would start a kernel, and the kernels that are handed to Triton."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.overloadpacket.__name__ not in FREE | ASKED:
            self.names.append(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))

    def execute(self, kernel: Any, *rest: Any) -> None:
        self.names.append(kernel.fn.__name__)


def launches(step: Callable[[], list[tuple[Tensor, Tensor]]], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Of the losses of a step and their gradients, for a grad_output that is not 1."""
    from imc_kernels.triton import launch

    counter = Launches()
    monkeypatch.setattr(launch, "execute", counter.execute)
    two = torch.tensor(2.0)
    with backends.backend("triton"), counter:
        for loss, leaf in step():
            torch.autograd.grad(loss, leaf, two.expand(loss.shape))
    return counter.names


def leaf(*shape: int) -> Tensor:
    return torch.zeros(shape, requires_grad=True)


def test_the_losses_of_an_imc_swav_step(monkeypatch: pytest.MonkeyPatch) -> None:
    scores, logits = leaf(6, 256, 1000), leaf(6, 256, 10)

    def step() -> list[tuple[Tensor, Tensor]]:
        constant = scores.detach()
        swapped = swapped_prediction_loss(scores, sinkhorn(constant[:2]))
        return [(swapped, scores), (mutual_information_loss(logits, constant, logit_limit=5.0), logits)]

    names = launches(step, monkeypatch)
    assert {"sweep_kernel", "swapped_prediction_kernel", "joint_kernel", "mul"} <= set(names)
    assert len(names) <= MOST, names


@pytest.mark.skipif("triton" not in native_backends("info_nce_loss"), reason="info_nce_loss is not on Triton here")
def test_the_losses_of_a_crlc_step(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, embeddings = leaf(10, 2, 512, 10), leaf(2, 512, 128)

    def step() -> list[tuple[Tensor, Tensor]]:
        cluster = log_dot_product_loss(logits, entropy_weight=2.0, logit_limit=25.0)
        return [(cluster, logits), (info_nce_loss(embeddings), embeddings)]

    names = launches(step, monkeypatch)
    assert {"sums_kernel", "mul"} <= set(names)
    assert len(names) <= MOST, names
