"""The CUDA kernels on the emulator: every form that a device's size leads to, how many launches they take, and what a
call costs the host."""

from __future__ import annotations

import importlib
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from kernels.test_contract import relative
from kernels.test_multi_crop import options
from kernels.test_multi_crop_gpu_backends import few
from operations import OPERATIONS, Operation, Sizes
from torch import Tensor
from torch.profiler import profile
from torch.utils._python_dispatch import TorchDispatchMode

from imc_kernels import (
    log_dot_product_loss,
    multi_crop,
    mutual_information_loss,
    native,
    sinkhorn,
    swapped_prediction_loss,
)
from imc_kernels.ops.crop_parameters import Column

if native.missing("_cuda") is not None or not native.module("_cuda").emulated():
    pytest.skip("imc_kernels._cuda is not built on the emulator (make simt)", allow_module_level=True)

cuda = native.module("_cuda")
crops = importlib.import_module("imc_kernels.ops.multi_crop")  # the package's name is the function's
cases = [operation for operation in OPERATIONS if "cuda" in operation.backends]
# Operations, and whether they ask how large the device is.
WHOLE = {case.name: case.name in ("sinkhorn", "log_dot_product_loss") for case in cases}
PHASED = {"sinkhorn": False, "log_dot_product_loss": True, "mutual_information_loss": False}  # that serve a group
KIB = 1024

DEVICES = {
    "clusters": {},
    "small clusters": {"shared_per_block": 10 * KIB},
    "a cooperative grid": {"largest_cluster": 1, "multiprocessors": 6},
    "more blocks than are summed directly": {
        "largest_cluster": 1,
        "multiprocessors": 70,
        "shared_per_block": 12 * KIB,
    },
    "one block a problem": {"largest_cluster": 1, "multiprocessors": 1},
    "tiles that do not hold all rows": {"largest_cluster": 1, "shared_per_block": 6 * KIB},
    "no shared memory to speak of": {"largest_cluster": 1, "shared_per_block": 1200},
}
SIZES = [
    Sizes(2, 3, 4, 2, 1),
    Sizes(3, 45, 129, 5, 3),
    Sizes(2, 130, 24, 40, 3),
    Sizes(2, 700, 8, 3, 3, heads=3),
]


@pytest.fixture(autouse=True)
def usual_device() -> Iterator[None]:
    yield
    cuda.emulate()


@pytest.fixture(scope="module")
def group() -> Iterator[dist.ProcessGroup]:
    """This process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


def run(operation: Operation, sizes: Sizes, dtype: torch.dtype, backend: str, **options: Any) -> list[Tensor]:
    inputs = operation.inputs(sizes, dtype)
    leaves = [x.requires_grad_(need) for x, need in zip(inputs, operation.differentiable, strict=True)]
    result = operation.function(*leaves, **operation.options, **options, backend=backend)
    result.backward(torch.randn(result.shape, generator=torch.Generator().manual_seed(1)).to(result.dtype))
    return [result.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


def forms(asking: dict[str, bool]) -> list[tuple[Operation, str]]:
    """Operations with the sizes of device that matter to them: those that ask how large it is, or one."""
    return [
        (operation, device)
        for operation in cases
        if operation.name in asking
        for device in (DEVICES if asking[operation.name] else ["clusters"])
    ]


def assert_specification(operation: Operation, sizes: Sizes, device: str, **options: Any) -> None:
    truth, rival = (run(operation, sizes, dtype, "eager") for dtype in (torch.float64, torch.float32))
    cuda.emulate(**DEVICES[device])
    ours = run(operation, sizes, torch.float32, "cuda", **options)
    for exact, eager, result in zip(truth, rival, ours, strict=True):
        if exact.norm() < 1e-12:  # zero up to the rounding of the specification itself
            assert result.abs().max() < 1e-5
        else:
            assert relative(result, exact) <= 3 * relative(eager, exact) + 16 * torch.finfo(torch.float32).eps


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize(("operation", "device"), forms(WHOLE), ids=str)
def test_every_size_of_device_gives_the_specification(operation: Operation, device: str, sizes: Sizes) -> None:
    assert_specification(operation, sizes, device)


@pytest.mark.parametrize("operation", [case for case in cases if case.name == "log_dot_product_loss"], ids=str)
def test_a_cluster_may_have_more_blocks_than_samples(operation: Operation) -> None:
    """A head whose rows are long, so that its three samples do not fit into one block's shared memory."""
    assert_specification(operation, Sizes(2, 3, 2, 150, 1), "small clusters")


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize(("operation", "device"), forms(PHASED), ids=str)
def test_the_phases_of_a_group_give_the_specification(
    operation: Operation, device: str, sizes: Sizes, group: dist.ProcessGroup
) -> None:
    assert_specification(operation, sizes, device, group=group)


