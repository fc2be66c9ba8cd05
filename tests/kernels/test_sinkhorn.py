"""Sinkhorn-Knopp: golden values, marginals, and the range of scores at which it changes its arithmetic."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from operations import all_backends, native_backends
from torch import Tensor

from imc_kernels import backends, sinkhorn

BACKENDS = all_backends("sinkhorn", torch.float64)
SINGLE = all_backends("sinkhorn")  # those that serve float32
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


@pytest.mark.parametrize("backend", [name for name in SINGLE if name in ("cuda", "cpu")])
def test_cosines_at_the_papers_epsilon_take_the_faster_arithmetic(backend: str) -> None:
    """The factors of a single sample's columns are m / E, and E (m / E) rounds; sums of its logarithms are log m."""

    def rounds(largest: float) -> bool:
        scores = torch.linspace(-largest, largest, 64)[None]
        return bool((sinkhorn(scores, epsilon=0.05, backend=backend) != 1 / 64).any())

    above_one = 1 + torch.finfo(torch.bfloat16).eps  # a cosine that bfloat16 has rounded
    assert [rounds(largest) for largest in (0.5, 1.0, math.nextafter(1, 2), above_one, 1.02)] == [True] * 5
    assert not rounds(1.03)


@pytest.mark.parametrize("backend", SINGLE)
@pytest.mark.parametrize("spread", [0.5, 1.0, 1.022, 1.023, 2.0, 20.0, 250.0])
def test_scores_of_any_range_in_float32(spread: float, backend: str) -> None:
    """Around the change of arithmetic (59 ln 2 epsilon, spread 1.0224) and far beyond what exponentials can hold.

    The error of eager float32 at a range of 1e4 epsilon is the rounding of scores / epsilon, 1e4 * 2^-24: that is the
    bound for both.
    """
    uniform = (torch.rand(50, 70, generator=torch.Generator().manual_seed(0)) * 2 - 1) * spread
    uniform[0, 0], uniform[1, 1] = spread, -spread
    ends = spread * uniform.sign()
    lone = torch.full_like(uniform, -spread).fill_diagonal_(spread)
    for scores in (uniform, ends, lone, -lone, lone[:1], lone[:, :1]):
        exact = sinkhorn(scores.double(), iterations=6, backend="eager")
        result = sinkhorn(scores, iterations=6, backend=backend)
        assert result.isfinite().all()
        error = float((result.double() - exact).abs().max())
        assert error < 4 * (40 * spread) * 2**-24 + 1e-6


@pytest.mark.parametrize("backend", SINGLE)
def test_constant_scores_are_spread_evenly(backend: str) -> None:
    result = sinkhorn(torch.full((3, 5, 4), 1e4), backend=backend)
    torch.testing.assert_close(result, torch.full((3, 5, 4), 0.25))


