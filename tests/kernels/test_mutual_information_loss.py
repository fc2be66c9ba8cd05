"""Mutual information: golden and limiting values, the loop over pairs written out, underflow."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from operations import all_backends, native_backends
from torch import Tensor

from imc_kernels import backends, mutual_information_loss

BACKENDS = all_backends("mutual_information_loss", torch.float64)
SINGLE = all_backends("mutual_information_loss")  # those that serve float32
LOGITS = torch.tensor([[[1.0, 0.0], [0.5, -0.5], [-1.0, 2.0]]], dtype=torch.float64)
SCORES = torch.tensor([[[0.9, 0.1, -0.3, 0.0], [0.8, 0.2, 0.1, -0.5], [-0.2, 0.7, 0.3, 0.1]]], dtype=torch.float64)


@pytest.mark.parametrize("backend", BACKENDS)
def test_golden_values(backend: str) -> None:
    """Of the method's specification: H(Y|U) and -4 H(Y)."""
    conditional = mutual_information_loss(LOGITS, SCORES, entropy_weight=0, backend=backend)
    assert conditional.item() == pytest.approx(0.45384173, abs=1e-8)
    assert mutual_information_loss(LOGITS, SCORES, backend=backend).item() == pytest.approx(-2.31866604, abs=1e-8)


def pair(y: Tensor, u: Tensor, entropy_weight: float) -> Tensor:
    joint = y.T @ u / len(y)
    conditional = -(joint * (joint / joint.sum(dim=0)).log()).sum()
    marginal = y.mean(dim=0)
    return conditional + entropy_weight * (marginal * marginal.log()).sum()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("views", [1, 2, 5])
def test_is_the_mean_over_all_ordered_pairs(views: int, backend: str) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(views, 30, 4, generator=generator, dtype=torch.float64)
    scores = torch.randn(views, 30, 9, generator=generator, dtype=torch.float64)
    y, u = logits.softmax(dim=-1), (scores / 0.3).softmax(dim=-1)
    expected = torch.stack([pair(y[j], u[i], 3.0) for j in range(views) for i in range(views)]).mean()
    result = mutual_information_loss(logits, scores, temperature=0.3, entropy_weight=3.0, backend=backend)
    torch.testing.assert_close(result, expected)


@pytest.mark.parametrize("backend", BACKENDS)
@given(
    views=st.integers(1, 3),
    batch=st.integers(1, 30),
    clusters=st.integers(1, 12),
    prototypes=st.integers(1, 30),
    scale=st.sampled_from([0.0, 1.0, 30.0, 1e4]),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=40, deadline=None)