@pytest.mark.parametrize("operation", cases, ids=str)
def test_the_same_input_gives_the_same_bits(operation: Operation) -> None:
    sizes = Sizes(3, 45, 129, 5, 3)
    first, second = (run(operation, sizes, torch.float32, "cuda") for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_rows_that_are_not_aligned_to_16_bytes_are_served() -> None:
    scores = torch.rand(1 + 2 * 24 * 8, generator=torch.Generator().manual_seed(0))[1:].view(2, 24, 8)
    assert scores.is_contiguous()
    assert scores.data_ptr() % 16 != 0
    expected = sinkhorn(scores.double(), backend="eager")
    torch.testing.assert_close(sinkhorn(scores, backend="cuda").double(), expected, rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("assigned", [1, 2, 3])
@pytest.mark.parametrize("prototypes", [1, 62, 1024, 1028, 4096, 4100, 9001])
def test_swapped_prediction_holds_a_row_or_takes_it_in_chunks(prototypes: int, assigned: int) -> None:
    """Of chunks the later have the higher scores, so that what was summed before must be brought down."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(3, 3, prototypes, generator=generator) + torch.linspace(0, 9, prototypes)
    targets = torch.softmax(torch.randn(assigned, 3, prototypes, generator=generator), dim=-1)

    def values(dtype: torch.dtype, backend: str) -> tuple[Tensor, Tensor]:
        leaf = scores.to(dtype, copy=True).requires_grad_()
        loss = swapped_prediction_loss(leaf, targets.to(dtype), temperature=0.5, backend=backend)
        return loss.detach(), torch.autograd.grad(loss, leaf)[0]

    ours, exact, eager = (values(*form) for form in (
        (torch.float32, "cuda"), (torch.float64, "eager"), (torch.float32, "eager")
    ))  # fmt: skip
    for result, truth, rival in zip(ours, exact, eager, strict=True):
        assert relative(result, truth) <= 3 * relative(rival, truth) + 16 * torch.finfo(torch.float32).eps


@pytest.mark.parametrize("spread", [0.5, 1.0, 1.022, 1.023, 2.0, 20.0, 250.0])
@pytest.mark.parametrize("device", ["clusters", "a cooperative grid"])
def test_scores_of_any_range(spread: float, device: str) -> None:
    scores = (torch.rand(2, 24, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1) * spread
    scores[:, 0, 0], scores[:, 1, 1] = spread, -spread
    exact = sinkhorn(scores.double(), backend="eager")
    cuda.emulate(**DEVICES[device])
    error = float((sinkhorn(scores, backend="cuda").double() - exact).abs().max())
    assert error < 4 * (40 * spread) * 2**-24 + 1e-6


@pytest.mark.parametrize("scale", [1.0, 40.0])
@pytest.mark.parametrize("device", ["clusters", "a cooperative grid", "tiles that do not hold all rows"])
def test_marginals(scale: float, device: str) -> None:
    generator = torch.Generator().manual_seed(0)
    scores, shares = scale * torch.rand(2, 40, 12, generator=generator), torch.rand(12, generator=generator) + 0.1
    weights = torch.randn(2, 40, 12, generator=generator)
    results = []
    cuda.emulate(**DEVICES[device])
    for dtype, backend in ((torch.float64, "eager"), (torch.float32, "eager"), (torch.float32, "cuda")):
        leaf = scores.to(dtype, copy=True).requires_grad_()
        result = sinkhorn(leaf, marginals=shares.to(dtype), epsilon=0.5, backend=backend)
        (result * weights.to(dtype)).sum().backward()
        results.append((result.detach(), leaf.grad))
    for exact, eager, ours in zip(*results, strict=True):
        assert relative(ours, exact) <= 3 * relative(eager, exact) + 16 * torch.finfo(torch.float32).eps


CROP_DEVICES = {
    "shared memory": {"shared_per_block": 227 * KIB},
    "a workspace, every block several crops": {"shared_per_block": 4 * KIB, "multiprocessors": 3},
    "a workspace, a block a crop": {"shared_per_block": 4 * KIB, "multiprocessors": 132},
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("height", "width", "size"), [(32, 32, 28), (90, 96, 45), (31, 57, 19), (2, 300, 40)])
@pytest.mark.parametrize("device", CROP_DEVICES)
def test_crops_agree_with_the_specification_wherever_they_lie(
    device: str, height: int, width: int, size: int, channels: int
) -> None:
    images, indices, parameters = few(height, width, views=4)
    parameters[:2, :, Column.BLUR] = 0
    parameters[1:3, 0, Column.JITTER] = 0
    inputs = (images[..., :channels].contiguous(), indices, parameters)
    exact = multi_crop(*inputs, **options(channels, size), dtype=torch.float64, backend="eager")
    cuda.emulate(**CROP_DEVICES[device])
    before = cuda.emulate(**CROP_DEVICES[device])
    ours = multi_crop(*inputs, **options(channels, size), backend="cuda")
    assert cuda.emulate(**CROP_DEVICES[device]) == before + 1  # launch
    torch.testing.assert_close(ours.double(), exact, rtol=0, atol=1e-5)
    assert torch.equal(ours, multi_crop(*inputs, **options(channels, size), backend="cuda"))


@pytest.mark.parametrize("device", CROP_DEVICES)
def test_a_crop_that_would_leave_the_images_is_nan_and_no_other(device: str) -> None:
    """Where values cannot be checked beforehand: on the emulator the public function would refuse them."""
    count, side = 3, 9
    images, indices, parameters = few(side, side, views=20)
    parameters, indices = parameters.reshape(1, 40, len(Column)), indices.repeat(20)
    arguments = (5, torch.float16, [0.5] * 3, [0.2] * 3, True)
    cuda.emulate(**CROP_DEVICES[device])
    (whole,) = crops.KERNELS["cuda"]((images, indices, parameters), arguments, ())
    assert whole.isfinite().all()
    top, left, height, width = parameters[0, 20, :4].tolist()
    bad = {
        Column.TOP: (-1, side - height + 1, torch.nan),
        Column.LEFT: (-1, side - width + 1, -torch.inf),
        Column.HEIGHT: (0, side - top + 1, 3e9, torch.inf),
        Column.WIDTH: (0, side - left + 1, torch.nan),
        Column.ORDER: (-1, 24, torch.nan),
    }
    for at, index in ((0, -1), (1, count), (2, 2**62)):
        indices[at] = index
    at = 3
    for column, values in bad.items():
        for value in values:
            parameters[0, at] = parameters[0, 20]
            parameters[0, at, column] = value
            at += 1
    (ours,) = crops.KERNELS["cuda"]((images, indices, parameters), arguments, ())
    assert ours[0, :at].isnan().all()
    assert torch.equal(ours[0, at:], whole[0, at:])


def test_crops_of_any_alignment_are_served() -> None:
    """Crops of an odd number of elements start at every place of an access of 16 bytes."""
    images, indices, parameters = few(9, 8, views=5)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for size in (1, 3, 5):
            given = (images, indices, parameters)
            one = [
                multi_crop(images, indices, p[None], **options(3, size), dtype=dtype, backend="cuda")
                for p in parameters
            ]
            assert torch.equal(multi_crop(*given, **options(3, size), dtype=dtype, backend="cuda"), torch.cat(one))


def launches() -> int:
    return cuda.emulate()


class Operators(TorchDispatchMode):
    """Counts those that torch is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[function.overloadpacket.__name__] += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("operation", [case for case in cases if case.name in PHASED], ids=str)
def test_with_a_group_the_host_waits_for_no_number(operation: Operation, group: dist.ProcessGroup) -> None:
    with Operators() as operators:
        run(operation, SIZES[0], torch.float32, "cuda", group=group)
    assert operators.counts["new_empty"] > 0
    assert not operators.counts.keys() & {"_local_scalar_dense", "is_nonzero", "equal", "lift_fresh", "nonzero"}


@pytest.mark.parametrize("operation", [case for case in cases if case.name == "mutual_information_loss"], ids=str)
def test_with_a_group_the_loss_takes_one_launch_more(operation: Operation, group: dist.ProcessGroup) -> None:
    counts = []
    for given in ({}, {"group": group}):
        before = launches()
        run(operation, SIZES[0], torch.float32, "cuda", **given)
        counts.append(launches() - before)
    assert counts == [4, 5]


def test_the_losses_of_an_imc_swav_step_take_at_most_12_launches() -> None:
    """Given the scores, forward and backward, with the products and a multiplication by each loss's grad_output."""
    scores, logits = torch.rand(6, 8, 12, requires_grad=True), torch.rand(6, 8, 5, requires_grad=True)
    before = launches()
    assignments = sinkhorn(scores[:2].detach(), backend="cuda")
    assert launches() - before == 1
    swapped_prediction_loss(scores, assignments, backend="cuda").backward()
    assert launches() - before == 3
    with profile() as profiled:  # a mode of torch's would see the operator, not the products in it
        mutual_information_loss(logits, scores.detach(), logit_limit=25.0, backend="cuda").backward()
    products = sum(event.name == "aten::mm" for event in profiled.events())
    assert launches() - before == 7
    assert products == 2
    assert launches() - before + products + 2 <= 12


def test_the_losses_of_a_crlc_step_take_one_launch() -> None:
    """Those that are here."""
    before = launches()
    log_dot_product_loss(torch.rand(3, 2, 8, 5, requires_grad=True), backend="cuda").sum().backward()
    assert launches() - before == 1


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("views", [1, 7])
@pytest.mark.parametrize(("batch", "clusters", "prototypes"), [(1, 1, 1), (9, 3, 2), (5, 31, 40), (33, 67, 67)])
def test_mutual_information_of_ragged_sizes(
    views: int, batch: int, clusters: int, prototypes: int, symmetric: bool
) -> None:
    """With more pairs of views than tiles of the joint distribution, and more clusters than warps of a block."""
    if symmetric:
        prototypes = clusters
    generator = torch.Generator().manual_seed(0)
    inputs = [3 * torch.randn(views, batch, n, generator=generator) for n in (clusters, prototypes)]
    results = []
    for dtype, backend in ((torch.float64, "eager"), (torch.float32, "eager"), (torch.float32, "cuda")):
        logits, scores = (x.to(dtype, copy=True).requires_grad_() for x in inputs)
        loss = mutual_information_loss(
            logits, scores, temperature=0.7, logit_limit=4.0, symmetric=symmetric, backend=backend
        )
        loss.backward()
        results.append((loss.detach(), logits.grad, scores.grad))
    for exact, eager, ours in zip(*results, strict=True):
        if exact.norm() < 1e-12:  # zero up to the rounding of the specification itself
            assert ours.abs().max() < 1e-6
        else:
            assert relative(ours, exact) <= 3 * relative(eager, exact) + 16 * torch.finfo(torch.float32).eps


def test_autocast_does_not_reach_the_products() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, scores = (torch.randn(3, 20, n, generator=generator).requires_grad_() for n in (5, 9))
    expected = mutual_information_loss(logits, scores, backend="cuda")
    with torch.autocast("cpu", torch.bfloat16):
        result = mutual_information_loss(logits, scores, backend="cuda")
    gradients = (torch.autograd.grad(loss, (logits, scores)) for loss in (expected, result))
    assert torch.equal(result, expected)
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def fastest(*calls: Callable[[], object]) -> list[float]:
    """Seconds of each: the best mean of 20, which other load on the machine hardly reaches; they take turns."""
    best = [float("inf")] * len(calls)
    for _ in range(300):
        for i, call in enumerate(calls):
            start = time.perf_counter()
            for _ in range(20):
                call()
            best[i] = min(best[i], (time.perf_counter() - start) / 20)
    return best


def test_a_call_costs_the_host_little() -> None:
    """Checks, memory for the result and the launch of an empty kernel; of mutual_information_loss two of each, without
    the product between them, which is torch's. In units of torch's own smallest call: the machine's speed cancels. The
    budgets are half as much again as was measured.
    """
    scores, logits = torch.rand(2, 256, 1000), torch.rand(10, 2, 512, 10)
    assignments, small = torch.rand(2, 256, 1000), torch.rand(2, 3, 4)
    y, u, joint = torch.rand(3, 8), torch.rand(3, 12), torch.empty(8, 12)
    cuda.emulate(run=False)
    unit, product, *single, mutual = fastest(
        lambda: torch.relu(small),
        lambda: torch.mm(y.t(), u, out=joint),
        lambda: sinkhorn(scores, backend="cuda"),
        lambda: swapped_prediction_loss(scores, assignments, backend="cuda"),
        lambda: log_dot_product_loss(logits, backend="cuda"),
        lambda: mutual_information_loss(small, small, backend="cuda"),
    )
    for seconds, budget in (*((call, 10) for call in single), (mutual - product, 27)):
        print(f"{1e6 * seconds:.1f} us a call, {seconds / unit:.1f} of relu's")
        assert seconds < budget * unit
