"""Inputs of two dtypes: computed in that to which torch's arithmetic promotes them, gradients in their tensor's."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from operations import all_backends, device_of
from torch import Tensor

import imc_kernels
from imc_kernels import (
    backends,
    linear_swapped_prediction_loss,
    self_distillation_loss,
    sinkhorn,
    transport_plan,
)

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class Form(NamedTuple):
    """A call with two tensors, float64 inputs for it, which a gradient can reach, and the dtype of its result."""

    call: Callable[..., Tensor]
    shapes: tuple[tuple[int, ...], tuple[int, ...]]
    differentiable: tuple[bool, bool] = (True, True)
    result: Callable[[torch.dtype, torch.dtype], torch.dtype] = torch.promote_types


def of_loss(first: torch.dtype, second: torch.dtype) -> torch.dtype:
    return torch.float64 if torch.float64 in (first, second) else torch.float32


def batch_norm(x: Tensor, weight: Tensor, **where: Any) -> Tensor:
    return imc_kernels.per_view_batch_norm(x, weight, weight.detach().flip(0), views=2, **where)


FORMS = {
    "prototype_scores": Form(imc_kernels.prototype_scores, ((2, 5, 6), (7, 6))),
    "swapped_prediction_loss": Form(
        imc_kernels.swapped_prediction_loss, ((3, 5, 7), (2, 5, 7)), (True, False), of_loss
    ),
    "swapped_prediction_loss weights": Form(
        lambda s, w, **where: imc_kernels.swapped_prediction_loss(s, s.detach()[:2], weights=w, **where),
        ((3, 5, 7), (3, 5)),
        (True, False),
        of_loss,
    ),
    "linear_swapped_prediction_loss": Form(
        imc_kernels.linear_swapped_prediction_loss, ((2, 5, 6), (7, 6)), result=of_loss
    ),
    "linear_swapped_prediction_loss center": Form(
        lambda z, c, **where: linear_swapped_prediction_loss(z, z.detach()[0], center=c, **where),
        ((2, 5, 6), (5,)),
        (True, False),
        of_loss,
    ),
    "linear_swapped_prediction_loss teacher": Form(
        lambda z, t, **where: linear_swapped_prediction_loss(z, z.detach()[0], teacher=(t, t[0]), **where),
        ((2, 5, 6), (2, 5, 6)),
        (True, False),
        of_loss,
    ),
    "self_distillation_loss": Form(
        imc_kernels.self_distillation_loss, ((3, 2, 5, 7), (3, 2, 5, 7)), (True, False), of_loss
    ),
    "self_distillation_loss prior": Form(
        lambda s, p, **where: self_distillation_loss(s, s.detach().flip(2), prior=p, **where),
        ((3, 2, 5, 7), (3, 7)),
        (True, False),
        of_loss,
    ),
    "self_distillation_loss weights": Form(
        lambda s, w, **where: self_distillation_loss(s, s.detach().flip(2), weights=w, **where),
        ((3, 2, 5, 7), (5,)),
        (True, False),
        of_loss,
    ),
    "mutual_information_loss": Form(imc_kernels.mutual_information_loss, ((2, 5, 4), (2, 5, 7)), result=of_loss),
    "sinkhorn queue": Form(lambda s, q, **where: sinkhorn(s, epsilon=0.5, queue=q, **where), ((2, 5, 7), (2, 9, 7))),
    "sinkhorn marginals": Form(
        lambda s, m, **where: sinkhorn(s, epsilon=0.5, marginals=m, **where), ((2, 5, 7), (7,)), (True, False)
    ),
    "transport_plan dustbin": Form(
        lambda s, d, **where: transport_plan(s, dustbin=d, epsilon=0.5, iterations=4, **where), ((2, 5, 7), ())
    ),
    "transport_plan marginals": Form(
        lambda s, m, **where: transport_plan(s, epsilon=0.5, iterations=4, column_marginals=m, log=True, **where),
        ((2, 5, 7), (7,)),
        (True, False),
    ),
    "per_view_batch_norm residual": Form(
        lambda x, r, **where: imc_kernels.per_view_batch_norm(x, residual=r, views=2, relu=True, **where),
        ((6, 4, 3, 3), (6, 4, 3, 3)),
        result=lambda first, second: first,
    ),
    # As of torch's function, the result has the dtype of the input.
    "per_view_batch_norm": Form(batch_norm, ((6, 4, 3, 3), (4,)), result=lambda first, second: first),
}


def served(backend: str, *dtypes: torch.dtype) -> bool:
    return torch.float64 not in dtypes or torch.float64 in backends.BACKENDS[backend].dtypes


def pairs(backend: str) -> list[tuple[torch.dtype, torch.dtype]]:
    """Ordered pairs of dtypes; of an emulated backend, which is slow, three."""
    found = [pair for pair in itertools.permutations(DTYPES, 2) if served(backend, *pair)]
    return found[::2] if backends.BACKENDS[backend].emulated() else found


CASES = [(form, backend) for form in FORMS for backend in all_backends(form.split()[0])]
each_case = pytest.mark.parametrize(("form", "backend"), CASES)


def inputs_of(form: Form, dtypes: tuple[torch.dtype, torch.dtype]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    made = (torch.rand(shape, generator=generator, dtype=torch.float64) + 0.1 for shape in form.shapes)
    return [x.to(dtype) for x, dtype in zip(made, dtypes, strict=True)]


def run(
    form: Form,
    inputs: list[Tensor],
    backend: str,
    call: Callable[..., Tensor] | None = None,
    autocast: bool = False,
) -> list[Tensor]:
    """The result, inside of autocast where asked for, and the gradients."""
    there = device_of(backend)
    leaves = [x.to(there).requires_grad_(need) for x, need in zip(inputs, form.differentiable, strict=True)]
    with torch.autocast(there, dtype=torch.bfloat16, enabled=autocast):
        result = (call or form.call)(*leaves, backend=backend)
    exact_in_all = torch.arange(result.numel(), device=there) % 7 - 2.75
    weights = exact_in_all.reshape(result.shape).to(result.dtype)
    gradients = torch.autograd.grad(result, [x for x in leaves if x.requires_grad], weights)
    return [x.detach().to("cpu") for x in (result, *gradients)]


@each_case
def test_inputs_of_two_dtypes_are_promoted(form: str, backend: str) -> None:
    """Outside and inside of autocast the bits are those of the promoted inputs, as exact as eager's."""
    f = FORMS[form]
    for dtypes in pairs(backend):
        inputs = inputs_of(f, dtypes)
        promoted = [x.to(torch.promote_types(*dtypes)) for x in inputs]
        expected, rival, exact = (
            run(f, x, name)
            for x, name in ((promoted, backend), (promoted, "eager"), ([x.double() for x in inputs], "eager"))
        )
        needs = (True, *f.differentiable)
        results = [f.result(*dtypes), *dtypes]
        for autocast in (False, True):
            result = run(f, inputs, backend, autocast=autocast)
            assert [x.dtype for x in result] == [x for x, need in zip(results, needs, strict=True) if need], dtypes
            for ours, same in zip(result, expected, strict=True):
                assert torch.equal(ours, same.to(ours.dtype)), dtypes
        for ours, eager, truth in zip(result, rival, exact, strict=True):
            error, rivals = (float((x.double() - truth).norm()) for x in (ours, eager))
            roundings = max(16 * torch.finfo(ours.dtype).eps, 1e-12)
            assert error <= 3 * rivals + roundings * float(truth.norm()), dtypes