def test_information_lies_between_zero_and_log_c(
    backend: str, views: int, batch: int, clusters: int, prototypes: int, scale: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(views, batch, clusters, generator=generator)
    scores = torch.randn(views, batch, prototypes, generator=generator)
    information = -mutual_information_loss(logits, scores, entropy_weight=1.0, backend=backend).item()
    assert -1e-5 <= information <= math.log(clusters) + 1e-5


@pytest.mark.parametrize("backend", SINGLE)
def test_uniform_predictions(backend: str) -> None:
    loss = mutual_information_loss(torch.zeros(6, 16, 10), torch.zeros(6, 16, 50), backend=backend)
    assert loss.item() == pytest.approx(-3 * math.log(10), rel=1e-6)


@pytest.mark.parametrize("backend", SINGLE)
def test_certain_and_balanced_predictions_reach_the_bound(backend: str) -> None:
    classes = torch.arange(10).repeat(4)
    one_hot = torch.nn.functional.one_hot(classes, 10).float() * 1e4
    loss = mutual_information_loss(one_hot.expand(3, -1, -1), one_hot.expand(3, -1, -1), backend=backend)
    assert loss.item() == pytest.approx(-4 * math.log(10), rel=1e-6)


@pytest.mark.parametrize("backend", SINGLE)
def test_underflow_gives_the_limit(backend: str) -> None:
    """Joint probabilities of exactly zero: 0 log 0 = 0, and no gradient is NaN."""
    logits = torch.tensor([[[1e4, 0.0, -1e4], [0.0, 1e4, -1e4]]]).requires_grad_()
    scores = torch.tensor([[[1e4, 0.0], [0.0, 1e4]]]).requires_grad_()
    loss = mutual_information_loss(logits, scores, backend=backend)
    loss.backward()
    assert loss.item() == pytest.approx(-4 * math.log(2), rel=1e-6)
    for leaf in (logits, scores):
        assert leaf.grad is not None
        assert leaf.grad.isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_guard_adds_the_mean_excess(backend: str) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 8 * torch.randn(2, 6, 3, generator=generator, dtype=torch.float64)
    scores = torch.randn(2, 6, 5, generator=generator, dtype=torch.float64)
    free = mutual_information_loss(logits, scores, backend=backend)
    guarded = mutual_information_loss(logits, scores, logit_limit=5.0, backend=backend)
    torch.testing.assert_close(guarded - free, 0.01 * (logits.abs() - 5).clamp_min(0).sum() / 12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_symmetric_form_is_that_of_iic(backend: str) -> None:
    """-I(z, z') of the symmetrised joint, written out over all pairs of views of one classifier."""
    logits = torch.randn(3, 20, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = logits.softmax(dim=-1)
    pairs = []
    for first in y:
        for second in y:
            joint = first.T @ second / 20
            joint = (joint + joint.T) / 2
            rows, columns = joint.sum(dim=1, keepdim=True), joint.sum(dim=0, keepdim=True)
            pairs.append(-(joint * (joint / (rows * columns)).log()).sum())
    result = mutual_information_loss(logits, logits, temperature=1, entropy_weight=1, symmetric=True, backend=backend)
    torch.testing.assert_close(result, torch.stack(pairs).mean())


@pytest.mark.parametrize("backend", native_backends("mutual_information_loss"))
@pytest.mark.parametrize(
    ("shape", "symmetric"),
    [
        ((1, 8, 5, 7), False),
        *itertools.product([(1, 2, 3, 3), (2, 8, 5, 5), (1, 64, 10, 10), (2, 3, 1, 1)], [False, True]),
    ],
    ids=str,
)
def test_the_gradient_of_saturated_rows_is_as_exact_as_eager(
    shape: tuple[int, ...], symmetric: bool, backend: str
) -> None:
    """Where a softmax is 1 in one entry, its gradient there is what remains of terms that cancel."""
    views, batch, clusters, prototypes = shape
    scales, temperatures = (1, 10, 30, 100, 300, 1000), (1, 0.1, 0.03, 0.01, 0.003, 0.001)
    if backends.BACKENDS[backend].emulated():
        scales, temperatures = (1, 100, 300), (0.1, 0.001)
    for scale, temperature in itertools.product(scales, temperatures):
        generator = torch.Generator().manual_seed(0)
        logits = scale * torch.randn(views, batch, clusters, generator=generator)
        scores = torch.rand(views, batch, prototypes, generator=generator) * 2 - 1
        gradients = []
        for dtype, name in ((torch.float64, "eager"), (torch.float32, "eager"), (torch.float32, backend)):
            x = logits.to(dtype).requires_grad_(), scores.to(dtype).requires_grad_()
            loss = mutual_information_loss(*x, temperature=temperature, symmetric=symmetric, backend=name)
            gradients.append(torch.autograd.grad(loss, x))
        for at, sharpness in ((0, 1.0), (1, 1 / temperature)):
            exact, rival, ours = (pair[at].double() for pair in gradients)
            error, rivals, norm = (float(x.norm()) for x in (ours - exact, rival - exact, exact))
            # Logarithms of order 1, rounded, whose differences count by p (1 - p): below that nothing is exact. Eager
            # rounds them at p = 1 too, and so loses a gradient of 1e-20 in float64 that a kernel keeps in float32.
            p = (sharpness * (logits, scores)[at].detach().double()).softmax(dim=-1)
            terms = float((p * (1 - p)).norm()) * sharpness / (views * batch)
            rounding = torch.finfo(torch.float32).eps * (16 * norm + terms) + torch.finfo(torch.float64).eps * sharpness
            assert error <= 3 * rivals + rounding, (at, scale, temperature, error, rivals, norm, terms)
