"""The loss without a matrix of scores: it is that of the matrix, in each of its forms."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from operations import all_backends, native_backends
from torch import Tensor
from torch.nn.functional import normalize

from imc_kernels import linear_swapped_prediction_loss, prototype_scores, sinkhorn, swapped_prediction_loss

NAME = "linear_swapped_prediction_loss"
EXACT = all_backends(NAME, torch.float64)
NATIVE = native_backends(NAME)


def normal(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64).to(dtype)


def with_gradients(function: Any, *inputs: Tensor) -> list[Tensor]:
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    loss = function(*leaves)
    return [loss.detach(), *torch.autograd.grad(loss, leaves)]


def unfused(
    z: Tensor, w: Tensor, assigned: int = 2, temperature: float = 0.1, normalize_prototypes: bool = True, **options: Any
) -> Tensor:
    scores = prototype_scores(z, w, normalize_prototypes=normalize_prototypes, backend="eager")
    targets = sinkhorn(scores[:assigned].detach(), **options, backend="eager")
    return swapped_prediction_loss(scores, targets, temperature=temperature, backend="eager")


@pytest.mark.parametrize("backend", EXACT)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"assigned": 1, "iterations": 1},
        {"assigned": 3, "epsilon": 0.3, "iterations": 6, "temperature": 1.0},
        {"marginals": torch.arange(1.0, 12, dtype=torch.float64)},
        {"epsilon": 1e-3},
        {"normalize_prototypes": False},
    ],
    ids=lambda options: ", ".join(options),
)
def test_is_the_three_operations(options: dict[str, Any], backend: str) -> None:
    z, w = normal(3, 9, 5), normal(11, 5)
    ours = with_gradients(lambda z, w: linear_swapped_prediction_loss(z, w, **options, backend=backend), z, w)
    for result, expected in zip(ours, with_gradients(lambda z, w: unfused(z, w, **options), z, w), strict=True):
        torch.testing.assert_close(result, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("backend", EXACT)
def test_a_strip_after_the_other(backend: str) -> None:
    """More scores than one strip holds, the last strip narrower, its panels not full."""
    z, w, wt, weights = normal(2, 130, 3), normal(8200, 3), normal(8200, 4), normal(2, 130).abs()
    options = {"teacher": (normal(2, 130, 4), wt), "weights": weights, "iterations": 2, "backend": backend}
    ours = with_gradients(lambda z, w: linear_swapped_prediction_loss(z, w, **options), z, w)
    scores = prototype_scores(z.requires_grad_(), w.requires_grad_(), backend="eager")
    targets = sinkhorn(prototype_scores(options["teacher"][0], wt), iterations=2, backend="eager")
    log_p = torch.log_softmax(scores / 0.1, dim=-1)
    expected = -(weights * (targets.flip(0) * log_p).sum(dim=-1)).mean()
    for result, truth in zip(ours, (expected, *torch.autograd.grad(expected, (z, w))), strict=True):
        torch.testing.assert_close(result, truth, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("backend", EXACT)
def test_dino(backend: str) -> None:
    """Its loss as its authors' code has it: a centred and sharpened teacher of two of the five views."""
    z, w, zt, wt, center = normal(5, 4, 6), normal(13, 6), normal(2, 4, 7), normal(13, 7), 0.1 * normal(13)
    student = normalize(z, dim=-1) @ normalize(w, dim=-1).T
    teacher = torch.softmax((normalize(zt, dim=-1) @ normalize(wt, dim=-1).T - center) / 0.04, dim=-1)
    terms = [
        torch.sum(-q * torch.log_softmax(student[v] / 0.1, dim=-1), dim=-1).mean()
        for iq, q in enumerate(teacher)
        for v in range(5)
        if v != iq
    ]
    result = linear_swapped_prediction_loss(z, w, teacher=(zt, wt), center=center, epsilon=0.04, backend=backend)
    torch.testing.assert_close(result, torch.stack(terms).mean())


@pytest.mark.parametrize("backend", EXACT)
def test_ibot(backend: str) -> None:
    """Its loss of patches: each masked one predicts the teacher's view of it, an image's patches share its weight."""
    z, w, mask = normal(1, 24, 6), normal(13, 6), torch.arange(24) % 3 == 0
    targets = sinkhorn(prototype_scores(z, w), epsilon=0.06, backend="eager")[0]
    log_p = torch.log_softmax(prototype_scores(z, w)[0] / 0.1, dim=-1)
    images = mask.view(4, 6)
    weights = (images / images.sum(dim=1, keepdim=True)).flatten()
    expected = (-(targets * log_p).sum(dim=-1) * weights).sum() / 4
    result = linear_swapped_prediction_loss(
        z, w, assigned=1, teacher=(z, w), epsilon=0.06, weights=6 * weights[None], pairs="all", backend=backend
    )
    torch.testing.assert_close(result, expected)


@pytest.mark.parametrize(
    ("backend", "epsilon"),
    # Triton divides by the norms after the product: three roundings of a score where eager has one.
    [(b, e) for b in NATIVE for e in (0.05, 0.01, 1e-3, 1e-4) if b != "triton" or e >= 0.01],
)
@pytest.mark.parametrize("scale", [1.0, 300.0], ids=["cosines", "scores of hundreds"])
def test_saturated_assignments_are_within_the_error_of_eager(epsilon: float, scale: float, backend: str) -> None:
    z, w = normal(2, 40, 6, dtype=torch.float32), scale * normal(50, 6, dtype=torch.float32)

    def form(backend: str, dtype: torch.dtype) -> list[Tensor]:
        options: dict[str, Any] = {"epsilon": epsilon, "normalize_prototypes": scale == 1, "backend": backend}
        call = lambda z, w: linear_swapped_prediction_loss(z, w, **options)  # noqa: E731
        return with_gradients(call, z.to(dtype), w.to(dtype))

    truth, eager, ours = form("eager", torch.float64), form("eager", torch.float32), form(backend, torch.float32)
    for exact, rival, result in zip(truth, eager, ours, strict=True):
        error, allowed = ((x - exact).norm() / exact.norm() for x in (result, rival))
        assert error <= 3 * allowed + 16 * torch.finfo(torch.float32).eps


@pytest.mark.parametrize("backend", NATIVE)
def test_the_last_strip_counts_as_the_first(backend: str) -> None:
    """Prototypes in another order are the same prototypes, whichever strip each falls into."""
    batch, count = (130, 8200) if backend == "cpu" else (3, 2100)  # more than a strip, or than a program's share
    z, w = normal(2, batch, 3, dtype=torch.float32), normal(count, 3, dtype=torch.float32)
    loss, of_z, of_w = with_gradients(lambda z, w: linear_swapped_prediction_loss(z, w, backend=backend), z, w)
    turned = with_gradients(lambda z, w: linear_swapped_prediction_loss(z, w, backend=backend), z, w.flip(0))
    torch.testing.assert_close(turned[0], loss, rtol=1e-6, atol=0)
    torch.testing.assert_close(turned[1], of_z, rtol=1e-3, atol=1e-8)
    torch.testing.assert_close(turned[2].flip(0), of_w, rtol=1e-3, atol=1e-9)
