"""Self-distillation: the authors' loop over heads and views, SCAN's loss, limits, weights and priors."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from operations import all_backends, device_of
from torch import Tensor

from imc_kernels import self_distillation_loss

BACKENDS = all_backends("self_distillation_loss", torch.float64)
SINGLE = all_backends("self_distillation_loss")  # those that serve float32
each_backend = pytest.mark.parametrize("backend", BACKENDS)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def logits(heads: int = 3, batch: int = 37, clusters: int = 6, scale: float = 0.2) -> tuple[Tensor, Tensor]:
    """Of students, which require a gradient, and of teachers."""
    students, teachers = scale * normal(2, heads, 2, batch, clusters)
    return students.clone().requires_grad_(), teachers


def value_and_gradient(loss: Tensor, students: Tensor) -> tuple[Tensor, Tensor]:
    factors = torch.arange(1, 1 + len(loss), dtype=loss.dtype)
    return loss.detach(), torch.autograd.grad(loss, students, factors)[0]


def released(students: Tensor, teachers: Tensor, prior: Tensor, beta: float, weighted: bool = True) -> Tensor:
    """The structure of the authors' code: a loop over heads, in which all pairs of different views take turns."""
    weight: Any = sum((t[0] * t[1]).sum(-1) for t in torch.softmax(teachers / 0.1, dim=-1)) / len(teachers)
    losses = []
    for head in range(len(students)):
        s, t = torch.softmax(students[head] / 0.1, dim=-1), torch.softmax(teachers[head] / 0.1, dim=-1)
        pairs = [
            -(((s[v] * t[w]) ** beta) / prior[head]).sum(dim=-1).log() for w in range(2) for v in range(2) if v != w
        ]
        losses.append(torch.stack([((weight if weighted else 1) * pair).mean() for pair in pairs]).mean())
    return torch.stack(losses)


@each_backend
@pytest.mark.parametrize("beta", [0.5, 0.6, 1.0, 1.7])
@pytest.mark.parametrize("weighted", [True, False])
def test_is_the_authors_loop(beta: float, weighted: bool, backend: str) -> None:
    students, teachers = logits()
    prior = torch.softmax(normal(3, 6, seed=1), dim=-1)
    weights = "agreement" if weighted else None
    ours = self_distillation_loss(students, teachers, beta=beta, prior=prior, weights=weights, backend=backend)
    for result, expected in zip(
        value_and_gradient(ours, students),
        value_and_gradient(released(students, teachers, prior, beta, weighted), students),
        strict=True,
    ):
        torch.testing.assert_close(result, expected, rtol=1e-11, atol=1e-14)


def scan(p: Tensor, q: Tensor, entropy_weight: float) -> Tensor:
    """SCAN's loss of the predictions [H, B, C] of samples and neighbours; the entropy as the mean over both."""
    consistency = -(p * q).sum(dim=-1).log().mean(dim=-1)
    entropies = [-(x.mean(dim=1) * x.mean(dim=1).log()).sum(dim=-1) for x in (p, q)]
    return consistency - entropy_weight * torch.stack(entropies).mean(dim=0)


@each_backend
def test_scan_without_teachers(backend: str) -> None:
    """The value; and the gradient, which reaches both factors there, as twice that of half the entropy weight."""
    x, _ = logits(scale=2.0)
    options: dict[str, Any] = {"beta": 1, "prior": torch.ones(3, 6, dtype=torch.float64), "weights": None}
    options |= {"student_temperature": 1, "teacher_temperature": 1, "backend": backend}
    value, gradient = value_and_gradient(scan(*torch.softmax(x, dim=-1).unbind(1), 5), x)
    torch.testing.assert_close(self_distillation_loss(x, x.detach(), entropy_weight=5, **options), value)
    ours = 2 * self_distillation_loss(x, x.detach(), entropy_weight=2.5, **options)
    torch.testing.assert_close(value_and_gradient(ours, x)[1], gradient, rtol=1e-10, atol=1e-14)


