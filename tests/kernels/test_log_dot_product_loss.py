"""Log-of-dot-product loss: golden and limiting values, symmetries, underflow, the critics of the ablation."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from operations import all_backends
from torch import Tensor
from torch.nn.functional import one_hot

from imc_kernels import log_dot_product_loss

BACKENDS = all_backends("log_dot_product_loss", torch.float64)
SINGLE = all_backends("log_dot_product_loss")  # those that serve float32
NATIVE = [name for name in BACKENDS if name != "eager"]
LOGITS = torch.tensor(
    [[[[2, 0, -1], [0, 1, 0], [-1, 0, 3], [1, 1, 0]], [[1, 0, 0], [0, 2, -1], [0, 0, 1], [0, 2, 1]]]],
    dtype=torch.float64,
)
each_backend = pytest.mark.parametrize("backend", BACKENDS)


def random_logits(heads: int, batch: int, clusters: int, scale: float, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(heads, 2, batch, clusters, generator=generator, dtype=torch.float64)


problems = given(
    heads=st.integers(1, 3),
    batch=st.integers(1, 70),
    clusters=st.integers(1, 12),
    scale=st.sampled_from([0.0, 0.1, 1.0, 8.0]),
    seed=st.integers(0, 2**31),
)


@each_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_golden_values(dtype: torch.dtype, backend: str) -> None:
    """Of the method's specification: L_PC and H_avg."""
    tolerance = 1e-6 if dtype == torch.float32 else 6e-9
    contrast = log_dot_product_loss(LOGITS.to(dtype), backend=backend)
    both = log_dot_product_loss(LOGITS.to(dtype), entropy_weight=1, backend=backend)
    assert contrast.shape == (1,)
    assert contrast.item() == pytest.approx(1.49302550, abs=tolerance)
    assert (contrast - both).item() == pytest.approx(1.07181630, abs=tolerance)


@pytest.mark.parametrize("backend", SINGLE)
@pytest.mark.parametrize(("batch", "clusters"), [(1, 1), (1, 10), (33, 1), (512, 10)])
def test_uniform_predictions(batch: int, clusters: int, backend: str) -> None:
    loss = log_dot_product_loss(torch.full((3, 2, batch, clusters), 7.0), entropy_weight=2.0, backend=backend)
    expected = math.log(2 * batch - 1) - 2 * math.log(clusters)
    torch.testing.assert_close(loss, torch.full((3,), expected), rtol=1e-6, atol=1e-6)


@each_backend
def test_balanced_and_certain_predictions(backend: str) -> None:
    """4.637 for CRLC's step: 1024 rows in 10 clusters of 102 or 103."""
    logits = 1e4 * one_hot(torch.arange(512) % 10, 10).double().expand(1, 2, -1, -1)
    assert log_dot_product_loss(logits, backend=backend).item() == pytest.approx(4.637, abs=2e-3)


@pytest.mark.parametrize("backend", NATIVE)
@problems
@settings(max_examples=60, deadline=None)
def test_the_linear_form_is_the_n_by_n_form(
    backend: str, heads: int, batch: int, clusters: int, scale: float, seed: int
) -> None:
    results = []
    for name in (backend, "eager"):
        leaf = random_logits(heads, batch, clusters, scale, seed).requires_grad_()
        result = log_dot_product_loss(leaf, backend=name)
        result.sum().backward()
        assert leaf.grad is not None
        results.append((result.detach(), leaf.grad))
    for ours, exact in zip(*results, strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-12, atol=1e-12)


@each_backend
@problems
@settings(max_examples=40, deadline=None)
def test_symmetries(backend: str, heads: int, batch: int, clusters: int, scale: float, seed: int) -> None:
    logits = random_logits(heads, batch, clusters, scale, seed)
    expected = log_dot_product_loss(logits, entropy_weight=2.0, backend=backend)
    generator = torch.Generator().manual_seed(seed)
    samples, columns = torch.randperm(batch, generator=generator), torch.randperm(clusters, generator=generator)
    shifts = torch.randn(heads, 2, batch, 1, generator=generator, dtype=torch.float64)
    for variant in (logits[:, :, samples], logits[..., columns], logits.flip(1), logits + shifts):
        result = log_dot_product_loss(variant, entropy_weight=2.0, backend=backend)
        torch.testing.assert_close(result, expected, rtol=1e-11, atol=1e-11)


