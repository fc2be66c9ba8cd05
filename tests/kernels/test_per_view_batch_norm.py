from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from operations import all_backends, native_backends
from torch import Tensor
from torch.nn import functional

from imc_kernels import backends, per_view_batch_norm

BACKENDS = all_backends("per_view_batch_norm")
VIEWS, BATCH, CHANNELS = 3, 10, 37
Options = dict[str, Any]


def maps(side: int = 4) -> Tensor:
    """Views about means and deviations of their own."""
    generator = torch.Generator().manual_seed(0)
    views = torch.arange(VIEWS).repeat_interleave(BATCH).view(-1, 1, 1, 1)
    return torch.randn(VIEWS * BATCH, CHANNELS, side, side, generator=generator) * (1 + views) + 10 * views


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_channel_of_every_view_has_mean_0_and_variance_1(backend: str) -> None:
    output = per_view_batch_norm(maps(), views=VIEWS, eps=1e-12, backend=backend).unflatten(0, (VIEWS, BATCH))
    zeros = torch.zeros(VIEWS, CHANNELS)
    torch.testing.assert_close(output.mean(dim=(1, 3, 4)), zeros, rtol=0, atol=1e-5)
    torch.testing.assert_close(output.var(dim=(1, 3, 4), correction=0), zeros + 1, rtol=1e-5, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_it_is_the_library_s_function_view_by_view_with_its_running_statistics(backend: str) -> None:
    x, weight, bias = maps(), torch.linspace(-1, 2, CHANNELS), torch.linspace(3, -3, CHANNELS)
    statistics = [(torch.full((CHANNELS,), 0.5), torch.full((CHANNELS,), 2.0)) for _ in range(2)]
    (mean, variance), (expected_mean, expected_variance) = statistics
    options: Options = {"running_mean": mean, "running_var": variance, "momentum": 0.3}
    output = per_view_batch_norm(x, weight, bias, views=VIEWS, **options, backend=backend)
    expected = [
        functional.batch_norm(view, expected_mean, expected_variance, weight, bias, training=True, momentum=0.3)
        for view in x.split(BATCH)
    ]
    torch.testing.assert_close(output, torch.cat(expected))
    torch.testing.assert_close(mean, expected_mean)
    torch.testing.assert_close(variance, expected_variance)


@pytest.mark.parametrize("backend", native_backends("per_view_batch_norm"))  # torch's own is coarser without AVX2
@pytest.mark.parametrize("relu", [False, True])
def test_a_mean_far_above_the_deviation_costs_no_more_than_rounding_the_input_does(backend: str, relu: bool) -> None:
    x = maps() + 1e4  # of which float32 keeps a thousandth
    output = per_view_batch_norm(x, views=VIEWS, relu=relu, backend=backend)
    exact = per_view_batch_norm(x.double(), views=VIEWS, relu=relu, backend="eager")
    torch.testing.assert_close(output.double(), exact, rtol=0, atol=1e-3)


def test_channels_together_are_read_where_they_lie_and_stay_together() -> None:
    x = maps().contiguous(memory_format=torch.channels_last).requires_grad_()
    output = per_view_batch_norm(x, views=VIEWS, backend="cpu")
    saved = output.grad_fn.saved_tensors[0]  # type: ignore[union-attr]
    assert saved.data_ptr() == x.data_ptr()
    assert output.is_contiguous(memory_format=torch.channels_last)
    (gradient,) = torch.autograd.grad(output.square().sum(), x)
    assert gradient.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("backend", native_backends("per_view_batch_norm"))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("relu", [False, True])
def test_a_residual_is_added_before_relu(relu: bool, dtype: torch.dtype, backend: str) -> None:
    """With every gradient; to the rounding of half precision, which is read and written only."""
    x, generator = maps(2).to(dtype), torch.Generator().manual_seed(1)
    residual, direction = (torch.randn(x.shape, generator=generator).to(dtype) for _ in range(2))
    weight, bias = torch.linspace(-1, 2, CHANNELS), torch.linspace(3, -3, CHANNELS)
    results = []
    for given, chosen in (((x, weight, bias, residual), backend), ((x, weight, bias, residual), "eager")):
        kind = torch.float64 if chosen == "eager" else None
        leaves = [t.to(kind or t.dtype, copy=True).requires_grad_() for t in given]
        *affine, added = leaves
        y = per_view_batch_norm(*affine, residual=added, views=VIEWS, relu=relu, backend=chosen)
        results.append([y.detach(), *torch.autograd.grad(y, leaves, direction.to(y.dtype))])
    for ours, exact in zip(*results, strict=True):
        assert (ours.double() - exact).norm() <= (2 * torch.finfo(ours.dtype).eps + 1e-6) * exact.norm()


@pytest.mark.parametrize("backend", BACKENDS)
def test_relu_stops_the_gradient_where_it_stops_the_value(backend: str) -> None:
    x = maps().requires_grad_()
    weight = torch.linspace(-1, 1, CHANNELS, requires_grad=True)
    fused, apart = (per_view_batch_norm(x, weight, views=VIEWS, relu=relu, backend=backend) for relu in (True, False))
    torch.testing.assert_close(fused, functional.relu(apart))
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    for ours, expected in zip(
        torch.autograd.grad(fused, (x, weight), direction),
        torch.autograd.grad(functional.relu(apart), (x, weight), direction),
        strict=True,
    ):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("needs", [(True, False), (False, True), (True, True)], ids=str)
def test_a_residual_is_added_before_the_relu(needs: tuple[bool, bool], relu: bool, backend: str) -> None:
    x, residual = (y.requires_grad_(need) for y, need in zip((maps(), maps().flip(0) / 9), needs, strict=True))
    leaves = [leaf for leaf in (x, residual) if leaf.requires_grad]
    fused = per_view_batch_norm(x, views=VIEWS, relu=relu, residual=residual, backend=backend)
    apart = per_view_batch_norm(x, views=VIEWS, backend=backend) + residual
    apart = functional.relu(apart) if relu else apart
    torch.testing.assert_close(fused, apart)
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    for ours, expected in zip(*(torch.autograd.grad(y, leaves, direction) for y in (fused, apart)), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtypes", [(torch.bfloat16, torch.float32), (torch.float16, torch.bfloat16)], ids=str)
def test_a_residual_of_another_dtype(dtypes: tuple[torch.dtype, torch.dtype], backend: str) -> None:
    x, residual = (maps().to(dtype).requires_grad_() for dtype in dtypes)
    result = per_view_batch_norm(x, views=VIEWS, residual=residual, backend=backend)
    assert result.dtype == x.dtype
    gradients = torch.autograd.grad(result.float().square().sum(), (x, residual))
    assert [gradient.dtype for gradient in gradients] == list(dtypes)
    expected = per_view_batch_norm(x.float(), views=VIEWS, residual=residual.float(), backend="eager")
    torch.testing.assert_close(result, expected.to(x.dtype))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_strided_weight_gives_the_gradient_of_its_values(backend: str) -> None:
    x = torch.rand(6, 4, requires_grad=True)
    weight = torch.stack([torch.rand(4), torch.full((4,), torch.nan)], dim=-1)[:, 0]
    strided, contiguous = (
        torch.autograd.grad(per_view_batch_norm(x, w, views=2, backend=backend).square().sum(), x)[0]
        for w in (weight, weight.contiguous())
    )
    assert torch.equal(strided, contiguous)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(), (5,), (3, 2), (2, 3, 2)], ids=str)
