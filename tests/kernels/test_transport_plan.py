"""Optimal transport: masses, masks, dustbins and prices, each held against the problem that it stands for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from operations import all_backends, device_of
from torch import Tensor

from imc_kernels import sinkhorn, transport_plan

EXACT = all_backends("transport_plan", torch.float64)
SINGLE = all_backends("transport_plan")
each_backend = pytest.mark.parametrize("backend", EXACT)


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def masses(*shape: int, seed: int = 1) -> Tensor:
    given = uniform(*shape, seed=seed) + 0.1
    return given / given.sum(dim=-1, keepdim=True)


SCORES = uniform(2, 7, 5)
MASK = torch.ones(2, 7, 5, dtype=torch.bool)
MASK[0, 5:], MASK[1, :, 3:], MASK[0, 2, 1] = False, False, False
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "marginals": {"row_marginals": masses(7), "column_marginals": masses(2, 5)},
    "zero marginals": {"row_marginals": masses(7) * (torch.arange(7) % 3 > 0)},
    "rows first": {"order": "rows", "column_marginals": masses(5)},
    "mask": {"mask": MASK},
    "dustbin": {"dustbin": 0.4, "mask": MASK},
    "reach": {"reach": 0.3, "row_marginals": masses(7), "mask": MASK},
    "tolerance": {"tolerance": 0.02},
    "no iterations": {"iterations": 0, "mask": MASK},
}
each_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


@each_backend
@each_option
def test_values_and_gradients(options: dict[str, Any], backend: str) -> None:
    options = {"epsilon": 0.2, "iterations": 6, **options, "backend": backend}
    scores = SCORES.clone().requires_grad_()
    plan, rows, columns = transport_plan(scores, potentials=True, **options)
    expected = transport_plan(SCORES, **{**options, "backend": "eager"})
    torch.testing.assert_close(plan, expected)
    log_plan = transport_plan(SCORES, log=True, **options)
    torch.testing.assert_close(log_plan.exp(), plan)
    if "dustbin" not in options:
        product = ((SCORES + rows[..., None] + columns[..., None, :]) / 0.2).exp()
        excluded = ~options.get("mask", torch.ones_like(MASK))
        torch.testing.assert_close(product.masked_fill(excluded, 0), plan)

    def results(x: Tensor) -> list[Tensor]:
        log_plan, *scalings = transport_plan(x, log=True, potentials=True, **options)
        return [log_plan.exp(), *(y.nan_to_num(neginf=0) for y in (log_plan, *scalings))]

    assert torch.autograd.gradcheck(results, scores)


@each_backend
@pytest.mark.parametrize("epsilon", [0.5, 0.05])
def test_masses_are_met(epsilon: float, backend: str) -> None:
    rows, columns = masses(2, 12), masses(16)
    options = {"row_marginals": rows, "column_marginals": columns, "epsilon": epsilon, "backend": backend}
    plan = transport_plan(uniform(2, 12, 16), iterations=300, tolerance=1e-7, **options)
    torch.testing.assert_close(plan.sum(dim=-1), rows)
    torch.testing.assert_close(plan.sum(dim=-2), columns.expand(2, -1), rtol=0, atol=1e-7)


@each_backend
def test_swavs_assignments_are_a_special_case(backend: str) -> None:
    expected = sinkhorn(SCORES, epsilon=0.1, iterations=4, backend="eager")
    torch.testing.assert_close(7 * transport_plan(SCORES, epsilon=0.1, iterations=4, backend=backend), expected)
    turned = transport_plan(SCORES.mT, epsilon=0.1, iterations=4, order="rows", backend=backend)
    torch.testing.assert_close(7 * turned.mT, expected)


@each_backend
@pytest.mark.parametrize("options", [{}, {"order": "rows"}, {"reach": 0.2}, {"dustbin": 0.3}], ids=str)
def test_what_is_masked_or_without_mass_is_as_if_it_were_not_there(options: dict[str, Any], backend: str) -> None:
    options = {"epsilon": 0.1, "iterations": 5, "backend": backend, **options}
    alone = SCORES[0, :5, :4].clone().requires_grad_()
    expected = transport_plan(alone, **options)
    mask = torch.zeros(7, 5, dtype=torch.bool)
    mask[:5, :4] = True
    present = [torch.arange(n) < m for n, m in ((7, 5), (5, 4))]
    forms: list[dict[str, Any]] = [{"mask": mask}]
    if "dustbin" not in options:
        forms.append(
            dict(zip(("row_marginals", "column_marginals"), (p / p.sum().double() for p in present), strict=True))
        )
    for form in forms:
        padded = torch.full((7, 5), torch.nan if "mask" in form else 9.0, dtype=torch.float64)
        padded[:5, :4] = SCORES[0, :5, :4]
        padded.requires_grad_()
        plan = transport_plan(padded, **form, **options)
        kept = [torch.cat([p, p.new_ones(1)]) for p in present] if "dustbin" in options else present
        torch.testing.assert_close(plan[kept[0]][:, kept[1]], expected)
        assert not plan[~kept[0]].any()
        assert not plan[:, ~kept[1]].any()
        (gradient,) = torch.autograd.grad(plan.square().sum(), padded)
        (exact,) = torch.autograd.grad(expected.square().sum(), alone, retain_graph=True)
        torch.testing.assert_close(gradient[:5, :4], exact)
        assert not gradient[5:].any()


@each_backend
def test_nothing_is_transported_where_nothing_may_be(backend: str) -> None:
    mask = torch.zeros(7, 5, dtype=torch.bool)
    assert not transport_plan(SCORES, mask=mask, backend=backend).any()
    mask[:, 0] = True
    plan = transport_plan(SCORES, mask=mask.mT.mT, row_marginals=masses(7), backend=backend)
    torch.testing.assert_close(plan[..., 0], masses(7).expand(2, -1))


@each_backend
def test_a_problem_stops_by_itself_where_hardly_any_mass_would_move(backend: str) -> None:
    easy, hard = 0.01 * SCORES[0], SCORES[1]
    options: dict[str, Any] = {"epsilon": 0.05, "backend": backend}
    plans = transport_plan(torch.stack([easy, hard]), tolerance=1e-3, **options)
    for scores, plan in zip((easy, hard), plans, strict=True):
        torch.testing.assert_close(plan, transport_plan(scores, tolerance=1e-3, **options))
        off = [
            float((transport_plan(scores, iterations=n, **options).sum(dim=-2) - 1 / 5).abs().sum())
            for n in range(1, 100)
        ]
        enough = next(n for n, error in enumerate(off, 1) if error <= 1e-3)
        assert 1 <= enough < 99
        torch.testing.assert_close(plan, transport_plan(scores, iterations=enough, **options))


@pytest.mark.parametrize("backend", SINGLE)
@pytest.mark.parametrize("epsilon", [0.3, 0.02, 0.003, 1e-4])
@pytest.mark.parametrize("options", [{}, {"reach": 0.05}, {"dustbin": 0.5}], ids=str)
def test_any_range_of_scores_in_float32(options: dict[str, Any], epsilon: float, backend: str) -> None:
    """The bound is what the rounding of scores / epsilon does to the plan, as for the eager form."""
    scores = uniform(2, 40, 60).float()
    options = {"epsilon": epsilon, "iterations": 40, **options}
    exact = transport_plan(scores.double(), backend="eager", **options)
    plan = transport_plan(scores, backend=backend, **options).to(torch.float64)
    assert float((plan - exact).abs().sum() / exact.sum()) < 16 * 2**-24 * (1 / epsilon + 8)


@pytest.mark.parametrize("backend", [name for name in EXACT if name != "eager"])
def test_scalings_that_drift_are_followed(backend: str) -> None:
    """Masses of one in a thousand move the scalings for dozens of iterations; sizes past a chunk and a block."""
    for batch, columns, epsilon in ((3, 530, 0.01), (2100, 3, 0.004), (70, 40, 0.02)):
        scores = uniform(batch, columns)
        options: dict[str, Any] = {"epsilon": epsilon, "iterations": 30}
        options["column_marginals"] = torch.logspace(-3, 0, columns, dtype=torch.float64)
        for more in ({}, {"reach": 0.03}):
            expected = transport_plan(scores, backend="eager", **options, **more)
            torch.testing.assert_close(transport_plan(scores, backend=backend, **options, **more), expected)


def test_a_dustbins_score_has_a_gradient() -> None:
    score = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    for backend in EXACT:
        assert torch.autograd.gradcheck(
            lambda s, b=backend: transport_plan(SCORES, dustbin=s, iterations=5, backend=b), score
        )


def test_pot_agrees() -> None:
    ot = pytest.importorskip("ot", reason="POT is not installed: pip install pot")
    scores, rows, columns = SCORES[0], masses(7), masses(5)
    options: dict[str, Any] = {"epsilon": 0.1, "iterations": 400, "row_marginals": rows}
    for backend in EXACT:
        plan = transport_plan(scores, column_marginals=columns, **options, backend=backend)
        expected = ot.sinkhorn(rows, columns, -scores, 0.1, numItermax=400, stopThr=0)
        torch.testing.assert_close(plan, expected)
        plan = transport_plan(scores, column_marginals=2 * columns, reach=0.3, **options, backend=backend)
        expected = ot.unbalanced.sinkhorn_unbalanced(rows, 2 * columns, -scores, 0.1, 0.3, numItermax=400, stopThr=0)
        torch.testing.assert_close(plan, expected)


def test_geomloss_agrees() -> None:
    geomloss = pytest.importorskip("geomloss", reason="geomloss is not installed: pip install geomloss")
    x, y, rows, columns = uniform(7, 2), uniform(5, 2, seed=2), masses(7), masses(5)
    options: dict[str, Any] = {"p": 2, "blur": 0.3, "reach": 0.8, "scaling": 0.999, "debias": False}
    f, g = geomloss.SamplesLoss("sinkhorn", **options, potentials=True, backend="tensorized")(rows, x, columns, y)
    scores, epsilon = -((x[:, None] - y) ** 2).sum(dim=-1) / 2, 0.3**2
    plan = transport_plan(
        scores, epsilon=epsilon, iterations=400, row_marginals=rows, column_marginals=columns, reach=0.8**2
    )
    expected = rows[:, None] * columns * ((f.view(-1, 1) + g.view(-1) + scores) / epsilon).exp()
    torch.testing.assert_close(plan, expected, rtol=1e-3, atol=1e-5)  # its annealing ends at 2e-4


@pytest.mark.parametrize("backend", SINGLE)
def test_compiled_without_a_break(backend: str) -> None:
    """Values and gradient, with the tolerance as a number that changes."""
    torch.compiler.reset()
    compiled = torch.compile(transport_plan, fullgraph=True, backend="aot_eager")
    scores = SCORES.float().to(device_of(backend))
    for tolerance in (0.1, 0.01):
        options: dict[str, Any] = {
            "iterations": 4,
            "tolerance": tolerance,
            "dustbin": 0.3,
            "mask": MASK,
            "backend": backend,
        }
        results = []
        for function in (transport_plan, compiled):
            x = scores.clone().requires_grad_()
            plan = function(x, **options)
            results.append((plan, torch.autograd.grad(plan.square().sum(), x)[0]))
        torch.testing.assert_close(results[1], results[0])
