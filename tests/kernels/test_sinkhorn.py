"""Sinkhorn-Knopp: golden values, marginals, and the range of scores at which it changes its arithmetic."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from imc_kernels import backends, sinkhorn

BACKENDS = backends.available()
SCORES = torch.tensor([[0.9, 0.1, -0.3, 0.0], [0.8, 0.2, 0.1, -0.5], [-0.2, 0.7, 0.3, 0.1]], dtype=torch.float64)

# Computed by the specification of the method in float64, three iterations.
GOLDEN = {
    0.5: [
        [0.38102718, 0.15945727, 0.12936021, 0.33015534],
        [0.34053871, 0.2126046, 0.31427203, 0.13258466],
        [0.0300624, 0.3769756, 0.30582263, 0.28713937],
    ],
    0.05: [
        [0.47773201, 0.00005223, 0.00002375, 0.52219201],
        [0.47591851, 0.00284075, 0.52106624, 0.00017451],
        [0.0, 0.52394799, 0.2382218, 0.23783022],
    ],
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("epsilon", GOLDEN)
def test_golden_values(epsilon: float, dtype: torch.dtype, backend: str) -> None:
    result = sinkhorn(SCORES.to(dtype), epsilon=epsilon, backend=backend)
    tolerance = 1e-8 if dtype == torch.float64 else 2e-6
    torch.testing.assert_close(
        result.double(), torch.tensor(GOLDEN[epsilon]).double(), rtol=0, atol=max(tolerance, 5e-8)
    )


@pytest.mark.parametrize("backend", BACKENDS)
@given(
    batch=st.integers(1, 40),
    prototypes=st.integers(1, 40),
    scale=st.sampled_from([0.1, 1.0, 10.0, 500.0]),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=40, deadline=None)
def test_rows_sum_to_one_and_shifts_and_permutations_pass_through(
    backend: str, batch: int, prototypes: int, scale: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = (torch.rand(batch, prototypes, generator=generator, dtype=torch.float64) * 2 - 1) * scale
    result = sinkhorn(scores, backend=backend)
    torch.testing.assert_close(result.sum(dim=-1), torch.ones(batch, dtype=torch.float64))
    torch.testing.assert_close(sinkhorn(scores + 3, backend=backend), result, rtol=1e-6, atol=1e-9)
    rows, columns = torch.randperm(batch, generator=generator), torch.randperm(prototypes, generator=generator)
    torch.testing.assert_close(sinkhorn(scores[rows][:, columns], backend=backend), result[rows][:, columns])


@pytest.mark.parametrize("backend", BACKENDS)
def test_many_iterations_give_every_prototype_the_same_mass(backend: str) -> None:
    scores = torch.rand(64, 48, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mass = sinkhorn(scores, epsilon=0.5, iterations=200, backend=backend).sum(dim=-2)
    torch.testing.assert_close(mass, torch.full((48,), 64 / 48, dtype=torch.float64))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("spread", [0.5, 0.999, 1.001, 2.0, 20.0, 250.0])
def test_scores_of_any_range_in_float32(spread: float, backend: str) -> None:
    """Around the change of arithmetic (a range of 40 epsilon, spread 1) and far beyond what exponentials can hold.

    The error of eager float32 at a range of 1e4 epsilon is the rounding of scores / epsilon, 1e4 * 2^-24: that is the
    bound for both.
    """
    scores = (torch.rand(2, 50, 70, generator=torch.Generator().manual_seed(0)) * 2 - 1) * spread
    exact = sinkhorn(scores.double(), backend="eager")
    result = sinkhorn(scores, backend=backend)
    assert result.isfinite().all()
    error = float((result.double() - exact).abs().max())
    assert error < 4 * (40 * spread) * 2**-24 + 1e-6


@pytest.mark.parametrize("backend", BACKENDS)
def test_constant_scores_are_spread_evenly(backend: str) -> None:
    result = sinkhorn(torch.full((3, 5, 4), 1e4), backend=backend)
    torch.testing.assert_close(result, torch.full((3, 5, 4), 0.25))


@pytest.mark.parametrize("backend", BACKENDS)
def test_leading_dimensions_are_independent_problems(backend: str) -> None:
    scores = torch.rand(2, 3, 20, 30, generator=torch.Generator().manual_seed(0))
    together = sinkhorn(scores, backend=backend)
    assert together.shape == scores.shape
    for i in range(2):
        for j in range(3):
            torch.testing.assert_close(together[i, j], sinkhorn(scores[i, j], backend=backend), rtol=1e-6, atol=1e-9)