@pytest.mark.parametrize("backend", SINGLE)
def test_leading_dimensions_are_independent_problems(backend: str) -> None:
    scores = torch.rand(2, 3, 20, 30, generator=torch.Generator().manual_seed(0))
    together = sinkhorn(scores, backend=backend)
    assert together.shape == scores.shape
    for i in range(2):
        for j in range(3):
            torch.testing.assert_close(together[i, j], sinkhorn(scores[i, j], backend=backend), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("spread", [1.0, 100.0])
def test_marginals_set_the_mass_of_each_prototype(spread: float, backend: str) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = (torch.rand(40, 6, generator=generator, dtype=torch.float64) * 2 - 1) * spread
    shares = torch.tensor([8.0, 4.0, 2.0, 1.0, 0.5, 0.5], dtype=torch.float64)
    epsilon = spread / 2
    mass = sinkhorn(scores, epsilon=epsilon, iterations=200, marginals=shares, backend=backend).sum(dim=0)
    torch.testing.assert_close(mass, 40 * shares / 16)
    even = sinkhorn(scores, epsilon=epsilon, marginals=torch.ones(6, dtype=torch.float64), backend=backend)
    torch.testing.assert_close(even, sinkhorn(scores, epsilon=epsilon, backend=backend))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scale", [1.0, 40.0])
def test_gradient_with_marginals(scale: float, backend: str) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = (scale * torch.rand(2, 5, 4, generator=generator, dtype=torch.float64)).requires_grad_()
    shares = torch.tensor([3.0, 2.0, 1.0, 1.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda s: sinkhorn(s, epsilon=0.5, marginals=shares, backend=backend), scores)


@pytest.mark.skipif("cpu" not in BACKENDS, reason="the CPU kernels are not built")
@pytest.mark.parametrize("batch", [1, 7, 70])
def test_the_gradient_of_a_single_prototype_is_exactly_zero(batch: int) -> None:
    scores = torch.rand(2, batch, 1, generator=torch.Generator().manual_seed(batch)).requires_grad_()
    weights = torch.linspace(-1, 2, 2 * batch).view(2, batch, 1)
    (gradient,) = torch.autograd.grad(sinkhorn(scores, backend="cpu"), scores, weights)
    assert not gradient.any()


EPSILONS = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)  # of scores with a deviation of 0.1
UPSTREAM: dict[str, Callable[[Tensor], Tensor]] = {
    "random": lambda like: torch.randn(like.shape, generator=torch.Generator().manual_seed(1)),
    "one-hot": lambda like: (torch.arange(like.numel()) == like.numel() // 3).float().reshape(like.shape),
    "constant": torch.ones_like,
}


@pytest.mark.parametrize("backend", native_backends("sinkhorn"))
@pytest.mark.parametrize("form", ["plain", "marginals", "queue"])
@pytest.mark.parametrize("upstream", UPSTREAM)
def test_the_gradient_of_saturated_rows_is_as_exact_as_eager(upstream: str, form: str, backend: str) -> None:
    """There it is what remains of terms up to 1e12 times its size, which cancel in eager to the last digit."""
    emulated = backends.BACKENDS[backend].emulated()
    shapes = ((2, 3), (8, 5)) if emulated else ((2, 3), (8, 5), (64, 100), (3, 1))
    for shape, epsilon in itertools.product(shapes, (0.03, 0.01, 0.001) if emulated else EPSILONS):
        for iterations in (3,) if emulated else (1, 2, 3, 10):
            generator = torch.Generator().manual_seed(iterations)
            scores, queue = (torch.randn(shape, generator=generator) * 0.1 for _ in range(2))
            options = {
                "plain": {},
                "marginals": {"marginals": torch.linspace(1, 3, shape[1])},
                "queue": {"queue": queue},
            }[form]
            gradients = []
            for dtype, name in ((torch.float64, "eager"), (torch.float32, "eager"), (torch.float32, backend)):
                x = scores.to(dtype).requires_grad_()
                others = {key: value.to(dtype) for key, value in options.items()}
                result = sinkhorn(x, epsilon=epsilon, iterations=iterations, **others, backend=name)  # type: ignore[arg-type]
                gradients.append(torch.autograd.grad(result, x, UPSTREAM[upstream](x).to(dtype))[0].double())
            exact, rival, ours = gradients
            error, rivals, norm = (float(x.norm()) for x in (ours - exact, rival - exact, exact))
            rounding = 16 * torch.finfo(torch.float32).eps * norm if norm > 1e-12 else 1e-5
            assert error <= 3 * rivals + rounding, (shape, epsilon, iterations, error, rivals, norm)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_queue_takes_part_and_is_not_returned(backend: str) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(2, 7, 9, generator=generator, dtype=torch.float64).requires_grad_()
    queue = torch.rand(2, 20, 9, generator=generator, dtype=torch.float64)
    result = sinkhorn(scores, queue=queue, backend=backend)
    whole = sinkhorn(torch.cat([scores, queue], dim=1), backend="eager")
    torch.testing.assert_close(result, whole[:, :7])
    assert not torch.allclose(result, sinkhorn(scores, backend=backend))
    (gradient,) = torch.autograd.grad(result.square().sum(), scores)
    (expected,) = torch.autograd.grad(whole[:, :7].square().sum(), scores)
    torch.testing.assert_close(gradient, expected)