@each_backend
def test_scan_with_teachers(backend: str) -> None:
    """The form that TEMI's authors compare with: each view's students against the other's teachers."""
    students, teachers = logits()
    s, t = torch.softmax(students / 0.1, dim=-1), torch.softmax(teachers / 0.1, dim=-1)
    consistency = torch.stack([-(s[:, v] * t[:, 1 - v]).sum(dim=-1).log().mean(dim=-1) for v in range(2)]).mean(dim=0)
    mean = s.mean(dim=2)
    expected = consistency + 5 * (mean * mean.log()).sum(dim=-1).mean(dim=1)
    options: dict[str, Any] = {"prior": torch.ones(3, 6, dtype=torch.float64), "weights": None, "backend": backend}
    ours = self_distillation_loss(students, teachers, beta=1, entropy_weight=5, **options)
    for result, exact in zip(value_and_gradient(ours, students), value_and_gradient(expected, students), strict=True):
        torch.testing.assert_close(result, exact, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("backend", SINGLE)
@pytest.mark.parametrize(("batch", "clusters"), [(1, 1), (1, 10), (33, 1), (300, 10)])
def test_uniform_predictions(batch: int, clusters: int, backend: str) -> None:
    """pmi = log sum_c (1 / C^2)^beta / (1 / C) = (2 - 2 beta) log C, at a weight of 1 / C."""
    same = torch.full((2, 2, batch, clusters), 7.0, device=device_of(backend))
    for beta in (0.6, 1.0):
        for weights, weight in ((None, 1), ("agreement", 1 / clusters)):
            loss = self_distillation_loss(same, same, beta=beta, weights=weights, entropy_weight=2.0, backend=backend)
            expected = -weight * (2 - 2 * beta) * math.log(clusters) - 2 * math.log(clusters)
            torch.testing.assert_close(loss.cpu(), torch.full((2,), expected), rtol=1e-6, atol=2e-6)


@each_backend
def test_the_prior_of_the_batch_and_the_documented_recipe(backend: str) -> None:
    students, teachers = logits()
    mean = torch.softmax(teachers / 0.1, dim=-1).mean(dim=(1, 2))
    ours = self_distillation_loss(students, teachers, backend=backend)
    torch.testing.assert_close(ours, self_distillation_loss(students, teachers, prior=mean, backend=backend))
    prior = torch.full((3, 6), 1 / 6, dtype=torch.float64)
    prior.lerp_(mean, 0.1)
    torch.testing.assert_close(prior, 0.9 / 6 + 0.1 * mean)


@each_backend
def test_weights_are_factors_of_the_pairs(backend: str) -> None:
    students, teachers = logits()
    weights = torch.rand(37, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    prior = torch.softmax(normal(3, 6, seed=1), dim=-1)
    alone = torch.stack(
        [
            self_distillation_loss(
                students[:, :, i : i + 1], teachers[:, :, i : i + 1], prior=prior, weights=None, backend=backend
            )
            for i in range(37)
        ]
    )
    ours = self_distillation_loss(students, teachers, prior=prior, weights=weights, backend=backend)
    torch.testing.assert_close(ours, (weights[:, None] * alone).mean(dim=0))
    t = torch.softmax(teachers / 0.1, dim=-1)
    agreement = (t[:, 0] * t[:, 1]).sum(dim=-1).mean(dim=0)
    torch.testing.assert_close(
        self_distillation_loss(students, teachers, prior=prior, backend=backend),
        self_distillation_loss(students, teachers, prior=prior, weights=agreement, backend=backend),
    )


@each_backend
def test_symmetries(backend: str) -> None:
    students, teachers = logits()
    prior = torch.softmax(normal(3, 6, seed=1), dim=-1)
    samples, columns = torch.randperm(37), torch.randperm(6)
    for given in (prior, None):
        options: dict[str, Any] = {"entropy_weight": 2.0, "backend": backend}
        expected = self_distillation_loss(students, teachers, prior=given, **options)
        renamed = None if given is None else given[:, columns]
        variants = (
            (students[:, :, samples], teachers[:, :, samples], given),
            (students[..., columns], teachers[..., columns], renamed),
            (students.flip(1), teachers.flip(1), given),
            (students + normal(3, 2, 37, 1), teachers + normal(3, 2, 37, 1), given),
        )
        for s, t, q in variants:
            result = self_distillation_loss(s, t, prior=q, **options)
            torch.testing.assert_close(result, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("backend", SINGLE)
@pytest.mark.parametrize("scale", [1.0, 10.0, 1e3, 1e6])
def test_saturated_predictions(scale: float, backend: str) -> None:
    """Predictions that share no cluster: the authors' powers are 0 and their loss infinite from a scale of 10 on."""
    students, teachers = (x.detach() for x in logits(scale=scale))
    results = []
    for name, dtype in ((backend, torch.float32), ("eager", torch.float32), ("eager", torch.float64)):
        where = device_of(name)
        s = students.float().to(where, dtype).requires_grad_()
        t = teachers.float().to(where, dtype)
        loss = self_distillation_loss(s, t, weights=None, entropy_weight=1.0, backend=name)
        (gradient,) = torch.autograd.grad(loss.sum(), s)
        results.append([x.detach().double().cpu() for x in (loss, gradient)])
    for ours, rival, exact in zip(*results, strict=True):
        assert ours.isfinite().all()
        assert (ours - exact).norm() <= 3 * (rival - exact).norm() + 2e-6 * exact.norm()
    if scale == 1e6:  # a student is moved, however sure it is, where another cluster suits both better
        moved = results[0][1].abs().amax(dim=-1) > 0
        assert torch.equal(moved, (students + teachers.flip(1)).argmax(dim=-1) != students.argmax(dim=-1))
        assert moved.double().mean() > 0.25


@pytest.mark.parametrize("backend", SINGLE)
def test_a_cluster_without_prior_counts_as_the_smallest_number(backend: str) -> None:
    students, teachers = (x.detach().float().to(device_of(backend)) for x in logits())
    prior = torch.full((3, 6), 0.2, device=students.device)
    tiny = torch.finfo(torch.float32).tiny
    prior[:, 0] = tiny
    expected = self_distillation_loss(students, teachers, prior=prior, backend=backend)
    for small in (0.0, 1e-42, tiny / 2):
        prior[:, 0] = small
        assert torch.equal(self_distillation_loss(students, teachers, prior=prior, backend=backend), expected)
    for wrong in (-0.1, torch.inf, torch.nan):
        prior[1, 0] = wrong
        loss = self_distillation_loss(students, teachers, prior=prior, backend=backend)
        assert loss.isnan().tolist() == [False, True, False]


@each_backend
@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf], ids=str)
def test_a_poisoned_head_leaves_the_others_alone(poison: float, backend: str) -> None:
    """But for the weights, to which the teachers of all heads contribute."""
    students, teachers = logits()
    for poisoned in (students.detach(), teachers):
        kept, poisoned[1, 1, 35, 2] = poisoned[1, 1, 35, 2].item(), poison
        loss = self_distillation_loss(students, teachers, weights=None, backend=backend)
        assert loss.isfinite().tolist() == [True, False, True]
        gradient = value_and_gradient(loss, students)[1]
        assert not gradient[1, :, 35].isfinite().all()
        assert gradient[[0, 2]].isfinite().all()
        weighted = self_distillation_loss(students, teachers, backend=backend)
        assert weighted.isfinite().any() == (poisoned is not teachers)
        poisoned[1, 1, 35, 2] = kept
