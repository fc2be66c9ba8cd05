from __future__ import annotations

from typing import Any

import pytest
import torch
from operations import all_backends
from torch import Tensor
from torch.nn import functional

from imc_kernels import per_view_batch_norm

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


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("relu", [False, True])
def test_a_mean_far_above_the_deviation_costs_no_more_than_rounding_the_input_does(backend: str, relu: bool) -> None:
    x = maps() + 1e4  # of which float32 keeps a thousandth
    output, exact = (per_view_batch_norm(y, views=VIEWS, relu=relu, backend=backend) for y in (x, x.double()))
    torch.testing.assert_close(output.double(), exact, rtol=0, atol=1e-3)


def test_channels_together_are_read_where_they_lie_and_stay_together() -> None:
    x = maps().contiguous(memory_format=torch.channels_last).requires_grad_()
    output = per_view_batch_norm(x, views=VIEWS, backend="cpu")
    saved = output.grad_fn.saved_tensors[0]  # type: ignore[union-attr]
    assert saved.data_ptr() == x.data_ptr()
    assert output.is_contiguous(memory_format=torch.channels_last)
    (gradient,) = torch.autograd.grad(output.square().sum(), x)
    assert gradient.is_contiguous(memory_format=torch.channels_last)


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
def test_a_strided_weight_gives_the_gradient_of_its_values(backend: str) -> None:
    x = torch.rand(6, 4, requires_grad=True)
    weight = torch.stack([torch.rand(4), torch.full((4,), torch.nan)], dim=-1)[:, 0]
    strided, contiguous = (
        torch.autograd.grad(per_view_batch_norm(x, w, views=2, backend=backend).square().sum(), x)[0]
        for w in (weight, weight.contiguous())
    )
    assert torch.equal(strided, contiguous)


X = torch.rand(6, 4)
WRONG: dict[str, tuple[tuple[Any, ...], Options, type[Exception], str]] = {
    "rank": ((torch.rand(6, 4, 2),), {}, ValueError, r"\[V\*B, C\] or \[V\*B, C, H, W\], got \[6, 4, 2\]"),
    "views": ((X,), {"views": 4}, ValueError, "6 rows are not 4 views of equal size"),
    "no views": ((X,), {"views": 0}, ValueError, "6 rows are not 0 views"),
    "one value": ((X,), {"views": 6}, ValueError, r"2 values a channel and view, got input \[6, 4\]"),
    "weight": ((X, torch.rand(3)), {}, ValueError, r"weight must have one element for each .* 4 channels.* got \[3\]"),
    "dtype": ((X, torch.rand(4).double()), {}, ValueError, "weight .* of torch.float32, got .* torch.float64"),
    "half": ((X.half(), None, torch.rand(4).bfloat16()), {}, ValueError, "of torch.float16 or torch.float32, got"),
    "device": ((X, torch.rand(4, device="meta")), {}, ValueError, "on cpu .* on meta"),
    "no tensor": ((X, 1.0), {}, TypeError, r"weight must be a torch.Tensor \[C\], got float"),
    "one statistic": ((X,), {"running_mean": torch.rand(4)}, ValueError, "must be given together"),
    "eps": ((X,), {"eps": 0.0}, ValueError, "eps must be a finite number above 0"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_argument_is_named(case: str) -> None:
    inputs, options, error, sentence = WRONG[case]
    with pytest.raises(error, match=f"per_view_batch_norm: .*{sentence}"):
        per_view_batch_norm(*inputs, **options)