@each_backend
def test_sub_heads_are_independent(backend: str) -> None:
    logits = random_logits(4, 45, 6, 2.0, 0)
    together = log_dot_product_loss(logits, entropy_weight=2.0, backend=backend)
    alone = [log_dot_product_loss(logits[h : h + 1], entropy_weight=2.0, backend=backend) for h in range(4)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-12, atol=0)


@each_backend
def test_the_guard(backend: str) -> None:
    logits = random_logits(3, 40, 5, 8.0, 0)
    free = log_dot_product_loss(logits, backend=backend)
    guarded = log_dot_product_loss(logits, logit_limit=5.0, backend=backend)
    excess = (logits.abs() - 5).clamp_min(0)
    torch.testing.assert_close(guarded - free, 0.01 * 0.5 * excess.square().sum(dim=(1, 2, 3)) / 2 / 40)


@each_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_disjoint_predictions_without_smoothing_stay_finite(dtype: torch.dtype, backend: str) -> None:
    """r = 0 everywhere, and d = 0 for the last two rows of each view: both count as the smallest normal number."""
    classes = torch.tensor([[0, 1, 2, 3], [1, 0, 4, 5]])
    logits = (1e4 * one_hot(classes, 6).to(dtype))[None].requires_grad_()
    loss = log_dot_product_loss(logits, smoothing=0.0, entropy_weight=2.0, backend=backend)
    loss.sum().backward()
    mean_entropy = math.log(4)
    assert loss.item() == pytest.approx(math.log(torch.finfo(dtype).tiny) * (0.5 - 1) - 2 * mean_entropy, rel=1e-6)
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("backend", SINGLE)
@pytest.mark.parametrize("scale", [20.0, 60.0, 90.0, 200.0])
@pytest.mark.parametrize("batch", [1, 2, 7, 300])
def test_nearly_disjoint_predictions_in_float32(scale: float, batch: int, backend: str) -> None:
    """Dot products from 1 down to below the smallest normal number; rows that are alone in their cluster."""
    logits = random_logits(2, batch, 10, scale, 0).float()
    results = []
    for name, dtype in ((backend, torch.float32), ("eager", torch.float32), ("eager", torch.float64)):
        leaf = logits.clone().to(dtype).requires_grad_()
        loss = log_dot_product_loss(leaf, smoothing=0.0, backend=name)
        loss.sum().backward()
        assert leaf.grad is not None
        assert loss.isfinite().all()
        assert leaf.grad.isfinite().all()
        results.append((loss.detach().double(), leaf.grad.double()))
    if scale <= 20:  # beyond, float32 and float64 differ in what underflows
        for ours, rival, exact in zip(*results, strict=True):
            assert (ours - exact).norm() <= 3 * (rival - exact).norm() + 1e-6 * max(1.0, float(exact.norm()))


@each_backend
@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf], ids=str)
def test_a_poisoned_sub_head_leaves_the_others_alone(poison: float, backend: str) -> None:
    logits = random_logits(3, 40, 5, 1.0, 0)
    logits[1, 1, 35, 2] = poison
    loss = log_dot_product_loss(logits, backend=backend)
    assert loss.isfinite().tolist() == [True, False, True]


def plain(q: Tensor, critic: str) -> Tensor:
    """The definition of one head's loss, row by row."""
    n, rows = len(q), []
    for i in range(n):
        f = []
        for j in range(n):
            middle = (q[i] + q[j]) / 2
            divergence = ((q[i] * (q[i] / middle).log()).sum() + (q[j] * (q[j] / middle).log()).sum()) / 2
            values = {
                "log-dot": q[i].dot(q[j]).log(),
                "dot": q[i].dot(q[j]),
                "negative-l2": -(q[i] - q[j]).square().sum(),
                "negative-jsd": -divergence,
            }
            f.append(values[critic])
        others = torch.stack([f[j] for j in range(n) if j != i])
        rows.append(others.exp().sum().log() - f[(i + n // 2) % n])
    return torch.stack(rows).mean()


@pytest.mark.parametrize("critic", ["log-dot", "dot", "negative-l2", "negative-jsd"])
def test_critics(critic: str) -> None:
    logits = random_logits(2, 6, 4, 2.0, 0).requires_grad_()
    q = 0.95 * logits.softmax(dim=-1) + 0.05 / 4
    expected = torch.stack([plain(head.flatten(0, 1), critic) for head in q])
    result = log_dot_product_loss(logits, smoothing=0.05, critic=critic)
    torch.testing.assert_close(result, expected)
    gradients = [torch.autograd.grad(loss.sum(), logits)[0] for loss in (result, expected)]
    torch.testing.assert_close(*gradients)
