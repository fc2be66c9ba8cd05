"""How the CPU kernels read and write half precision: as torch's casts do, of every bit pattern and at every width."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from imc_kernels import backends, per_view_batch_norm

pytestmark = pytest.mark.skipif("cpu" not in backends.available(), reason="the CPU kernels are not built")
each_dtype = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
each_width = pytest.mark.parametrize("width", [1, 7, 17, 33, 2**12])  # of rows: no vector, parts of some, many


def every(dtype: torch.dtype) -> Tensor:
    """All numbers of a dtype of 16 bits, NaN and infinities among them, [2^16]."""
    return torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)


def in_rows(values: Tensor, width: int) -> Tensor:
    """[N, width], with zeros behind the last."""
    return torch.cat([values, values.new_zeros(-len(values) % width)]).view(-1, width)


@each_dtype
@each_width
def test_every_number_is_read_and_written_as_it_is(dtype: torch.dtype, width: int) -> None:
    given = in_rows(every(dtype), width)
    x = torch.rand(given.shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    residual = torch.zeros_like(x).requires_grad_()
    result = per_view_batch_norm(x, residual=residual, backend="cpu")
    (gradient,) = torch.autograd.grad(result, residual, given)  # what comes back, unchanged
    torch.testing.assert_close(gradient, given, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(gradient.signbit() | gradient.isnan(), given.signbit() | given.isnan())


@each_dtype
def test_every_number_is_read_as_torch_reads_it(dtype: torch.dtype) -> None:
    values = every(dtype)
    values = values[values.float().abs() < 1e38]  # two of them must have a sum
    mean, variance = torch.zeros(len(values)), torch.ones(len(values))
    per_view_batch_norm(
        values.expand(2, -1), running_mean=mean, running_var=variance, momentum=1.0, eps=1e-5, backend="cpu"
    )
    assert torch.equal(mean, values.float())
    assert torch.equal(variance, torch.zeros_like(variance))


@each_dtype
@each_width
def test_results_are_rounded_as_torch_rounds_them(dtype: torch.dtype, width: int) -> None:
    """To the nearest, of two equally near ones to the even: numbers, what lies half-way, and beside that."""
    numbers = every(dtype).float()
    numbers = numbers[numbers.isfinite()].sort().values
    middle = (numbers[:-1].double() + numbers[1:].double()).div(2).float()
    beyond = torch.tensor([65519.0, 65520.0, 1e30, 3.4e38, 1e-45, 1e-40, torch.inf, -torch.inf, torch.nan])
    near = [middle.nextafter(torch.tensor(side)) for side in (-torch.inf, torch.inf)]
    written = torch.cat([numbers, middle, *near, beyond])[:: max(1, 2**10 // width)]
    for row in in_rows(written, width):
        result = per_view_batch_norm(torch.zeros(2, width, dtype=dtype), torch.zeros(width), row, backend="cpu")
        torch.testing.assert_close(result, row.to(dtype).expand(2, -1), rtol=0, atol=0, equal_nan=True)
