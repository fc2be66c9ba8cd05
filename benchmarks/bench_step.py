"""All losses of one IMC-SwAV step, forward and backward, scores and logits given: `pytest --benchmark-only`."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from losses import by_backend
from operations import Sizes, cosines, measured_backends, normal
from rivals import batched_losses, batched_sinkhorn, released_losses
from torch import Tensor

from imc_kernels import backends, sinkhorn

SIZES = Sizes(views=6, batch=256, prototypes=1000, clusters=10, dim=128)  # the paper's, CIFAR-10


def forms() -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    compiled = torch.compile(batched_losses, fullgraph=True)
    rivals = {"released form": released_losses, "batched": batched_losses, "batched, torch.compile": compiled}
    return {name: by_backend(name) for name in measured_backends()} | rivals


@pytest.fixture(scope="module")
def inputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    scores = cosines(SIZES, generator).float().requires_grad_()
    logits = normal(SIZES.views, SIZES.batch, SIZES.clusters, generator=generator).float().requires_grad_()
    return scores, logits


FORMS = forms()


@pytest.mark.parametrize("form", FORMS)
def bench_losses(benchmark, inputs: tuple[Tensor, Tensor], form: str) -> None:  # type: ignore[no-untyped-def]
    benchmark.group = f"losses of an IMC-SwAV step {SIZES} forward+backward"
    benchmark.name = form
    losses, expected = FORMS[form], batched_losses(*inputs)
    torch.testing.assert_close(losses(*inputs), expected, rtol=1e-4, atol=1e-4)
    benchmark(lambda: torch.autograd.grad(losses(*inputs), inputs))


@pytest.mark.parametrize("form", ["cpu", "batched", "batched, torch.compile"])
def bench_sinkhorn(benchmark, inputs: tuple[Tensor, Tensor], form: str) -> None:  # type: ignore[no-untyped-def]
    if form == "cpu" and form not in backends.available():
        pytest.skip("the CPU kernels are not built")
    benchmark.group = "sinkhorn [2, 256, 1000], three iterations, forward"
    benchmark.name = form
    compiled = torch.compile(batched_sinkhorn, fullgraph=True)
    functions = {"cpu": lambda s: sinkhorn(s, backend="cpu"), "batched": batched_sinkhorn}
    function = functions.get(form, compiled)
    scores = inputs[0].detach()[:2].contiguous()
    torch.testing.assert_close(function(scores), batched_sinkhorn(scores), rtol=1e-3, atol=1e-5)
    benchmark(function, scores)
