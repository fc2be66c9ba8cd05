"""The operations agree with their specification on a GPU; where there is none, in the emulators, by the same bounds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from operations import OPERATIONS, Operation
from stepped import DEVICE, EMULATED, GPU, gradients, leaves, relative, require, step

from imc_kernels import draw_crop_parameters, log_dot_product_loss, multi_crop

BOUND = 1e-5  # of the relative error in float32
pytestmark = [
    pytest.mark.skipif(not GPU + EMULATED, reason="needs a GPU and a backend that serves it, or an emulator"),
    pytest.mark.parametrize("backend", GPU or EMULATED or ["cuda"]),
]
each_operation = pytest.mark.parametrize("operation", OPERATIONS, ids=str)


@each_operation
def test_agrees_with_the_specification(operation: Operation, backend: str) -> None:
    require(backend, operation)
    exact = step(operation, tuple(x.double() for x in leaves(operation)), "eager")
    for result, truth in zip(step(operation, leaves(operation), backend), exact, strict=True):
        assert relative(result, truth) < BOUND


@pytest.mark.parametrize("batch", [1500, 8000] if GPU else [130])  # for 1,500 an emulator takes a minute
def test_heads_beyond_one_block_agree_with_the_specification(batch: int, backend: str) -> None:
    """The rows of a head fill the shared memory of a cluster of blocks, or of none."""
    logits = torch.randn(2, 2, batch, 40, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    results = []
    for x, name in ((logits.double(), "eager"), (logits, backend)):
        x.requires_grad_()
        loss = log_dot_product_loss(x, entropy_weight=2.0, logit_limit=2.0, backend=name)
        results.append(gradients(loss, (x,)))
    for exact, ours in zip(*results, strict=True):
        assert relative(ours, exact) < BOUND


@pytest.fixture(scope="module")
def group() -> Iterator[dist.ProcessGroup]:
    """This process alone."""
    if GPU and not dist.is_nccl_available():
        pytest.skip("this torch has no NCCL")
    dist.init_process_group("nccl" if GPU else "gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


@each_operation
def test_a_group_agrees_with_the_specification_and_waits_for_no_number(
    operation: Operation, backend: str, group: dist.ProcessGroup
) -> None:
    inputs = leaves(operation)

    def grouped() -> list[torch.Tensor]:
        return gradients(operation.function(*inputs, **operation.options, group=group, backend=backend), inputs)

    try:
        results = grouped()
    except (TypeError, ValueError) as error:  # no argument group, or no form for it
        pytest.skip(str(error))
    if GPU:
        torch.cuda.set_sync_debug_mode("error")
        try:
            grouped()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    exact = step(operation, tuple(x.double() for x in inputs), "eager")
    for result, truth in zip(results, exact, strict=True):
        assert relative(result, truth) < BOUND


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("side", "size"), [(32, 28), (32, 18), (96, 76) if GPU else (48, 38)])
def test_crops_agree_with_the_specification(side: int, size: int, dtype: torch.dtype, backend: str) -> None:
    count = 32 if GPU else 4
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (40, side, side, 3), dtype=torch.uint8, generator=generator).to(DEVICE)
    indices = torch.randperm(40, generator=generator)[:count].to(DEVICE)
    parameters = draw_crop_parameters(0, 0, indices, views=2, height=side, width=side, blur_probability=0.5)
    options = {"size": size, "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.25, 0.3), "dtype": dtype}
    try:
        crops = multi_crop(images, indices, parameters, **options, backend=backend)
    except ValueError as error:
        pytest.skip(str(error))
    exact = multi_crop(images, indices, parameters, **options | {"dtype": torch.float64}, backend="eager")
    tolerance = {torch.float32: 1e-4, torch.bfloat16: 4e-2, torch.float16: 5e-3}[dtype]
    torch.testing.assert_close(crops.double(), exact, rtol=0, atol=tolerance)
    assert crops.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)
