"""Cosines of embeddings and prototypes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from operations import all_backends, device_of

from imc_kernels import prototype_scores

BACKENDS = all_backends("prototype_scores", torch.float64)


@pytest.mark.parametrize("backend", BACKENDS)
def test_is_the_cosine(backend: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 11, 17, generator=generator, dtype=torch.float64)
    w = torch.randn(23, 17, generator=generator, dtype=torch.float64)
    expected = torch.cosine_similarity(x[:, :, None], w, dim=-1)
    torch.testing.assert_close(prototype_scores(x, w, backend=backend), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
@given(rows=st.integers(1, 300), prototypes=st.integers(1, 70), dim=st.integers(1, 300), seed=st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_any_shape_matches_a_plain_product(
    backend: str, dtype: torch.dtype, rows: int, prototypes: int, dim: int, seed: int
) -> None:
    """The product is our own: every way a block, a panel or a slice of the depth can be cut must be right."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, dim, generator=generator, dtype=dtype)
    w = torch.randn(prototypes, dim, generator=generator, dtype=dtype)
    expected = (x / x.norm(dim=-1, keepdim=True)) @ w.T
    torch.testing.assert_close(prototype_scores(x, w, normalize_prototypes=False, backend=backend), expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_scale_does_not_matter_and_zero_gives_zero(backend: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x, w = torch.randn(5, 8, generator=generator), torch.randn(4, 8, generator=generator)
    scores = prototype_scores(x, w, backend=backend)
    torch.testing.assert_close(prototype_scores(x * 1e3, w * 1e-3, backend=backend), scores)
    x[2] = 0
    x.requires_grad_()
    result = prototype_scores(x, w, backend=backend)
    assert torch.equal(result[2], torch.zeros(4))
    result.sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_normalising_the_gradient_of_prototypes_is_not_projected(backend: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, 8, generator=generator, dtype=torch.float64)
    w = torch.nn.functional.normalize(torch.randn(4, 8, generator=generator, dtype=torch.float64), dim=-1)
    radial = {}
    for normalize in (True, False):
        leaf = w.clone().requires_grad_()
        prototype_scores(x, leaf, normalize_prototypes=normalize, backend=backend).square().sum().backward()
        assert leaf.grad is not None
        radial[normalize] = (leaf.grad * w).sum(dim=-1)
    assert radial[True].abs().max() < 1e-12
    assert radial[False].abs().min() > 1e-3


@pytest.mark.parametrize("backend", [name for name in all_backends("prototype_scores") if name not in BACKENDS])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(("rows", "prototypes", "dim"), [(65, 33, 19), (3, 70, 130), (1, 1, 300)])
def test_on_gpu_backends_is_the_specification(
    rows: int, prototypes: int, dim: int, normalize: bool, backend: str
) -> None:
    """Ragged tiles, and rows that a program of the backward does not hold."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, dim, generator=generator)
    w = torch.randn(prototypes, dim, generator=generator)
    g = torch.randn(rows, prototypes, generator=generator)
    found = {}
    for name, dtype in (("eager", torch.float64), (backend, torch.float32)):
        leaves = [t.to(device_of(name), dtype).requires_grad_() for t in (x, w)]
        result = prototype_scores(*leaves, normalize_prototypes=normalize, backend=name)
        result.backward(g.to(result))
        found[name] = [result.detach(), *(leaf.grad for leaf in leaves)]
    for ours, exact in zip(found[backend], found["eager"], strict=True):
        assert ours is not None
        assert exact is not None
        assert (ours.cpu().double() - exact).norm() <= 2e-6 * exact.norm() + 1e-6


@pytest.mark.parametrize("backend", all_backends("prototype_scores"))
def test_a_product_keeps_every_digit_of_each_number(backend: str) -> None:
    """Against prototypes along the axes each score is one number: split for AMX, no part of it may be left out."""
    generator = torch.Generator().manual_seed(0)
    sizes = 2.0 ** -torch.randint(0, 60, (37, 65), generator=generator)
    embeddings = (torch.rand(37, 65, generator=generator) - 0.5) * sizes
    scores = prototype_scores(embeddings, torch.eye(65), normalize_prototypes=False, backend=backend)
    exact = torch.nn.functional.normalize(embeddings.double(), dim=-1)
    assert float(((scores - exact) / exact).abs().max()) < 4 * torch.finfo(torch.float32).eps