@pytest.mark.parametrize(("form", "backend"), [case for case in CASES if not served(case[1], torch.float64)])
def test_a_gpu_backend_names_the_dtype_to_which_it_would_have_to_promote(form: str, backend: str) -> None:
    for dtypes in ((torch.float32, torch.float64), (torch.float64, torch.bfloat16)):
        with pytest.raises(ValueError, match=f"'{backend}' cannot run .* the input is float64 or promoted to it"):
            run(FORMS[form], inputs_of(FORMS[form], dtypes), backend)


@each_case
def test_inputs_of_two_dtypes_compile_to_one_graph(form: str, backend: str) -> None:
    f = FORMS[form]
    for dtypes in ((torch.bfloat16, torch.float32), (torch.float32, torch.float16)):
        torch.compiler.reset()
        compiler = "eager" if backend == "eager" else "aot_eager"
        compiled = torch.compile(f.call, fullgraph=True, backend=compiler)
        inputs = inputs_of(f, dtypes)
        for ours, expected in zip(run(f, inputs, backend, compiled), run(f, inputs, backend), strict=True):
            assert ours.dtype == expected.dtype
            torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("backend", all_backends("sinkhorn"))
@pytest.mark.parametrize("queue", [False, True])
def test_sinkhorn_gives_assignments_of_the_dtype_asked_for(queue: bool, backend: str) -> None:
    there = device_of(backend)
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(2, 5, 7, generator=generator, dtype=torch.float64)
    further = torch.rand(2, 4, 7, generator=generator, dtype=torch.float64) if queue else None
    for dtype, asked in [(torch.float32, torch.float32), *pairs(backend)]:
        x = scores.to(dtype).to(there).requires_grad_()
        own = None if further is None else further.to(dtype).to(there)
        options: dict[str, Any] = {"queue": own, "backend": backend}
        result = sinkhorn(x, dtype=asked, **options)
        assert result.dtype == asked
        computed = torch.promote_types(dtype, asked)
        options["queue"] = None if further is None else options["queue"].to(computed)
        expected = sinkhorn(x.detach().to(computed), **options).to(asked)
        assert torch.equal(result, expected), (dtype, asked)
        (gradient,) = torch.autograd.grad(result.square().sum(), x)
        assert gradient.dtype == dtype
        y = x.detach().double().cpu().requires_grad_()
        q = None if further is None else further.to(dtype).double()
        (exact,) = torch.autograd.grad(sinkhorn(y, queue=q, backend="eager").square().sum(), y)
        tolerance = 8 * max(torch.finfo(dtype).eps, torch.finfo(asked).eps, 1e-6)
        torch.testing.assert_close(gradient.double().cpu(), exact, rtol=0, atol=tolerance * float(exact.abs().max()))


@pytest.mark.parametrize("backend", all_backends("sinkhorn"))
def test_float32_assignments_of_half_scores_lose_nothing_to_the_range_of_float16(backend: str) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = (torch.rand(8, 1024, generator=generator) * 2 - 1).half().to(device_of(backend))
    half, single = sinkhorn(scores, backend=backend), sinkhorn(scores, dtype=torch.float32, backend=backend)
    assert (half == 0).double().mean() > 0.4
    assert (single > 0).all()
    torch.testing.assert_close(single, sinkhorn(scores.float(), backend=backend), rtol=0, atol=0)


def test_a_result_s_dtype_is_a_floating_one() -> None:
    for wrong in (torch.int64, "float32", float):
        with pytest.raises(TypeError, match=r"sinkhorn: dtype must be torch.float32, .* got"):
            sinkhorn(torch.rand(2, 3), dtype=wrong)  # type: ignore[arg-type]
