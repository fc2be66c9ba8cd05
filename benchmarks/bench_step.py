"""All losses of one IMC-SwAV step, forward and backward, scores and logits given: `pytest --benchmark-only`."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from losses import by_backend
from measure import DEVICE, finish
from operations import Sizes, cosines, measured_backends, normal
from rivals import batched_losses, released_losses
from targets import keep
from torch import Tensor

SIZES = Sizes(views=6, batch=256, prototypes=1000, clusters=10, dim=128)  # the paper's, CIFAR-10


def forms() -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    compiled = torch.compile(batched_losses, fullgraph=True)
    rivals = {"released": released_losses, "batched": batched_losses, "torch.compile": compiled}
    return {name: by_backend(name) for name in measured_backends(DEVICE.type)} | rivals


@pytest.fixture(scope="module")
def inputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    scores = cosines(SIZES, generator).float().to(DEVICE).requires_grad_()
    logits = normal(SIZES.views, SIZES.batch, SIZES.clusters, generator=generator).float().to(DEVICE).requires_grad_()
    return scores, logits


FORMS = forms()


@pytest.mark.parametrize("form", FORMS)
def bench_losses(benchmark, inputs: tuple[Tensor, Tensor], form: str) -> None:  # type: ignore[no-untyped-def]
    benchmark.group = f"losses of an IMC-SwAV step imc-swav-cifar10 {SIZES} forward+backward"
    benchmark.name = form
    losses, expected = FORMS[form], batched_losses(*inputs)
    torch.testing.assert_close(losses(*inputs), expected, rtol=1e-4, atol=1e-4)

    def step() -> None:
        torch.autograd.grad(losses(*inputs), inputs)
        finish(DEVICE)

    keep(benchmark.group, form, step)
    benchmark(step)
