"""Random sizes, memory layouts, dtypes and options: every call gives the specification's answer or one clear sentence.

`make fuzz` draws new examples for ten minutes under AddressSanitizer and UndefinedBehaviorSanitizer; here a fixed few
run.
"""

from __future__ import annotations

import contextlib
import os
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from operations import OPERATIONS, Operation, Sizes
from torch import Tensor

from imc_kernels import backends, draw_crop_parameters, multi_crop

NATIVE = [name for name in backends.available() if name != "eager" and not backends.BACKENDS[name].emulated()]
EXAMPLES = int(os.environ.get("IMC_FUZZ_EXAMPLES", "25"))
fuzz = settings(
    max_examples=EXAMPLES, deadline=None, derandomize=EXAMPLES == 25, suppress_health_check=list(HealthCheck)
)
pytestmark = pytest.mark.skipif(not NATIVE, reason="no compiled backend on this machine")

sizes = st.builds(
    Sizes,
    views=st.integers(2, 4),
    batch=st.integers(1, 70),
    prototypes=st.integers(1, 90),
    clusters=st.integers(1, 40),
    dim=st.integers(2, 70),  # in one dimension a cosine's gradient is 0, up to its rounding over the norm
    heads=st.integers(1, 4),
)
LAYOUTS = ("contiguous", "permuted", "strided", "offset", "expanded", "overlapping", "negated view")


def laid_out(x: Tensor, layout: str) -> Tensor:
    """The same shape in another memory layout; "expanded" and "overlapping" also repeat values."""
    if x.dim() == 1:
        return laid_out(x[None], layout)[0]
    if layout == "permuted":
        return x.transpose(-1, -2).contiguous().transpose(-1, -2)
    if layout == "strided":
        return torch.stack([x, torch.full_like(x, torch.nan)], dim=-1)[..., 0]
    if layout == "offset":  # inside a storage whose other values are poison, at an address of odd alignment
        storage = torch.full((x.numel() + 7,), torch.nan, dtype=x.dtype)
        storage[3 : 3 + x.numel()] = x.flatten()
        return storage[3 : 3 + x.numel()].view(x.shape)
    if layout == "expanded":
        return x[..., :1, :].expand(x.shape)
    if layout == "overlapping":
        storage = x.flatten()
        return storage.as_strided(x.shape, (*[0] * (x.dim() - 2), 1, 1)) if sum(x.shape[-2:]) <= len(storage) else x
    if layout == "negated view":
        return torch._neg_view(-x)
    return x.contiguous()


def outcome(operation: Operation, inputs: tuple[Tensor, ...], needs: list[bool], backend: str) -> list[Tensor] | str:
    """Value and gradients, or the refusal."""
    leaves = [x.detach().requires_grad_(need) for x, need in zip(inputs, needs, strict=True)]
    try:
        result = operation(*leaves, backend=backend)
    except (ValueError, TypeError) as error:
        return str(error)
    wanted = [x for x in leaves if x.requires_grad]
    if not wanted:
        return [result]
    weights = torch.linspace(-1, 2, result.numel()).reshape(result.shape).to(result.dtype)
    return [result.detach(), *torch.autograd.grad(result, wanted, weights)]


@pytest.mark.parametrize("operation", OPERATIONS, ids=str)
@pytest.mark.parametrize("backend", NATIVE)
@fuzz
@given(data=st.data())
def test_any_input_gives_the_answer_of_the_specification_or_a_sentence(
    operation: Operation, backend: str, data: st.DataObject
) -> None:
    dtype = data.draw(st.sampled_from(backends.BACKENDS[backend].dtypes), label="dtype")
    made = operation.inputs(data.draw(sizes, label="sizes"), dtype)
    inputs = tuple(laid_out(x, data.draw(st.sampled_from(LAYOUTS), label="layout")) for x in made)
    needs = [possible and data.draw(st.booleans(), label="needs") for possible in operation.differentiable]
    before = [x.clone() for x in inputs]
    ours, exact = (outcome(operation, inputs, needs, name) for name in (backend, "eager"))
    assert all(torch.equal(x, y) for x, y in zip(inputs, before, strict=True)), "an input was written to"
    if isinstance(exact, str) or isinstance(ours, str):
        assert ours == exact
        return
    half = dtype in (torch.bfloat16, torch.float16)
    # The specification's float32 may be further off than ours: what counts is its answer in float64.
    truths = exact if half else outcome(operation, tuple(x.double() for x in inputs), needs, "eager")
    rtol = 8 * torch.finfo(dtype).eps if half else 2e-3 if dtype == torch.float32 else 1e-8
    for result, same, truth in zip(ours, exact, truths, strict=True):
        assert isinstance(truth, Tensor)
        assert result.dtype == same.dtype
        assert result.isfinite().all()
        scale = max(float(truth.double().abs().max()), 1e-2)  # below this, sums that cancel leave their rounding
        assert float((result.double() - truth.double()).abs().max()) <= rtol * scale


values = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3), st.binary(max_size=3),
    st.just(object()), st.lists(st.integers(), max_size=2), st.just(torch.tensor([])), st.just(torch.rand(2, 3)),
    st.just(torch.rand(2, 3, 4)), st.just(torch.randint(9, (2, 3, 4))), st.just(torch.rand(2, 3, 4).cfloat()),
    st.just(torch.rand(2, 2, 3, 4).to_sparse()), st.just(torch.rand(2, 3, 4, device="meta")),
)  # fmt: skip


@pytest.mark.parametrize("operation", [o for o in OPERATIONS if not o.label], ids=str)
@fuzz
@given(data=st.data())
def test_any_object_is_refused_or_served_but_never_a_crash(operation: Operation, data: st.DataObject) -> None:
    arguments = [data.draw(values) for _ in operation.differentiable]
    names = ("temperature", "epsilon", "iterations", "smoothing", "entropy_weight", "logit_limit", "marginals", "group")
    options: dict[str, Any] = data.draw(st.dictionaries(st.sampled_from(names), values, max_size=2))
    with contextlib.suppress(ValueError, TypeError, RuntimeError):
        operation.function(*arguments, **options)


@pytest.mark.parametrize("backend", NATIVE)
@fuzz
@given(data=st.data())
def test_any_crop_parameters_give_the_crops_of_the_specification_or_a_sentence(
    backend: str, data: st.DataObject
) -> None:
    height, width, size = (data.draw(st.integers(1, 40), label="side") for _ in range(3))
    channels, batch = data.draw(st.sampled_from([1, 3])), data.draw(st.integers(1, 4))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99), label="seed"))
    images = torch.randint(0, 256, (5, height, width, channels), dtype=torch.uint8, generator=generator)
    indices = torch.randint(0, 5, (batch,), generator=generator)
    parameters = draw_crop_parameters(0, 0, indices, views=2, height=height, width=width, blur_probability=0.5)
    column, value = data.draw(st.integers(0, 12)), data.draw(st.floats(width=32))
    if data.draw(st.booleans(), label="poison"):
        parameters[..., column] = value
    options = {"size": size, "mean": [0.5] * channels, "std": [0.2] * channels}

    def crops(name: str) -> Tensor | str:
        try:
            return multi_crop(images, indices, parameters, **options, backend=name)
        except ValueError as error:
            return str(error)

    ours, exact = crops(backend), crops("eager")
    if isinstance(exact, str):
        assert ours == exact
    else:
        torch.testing.assert_close(ours, exact, rtol=1e-3, atol=2e-3)
