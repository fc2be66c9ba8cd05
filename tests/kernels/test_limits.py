"""A size beyond what an operation's docstring allows is refused in one sentence, before anything of it is allocated.

The inputs are one number each, expanded: what allocated would be gigabytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from operations import all_backends, device_of
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import imc_kernels
from imc_kernels.ops.crop_parameters import Column

OVER = 2**30 + 1
MOST_BYTES = 2**20


class NothingLarge(TorchDispatchMode):
    """Fails at the first tensor that takes more than MOST_BYTES."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **kwargs or {})
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                assert tensor.untyped_storage().nbytes() <= MOST_BYTES, f"{function} allocated {list(tensor.shape)}"
        return result


@pytest.fixture(scope="module")
def group() -> Iterator[dist.ProcessGroup]:
    """This process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


def refused(sentence: str, operation: str, *inputs: Tensor, backend: str, **options: Any) -> None:
    with NothingLarge(), pytest.raises(ValueError, match=f"^{re.escape(f'{operation}: {sentence}')}$"):
        getattr(imc_kernels, operation)(*inputs, backend=backend, **options)


def number(backend: str, *shape: int) -> Tensor:
    return torch.ones((), dtype=torch.float16, device=device_of(backend)).expand(shape)


each_cuda = pytest.mark.parametrize(
    "backend",
    [pytest.param("cuda", marks=pytest.mark.skipif("cuda" not in all_backends("sinkhorn"), reason="cuda is not here"))],
)
BEYOND_CUDA = [  # shapes, the size that is named
    ("sinkhorn", [(OVER, 1)], OVER),
    ("sinkhorn", [(1, OVER)], OVER),
    ("sinkhorn", [(2**15, 2**15 + 1, 1, 1)], 2**30 + 2**15),
    ("swapped_prediction_loss", [(2, OVER, 1), (1, OVER, 1)], OVER),
    ("swapped_prediction_loss", [(2, 1, OVER), (1, 1, OVER)], OVER),
    ("log_dot_product_loss", [(1, 2, OVER, 1)], OVER),
    ("log_dot_product_loss", [(1, 2, 1, OVER)], OVER),
    ("log_dot_product_loss", [(OVER, 2, 1, 1)], OVER),
    ("mutual_information_loss", [(2, OVER, 1), (2, OVER, 1)], OVER),
    ("mutual_information_loss", [(2, 1, 2**29 + 1), (2, 1, 1)], 2**30 + 2),
    ("mutual_information_loss", [(2, 1, 1), (2, 1, 2**29)], 2**30 + 4),
]


GROUPED = [case for case in BEYOND_CUDA if case[0] != "swapped_prediction_loss"]


@each_cuda
@pytest.mark.parametrize(("operation", "shapes", "named"), BEYOND_CUDA)
def test_larger_sizes_than_2_to_the_30(
    operation: str, shapes: list[tuple[int, ...]], named: int, backend: str, **options: Any
) -> None:
    first, *others = (number(backend, *shape) for shape in shapes)
    sentence = f"backend 'cuda' takes sizes up to 2^30 = 1073741824, got {named}"
    for inputs in ((first, *others), (first.detach().requires_grad_(), *others)):
        refused(sentence, operation, *inputs, backend=backend, **options)


@each_cuda
@pytest.mark.parametrize(("operation", "shapes", "named"), GROUPED)
def test_larger_sizes_than_2_to_the_30_with_a_group(
    operation: str, shapes: list[tuple[int, ...]], named: int, backend: str, group: dist.ProcessGroup
) -> None:
    test_larger_sizes_than_2_to_the_30(operation, shapes, named, backend, group=group)


@each_cuda
def test_more_samples_than_that_with_a_queue_and_views(backend: str, group: dist.ProcessGroup) -> None:
    half = number(backend, 2**29 + 1, 1)
    sentence = "backend 'cuda' takes sizes up to 2^30 = 1073741824, got "
    for options in ({}, {"group": group}):
        refused(f"{sentence}{2**30 + 2}", "sinkhorn", half, queue=half, backend=backend, **options)
    many = number(backend, 2**15 + 1, 1, 1)
    refused("backend 'cuda' takes up to 32768 views, got 32769", "mutual_information_loss", many, many, backend=backend)


def crops_of(backend: str, images: Tensor, size: int, sentence: str) -> None:
    parameters = torch.zeros(1, 1, len(Column), device=images.device)
    parameters[..., Column.HEIGHT] = parameters[..., Column.WIDTH] = 1
    inputs, channels = (images, torch.zeros(1, dtype=torch.int64, device=images.device), parameters), images.shape[3]
    refused(sentence, "multi_crop", *inputs, size=size, mean=[0.0] * channels, std=[1.0] * channels, backend=backend)


@pytest.mark.parametrize("backend", all_backends("multi_crop"))
def test_larger_crops(backend: str) -> None:
    image = torch.zeros(1, 1, 1, 3, dtype=torch.uint8, device=device_of(backend))
    crops_of(backend, image, 32768, "crops of 32768 pixels from images of 1 are too large")
    if backend == "cuda":
        sentence = "backend 'cuda' takes sizes up to 2^30 = 1073741824, got "
        crops_of(backend, image, 18919, f"{sentence}{3 * 18919**2}")
        crops_of(backend, image.expand(OVER, -1, -1, -1), 2, f"{sentence}{OVER}")
    if backend == "triton":
        crops_of(backend, image, 6121, "backend 'triton' takes crops of up to 6120 pixels, got 6121")