def test_maps_of_any_number_of_dimensions(shape: tuple[int, ...], backend: str) -> None:
    x = torch.randn(8, 3, *shape, generator=torch.Generator().manual_seed(0))
    expected = torch.cat([functional.batch_norm(view, None, None, training=True) for view in x.split(4)])
    torch.testing.assert_close(per_view_batch_norm(x, views=2, backend=backend), expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_momentum_for_each_view(backend: str) -> None:
    x, mean, variance = maps(), torch.zeros(CHANNELS), torch.ones(CHANNELS)
    momenta = [1 / (1 + view) for view in range(VIEWS)]
    per_view_batch_norm(
        x, views=VIEWS, running_mean=mean, running_var=variance, momentum=momenta, backend=backend
    )  # the cumulative average
    views = x.unflatten(0, (VIEWS, BATCH))
    torch.testing.assert_close(mean, views.mean(dim=(1, 3, 4)).mean(dim=0))
    torch.testing.assert_close(variance, views.var(dim=(1, 3, 4)).mean(dim=0))


@pytest.mark.parametrize(
    ("dtype", "backend"),
    [
        (dtype, backend)
        for dtype in (torch.float32, torch.float64, torch.bfloat16)
        for backend in all_backends("per_view_batch_norm", dtype)
    ],
    ids=str,
)
def test_running_statistics_of_any_floating_dtype(dtype: torch.dtype, backend: str) -> None:
    for of_statistics in (torch.float32, torch.float64, torch.float16):
        mean, variance = torch.zeros(CHANNELS, dtype=of_statistics), torch.ones(CHANNELS, dtype=of_statistics)
        x = maps().to(dtype)
        per_view_batch_norm(x[:BATCH], running_mean=mean, running_var=variance, momentum=1.0, backend=backend)
        tolerance = {"rtol": 4 * torch.finfo(of_statistics).eps + 1e-5, "atol": 1e-3}
        torch.testing.assert_close(mean.double(), x[:BATCH].double().mean(dim=(0, 2, 3)), **tolerance)
        torch.testing.assert_close(variance.double(), x[:BATCH].double().var(dim=(0, 2, 3)), **tolerance)


EDITS: dict[str, Callable[[Tensor], Any]] = {
    "relu": lambda y: functional.relu(y, inplace=True),
    "add": lambda y: y.add_(torch.linspace(-1, 1, y.numel()).reshape(y.shape)),
    "zero": lambda y: y[:2].zero_(),
}


# In Triton's interpreter one takes seconds; what may edit the result is the same for all kernels.
EDITED = [
    (compiled, edit, backend)
    for compiled, edit, backend in itertools.product((False, True), EDITS, BACKENDS)
    if not backends.BACKENDS[backend].emulated() or (edit, compiled) == ("add", False)
]


@pytest.mark.parametrize(("compiled", "edit", "backend"), EDITED)
def test_the_result_may_be_edited_in_place(edit: str, compiled: bool, backend: str) -> None:
    """With the gradient of the edited copy. Torch's own ReLU, on eager, needs its result again and says so."""
    weight, small = torch.linspace(0.5, 2, 3), maps(2)[:, :3]
    for x in (small,) if compiled else (small, small.contiguous(memory_format=torch.channels_last), small[..., 0, 0]):
        for relu in (False,) if backend == "eager" or compiled else (False, True):

            def edited(x: Tensor, relu: bool = relu, copy: bool = False) -> Tensor:
                result = per_view_batch_norm(x, weight, views=VIEWS, relu=relu, backend=backend)
                result = result.clone() if copy else result
                EDITS[edit](result)
                return result

            torch.compiler.reset()
            form = torch.compile(edited, fullgraph=True, backend="aot_eager") if compiled else edited
            leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
            ours, expected = form(leaf), edited(leaf, copy=True)
            torch.testing.assert_close(ours, expected)
            direction = torch.linspace(-1, 2, x.numel()).reshape(x.shape)
            for a, b in zip(*(torch.autograd.grad(y, leaf, direction) for y in (ours, expected)), strict=True):
                torch.testing.assert_close(a, b)


@pytest.mark.parametrize("backend", BACKENDS)
def test_editing_the_input_in_place_before_the_backward_is_noticed(backend: str) -> None:
    """Or does no harm: where the kernel has a copy of what it read."""
    for x in (maps(2), maps(2).contiguous(memory_format=torch.channels_last)):
        leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
        direction = torch.linspace(-1, 2, x.numel()).reshape(x.shape)
        (expected,) = torch.autograd.grad(per_view_batch_norm(leaf, views=VIEWS, backend=backend), leaf, direction)
        read = leaf * 1
        result = per_view_batch_norm(read, views=VIEWS, backend=backend)
        read.mul_(2)
        if backend != "eager" and x.is_contiguous():
            torch.testing.assert_close(torch.autograd.grad(result, leaf, direction), (expected,))
        else:
            with pytest.raises(RuntimeError, match="modified"):
                torch.autograd.grad(result, leaf, direction)


X = torch.rand(6, 4)
WRONG: dict[str, tuple[tuple[Any, ...], Options, type[Exception], str]] = {
    "rank": ((torch.rand(6),), {}, ValueError, r"input must have the shape \[V\*B, C, ...\], got \[6\]"),
    "views": ((X,), {"views": 4}, ValueError, "6 rows are not 4 views of equal size"),
    "no views": ((X,), {"views": 0}, ValueError, "views must be an integer of at least 1, got 0"),
    "one value": ((X,), {"views": 6}, ValueError, r"2 values a channel and view, got input \[6, 4\]"),
    "weight": ((X, torch.rand(3)), {}, ValueError, r"weight must have one element for each .* 4 channels.* got \[3\]"),
    "dtype": ((X, torch.ones(4, dtype=torch.int64)), {}, TypeError, "weight must be float32, .* got torch.int64"),
    "device": ((X, torch.rand(4, device="meta")), {}, ValueError, "on cpu, got .* on meta"),
    "no tensor": ((X, 1.0), {}, TypeError, r"weight must be a torch.Tensor \[C\], got float"),
    "residual": (
        (X,),
        {"residual": torch.rand(4)},
        ValueError,
        r"residual must have the shape .* got \[4\]",
    ),
    "other residual": ((X,), {"residual": torch.rand(6, 1)}, ValueError, r"shape of the input, \[6, 4\], got \[6, 1\]"),
    "residual's device": ((X,), {"residual": X.to("meta")}, ValueError, "input is on cpu and residual on meta"),
    "one statistic": ((X,), {"running_mean": torch.rand(4)}, ValueError, "must be given together"),
    "momentum": ((X,), {"momentum": 1.5}, ValueError, "momentum must be a number from 0 to 1, got 1.5"),
    "momenta": ((X,), {"momentum": [0.1], "views": 2}, ValueError, "momentum must be 2 numbers, got 1"),
    "eps": ((X,), {"eps": 0.0}, ValueError, "eps must be a finite number above 0"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_argument_is_named(case: str) -> None:
    inputs, options, error, sentence = WRONG[case]
    with pytest.raises(error, match=f"per_view_batch_norm: .*{sentence}"):
        per_view_batch_norm(*inputs, **options)
