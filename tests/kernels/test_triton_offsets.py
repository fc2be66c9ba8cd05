"""What lies 2^31 elements behind the first is found: in the interpreter, on matrices that are files with holes."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from imc_kernels import backends, draw_crop_parameters, multi_crop
from imc_kernels.ops.crop_parameters import Column

if not backends.BACKENDS["triton"].emulated() or backends.BACKENDS["triton"].missing() is not None:
    pytest.skip("Triton's interpreter is not on", allow_module_level=True)

import triton
import triton.language as tl

from imc_kernels.triton.log_dot_product_kernels import load_parts
from imc_kernels.triton.mutual_information_kernels import symmetric_tile
from imc_kernels.triton.sinkhorn import columns_kernel
from imc_kernels.triton.sinkhorn_backward import row_step_kernel


def sparse(path: Path, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Zeros in a file of holes, which takes neither memory nor disk but for what is written."""
    return torch.from_file(str(path), shared=True, size=math.prod(shape), dtype=dtype).view(shape)


def test_the_partial_sums_of_many_columns(tmp_path: Path) -> None:
    k, groups, iteration = 2**27, 20, 16
    partials = sparse(tmp_path / "partials", 1, groups, k)
    columns = sparse(tmp_path / "columns", 1, iteration + 2, k)
    assert min(groups, iteration + 1) * k > 2**31
    near = torch.randn(groups, 128, generator=torch.Generator().manual_seed(0))
    partials[0, :, :128] = near
    sizes = {"iterations": iteration + 1, "k": k, "group_block": 32, "block": 128}
    columns_kernel[(1,)](partials, None, None, columns, 8, groups, iteration, 1.0, **sizes)
    expected = math.log2(8) - math.log2(k) - torch.logsumexp(near.double() * math.log(2), dim=0) / math.log(2)
    torch.testing.assert_close(columns[0, iteration, :128].double(), expected, rtol=1e-6, atol=1e-6)


def test_the_factors_of_many_iterations(tmp_path: Path) -> None:
    k, iteration = 1024, 2**21
    columns = sparse(tmp_path / "columns", 1, iteration + 2, k)
    generator = torch.Generator().manual_seed(0)
    scores, factors, d = (torch.randn(1, 1, k, generator=generator) for _ in range(3))
    columns[0, iteration] = factors[0, 0]
    r = torch.softmax((scores + factors).double() * math.log(2), dim=-1)
    expected = d - r * d.double().sum()
    sizes = {"iterations": iteration + 1, "k": k, "row_block": 1, "block": 1024}
    row_step_kernel[(1,)](scores, None, columns, d, 1, 1, iteration, 1.0, **sizes)
    torch.testing.assert_close(d.double(), expected, rtol=1e-5, atol=1e-5)


@triton.jit
def parts_kernel(parts, found, first, groups, clusters: tl.constexpr):
    c = tl.arange(0, 16)
    tl.store(found + c, tl.sum(load_parts(parts, first, c, groups, clusters, 1), axis=0))


def test_the_parts_of_many_clusters(tmp_path: Path) -> None:
    groups, clusters = 2**15 + 8, 2**16
    parts, found = sparse(tmp_path / "parts", groups, clusters), torch.zeros(16)
    parts[-1, :16] = torch.arange(1.0, 17)
    parts_kernel[(1,)](parts, found, groups - 1, groups, clusters=clusters)
    assert torch.equal(found, torch.arange(1.0, 17))


@triton.jit
def symmetric_tile_kernel(joint, found, first, clusters: tl.constexpr):
    c = first + tl.arange(0, 16)
    at = tl.arange(0, 16)
    tile = symmetric_tile(joint, 0, c, at, clusters, clusters)
    tl.store(found + at[:, None] * 16 + at[None, :], tile)


def test_the_joint_distribution_of_many_clusters(tmp_path: Path) -> None:
    clusters = 2**16
    joint, found = sparse(tmp_path / "joint", clusters, clusters), torch.zeros(16, 16)
    straight, turned = torch.randn(2, 16, 16, generator=torch.Generator().manual_seed(0))
    joint[-16:, :16], joint[:16, -16:] = straight, turned
    symmetric_tile_kernel[(1,)](joint, found, clusters - 16, clusters=clusters)
    torch.testing.assert_close(found, (straight + turned.T) / 2)


def test_the_last_pixels_of_a_large_image(tmp_path: Path) -> None:
    side, small = 27_000, 16
    image = sparse(tmp_path / "image", 1, side, side, 3, dtype=torch.uint8)
    assert image.numel() > 2**31
    corner = torch.randint(0, 256, (1, small, small, 3), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    image[:, -small:, -small:] = corner
    index = torch.zeros(1, dtype=torch.int64)
    parameters = draw_crop_parameters(0, 0, index, views=2, height=small, width=small)
    options = {"size": 8, "mean": [0.5] * 3, "std": [0.2] * 3, "backend": "triton"}
    expected = multi_crop(corner, index, parameters, **options)
    parameters[..., [Column.TOP, Column.LEFT]] += side - small
    assert torch.equal(multi_crop(image, index, parameters, **options), expected)
