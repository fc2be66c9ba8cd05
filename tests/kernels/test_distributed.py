"""A batch spread over 2 and 3 processes has the loss, the assignments and the gradients of the batch in one process."""

from __future__ import annotations

import importlib
import resource
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from interpreter import patch_once_a_launch
from operations import OPERATIONS, Operation, Sizes
from torch import Tensor

from imc_kernels import backends, info_nce_loss, linear_swapped_prediction_loss, log_dot_product_loss, sinkhorn
from imc_kernels.ops.distributed.collectives import gather_samples, gather_sizes

GROUPED = {"info_nce_loss", "log_dot_product_loss", "mutual_information_loss", "sinkhorn"}
CASES = [operation for operation in OPERATIONS if operation.name in GROUPED]
SIZES = Sizes(3, 13, 9, 4, 5)
PARTS = {2: (8, 5), 3: (1, 12, 0)}  # samples of each process: unequal, as the last batch of an epoch may be, or none
SATURATED = (0.003, 0.03, 0.01)  # epsilons at which the rows of the scores below are
# Where CUDA is emulated (make simt), it alone.
EMULATED = backends.BACKENDS["cuda"].emulated()
BACKENDS = ["cuda"] if EMULATED else [name for name in ("triton", "cpu", "eager") if name in backends.available()]


# In Triton's interpreter, where a launch takes milliseconds, what no other backend shows.
MOST_SATURATED = {name: SATURATED[:1] if name == "triton" else SATURATED for name in BACKENDS}
COMPILED = [name for name in BACKENDS if name != "triton"]


def forms() -> list[tuple[Operation, str]]:
    """The operations with the backends that serve a group."""
    phases = {name: importlib.import_module(f"imc_kernels.ops.distributed.{name}").PHASES for name in GROUPED}
    return [(o, name) for o in CASES for name in BACKENDS if name == "eager" or name in phases[o.name]]


def dtype_of(backend: str) -> torch.dtype:
    """The best that it serves."""
    return torch.float64 if torch.float64 in backends.BACKENDS[backend].dtypes else torch.float32


def weights(result: Tensor) -> Tensor:
    """What the result is multiplied with before the sum: ones for a loss, otherwise a fixed pattern."""
    return torch.ones_like(result) if result.dim() < 2 else torch.arange(result.numel()).reshape(result.shape) % 7 - 3.0


def with_gradients(
    operation: Operation, inputs: Sequence[Tensor], weight: Tensor | None = None, factor: float = 1, **where: Any
) -> tuple[Tensor, list[Tensor]]:
    leaves = [x.clone().requires_grad_() for x in inputs]
    result = operation.function(*leaves, **operation.options, **where)
    (result * (weights(result) if weight is None else weight) * factor).sum().backward()
    return result.detach(), [leaf.grad for leaf in leaves]  # type: ignore[misc]


def every_operation(rank: int, world: int, backend: str) -> dict[str, Any]:
    """Its results for this process's samples; the losses are weighted by 1, 2, ... in the processes."""
    saved: dict[str, Any] = {}
    for operation in (operation for operation, name in forms() if name == backend):
        inputs = operation.inputs(SIZES, dtype_of(backend))
        own = [x.split(PARTS[world], dim=-2)[rank] for x in inputs]
        whole = weights(operation(*inputs, backend="eager"))
        weight = whole if whole.dim() < 2 else whole.split(PARTS[world], dim=-2)[rank]
        factor = rank + 1 if whole.dim() < 2 else 1
        saved[str(operation)] = with_gradients(operation, own, weight, factor, group=dist.group.WORLD, backend=backend)
    return saved


def other_forms(rank: int, world: int, backend: str) -> dict[str, Any]:
    """What fits no table: poisoned scores, marginals with a queue, half precision, saturated rows."""
    group = dist.group.WORLD
    scores = torch.rand(2, 4 * world, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scores = scores.to(dtype_of(backend))
    own, queue = scores.chunk(world, dim=1)[rank], scores.flip(1).chunk(world, dim=1)[rank]
    marginals = torch.arange(1.0, 7, dtype=scores.dtype)
    poisoned = own.clone()
    poisoned[0, 0, 0] = torch.inf if rank == world - 1 else 0.5
    saved: dict[str, Any] = {
        "queue": sinkhorn(own, marginals=marginals, queue=queue, group=group, backend=backend),
        "poisoned": sinkhorn(poisoned, group=group, backend=backend),
        "half": sinkhorn(own.bfloat16(), group=group, backend=backend),
        "wide": sinkhorn(100 * own, group=group, backend=backend),
        "single": sinkhorn(own.bfloat16(), dtype=torch.float32, group=group, backend=backend),
        "mixed": sinkhorn(own.bfloat16(), queue=queue.float(), group=group, backend=backend),
    }
    for epsilon in MOST_SATURATED[backend]:
        x = (own.float() * 0.3).requires_grad_()
        (gradient,) = torch.autograd.grad(
            sinkhorn(x, epsilon=epsilon, group=group, backend=backend), x, weights(scores).float().chunk(world, 1)[rank]
        )
        saved[f"gradient at {epsilon}"] = gradient
    return saved


def compiled(rank: int, world: int, backend: str) -> dict[str, Any]:
    """By torch.compile."""
    group, saved = dist.group.WORLD, dict[str, Any]()
    scores = torch.rand(2, 4 * world, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    own = scores.to(dtype_of(backend)).chunk(world, dim=1)[rank]

    def form(x: Tensor) -> Tensor:
        return sinkhorn(x, group=group, backend=backend)

    for fullgraph in (False, True):
        torch.compiler.reset()
        try:
            saved[f"fullgraph={fullgraph}"] = torch.compile(form, fullgraph=fullgraph, backend="eager")(own)
        except torch._dynamo.exc.Unsupported as error:
            saved[f"fullgraph={fullgraph}"] = str(error)
    return saved


def derivatives(rank: int, world: int, backend: str) -> dict[str, Any]:
    """Whether a lazily negated upstream gradient gives what it says, and how a second derivative is refused."""
    saved: dict[str, Any] = {}
    for operation in (operation for operation, name in forms() if name == backend):
        inputs = operation.inputs(SIZES, dtype_of(backend))
        own = [x.split(PARTS[world], dim=-2)[rank].clone().requires_grad_() for x in inputs]
        result = operation.function(*own, **operation.options, group=dist.group.WORLD, backend=backend)
        upstream = weights(result).to(result.dtype)
        lazy = torch.complex(torch.zeros_like(upstream), -upstream).conj().imag
        expected = torch.autograd.grad(result, own, upstream, retain_graph=True)
        same = all(map(torch.equal, torch.autograd.grad(result, own, lazy, retain_graph=True), expected))
        gradients = torch.autograd.grad(result, own, upstream, create_graph=True)
        try:
            torch.autograd.grad(torch.stack([x.square().sum() for x in gradients]).sum(), own)
            said = ""
        except NotImplementedError as error:
            said = str(error)
        saved[str(operation)] = same, said
    return saved


def memory(rank: int, world: int, backend: str) -> dict[str, int]:
    """Bytes by which the peak of this process grows at N = 16,384 rows, whose N x N form takes a GiB."""
    if backend != "cpu":
        return {}
    embeddings = torch.randn(2, 8192 // world, 8, requires_grad=True)
    logits = torch.randn(2, 2, 8192 // world, 10, requires_grad=True)
    grown = {}
    for name, loss, x in (("info_nce", info_nce_loss, embeddings), ("log_dot", log_dot_product_loss, logits)):
        loss(x[..., :8, :].detach(), group=dist.group.WORLD, backend=backend)  # what is set up once
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        loss(x, group=dist.group.WORLD, backend=backend).sum().backward()
        grown[name] = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    return grown


def without_scores(embeddings: Tensor, **where: Any) -> tuple[Tensor, list[Tensor]]:
    """The loss of many prototypes, whose gradient is also that of a matrix which all processes have."""
    prototypes = torch.randn(9, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    leaves = [x.clone().requires_grad_() for x in (embeddings, prototypes)]
    loss = linear_swapped_prediction_loss(*leaves, backend="eager", **where)
    return loss.detach(), list(torch.autograd.grad(loss, leaves))


def many_embeddings() -> Tensor:
    return torch.randn(3, 13, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def works(world: int, backend: str) -> tuple[Callable[[int, int, str], dict[str, Any]], ...]:
    if backend == "triton":
        return (other_forms,) if world == 2 else (every_operation,)
    return (every_operation, other_forms, compiled, derivatives, memory) if world == 2 else (every_operation,)


def process(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    if "triton" in BACKENDS:
        patch_once_a_launch()
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    saved = {
        (work.__name__, backend): work(rank, world, backend) for backend in BACKENDS for work in works(world, backend)
    }
    if world == 2:
        own = many_embeddings().split(PARTS[world], dim=1)[rank]
        saved["without scores"] = without_scores(own, group=dist.group.WORLD)
    saved["equal sizes"] = gather_samples(torch.full((2, 3), rank), 1, [3] * world, dist.group.WORLD)
    saved["sizes"] = gather_sizes(rank + 5, dist.new_group(backend="cuda:gloo"))
    torch.save(saved, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[Any]]:
    """Number of processes -> what each of them saved."""
    found = {}
    for world in PARTS:
        folder = tmp_path_factory.mktemp(f"world{world}")
        mp.start_processes(process, args=(world, str(folder)), nprocs=world, start_method="spawn")
        found[world] = [torch.load(folder / f"{rank}.pt") for rank in range(world)]
    return found


@pytest.mark.parametrize(
    ("world", "operation", "backend"),
    [(world, *form) for world in PARTS for form in forms() if every_operation in works(world, form[1])],
    ids=str,
)
def test_equals_one_process(world: int, operation: Operation, backend: str, results: dict[int, list[Any]]) -> None:
    saved = [of_rank["every_operation", backend][str(operation)] for of_rank in results[world]]
    value, expected = with_gradients(operation, operation.inputs(SIZES, dtype_of(backend)), backend="eager")
    values = [of_rank[0] for of_rank in saved]
    gradients = [torch.cat(parts, dim=-2) for parts in zip(*(of_rank[1] for of_rank in saved), strict=True)]
    if value.dim() < 2:
        torch.testing.assert_close(values[0], value)
        assert all(torch.equal(of_rank, values[0]) for of_rank in values)
        gradients = [gradient / (world * (world + 1) / 2) for gradient in gradients]  # the sum of the factors
    else:
        torch.testing.assert_close(torch.cat(values, dim=-2), value)
    for gradient, reference in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, reference)


@pytest.mark.parametrize("backend", BACKENDS)
def test_other_forms_of_sinkhorn(backend: str, results: dict[int, list[Any]]) -> None:
    saved = [of_rank["other_forms", backend] for of_rank in results[2]]
    scores = torch.rand(2, 8, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scores = scores.to(dtype_of(backend))
    marginals = torch.arange(1.0, 7, dtype=scores.dtype)
    expected = sinkhorn(scores, marginals=marginals, queue=scores.flip(1), backend="eager")
    torch.testing.assert_close(torch.cat([of_rank["queue"] for of_rank in saved], dim=1), expected)
    wide = torch.cat([of_rank["wide"] for of_rank in saved], dim=1)
    torch.testing.assert_close(wide, sinkhorn((100 * scores).double(), backend="eager").to(wide.dtype))
    half = torch.cat([of_rank["half"] for of_rank in saved], dim=1)
    assert half.dtype == torch.bfloat16
    single = torch.cat([of_rank["single"] for of_rank in saved], dim=1)
    torch.testing.assert_close(single, sinkhorn(scores.bfloat16().float(), backend="eager"))
    mixed = torch.cat([of_rank["mixed"] for of_rank in saved], dim=1)
    rounded, queue = scores.bfloat16().float(), scores.flip(1).float()
    torch.testing.assert_close(mixed, sinkhorn(rounded, queue=queue, backend="eager"))
    torch.testing.assert_close(half, sinkhorn(scores.bfloat16(), backend="eager"))
    assert all(of_rank["poisoned"][0].isnan().all() and of_rank["poisoned"][1].isfinite().all() for of_rank in saved)


@pytest.mark.parametrize(
    ("backend", "epsilon"), [(name, epsilon) for name in BACKENDS for epsilon in MOST_SATURATED[name]]
)
def test_the_gradient_of_saturated_rows(epsilon: float, backend: str, results: dict[int, list[Any]]) -> None:
    saved = [of_rank["other_forms", backend] for of_rank in results[2]]
    ours = torch.cat([of_rank[f"gradient at {epsilon}"] for of_rank in saved], dim=1)
    scores = torch.rand(2, 8, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = []
    for dtype in (torch.float64, torch.float32):
        x = (scores.float() * 0.3).to(dtype).requires_grad_()
        result = sinkhorn(x, epsilon=epsilon, backend="eager")
        found.append(torch.autograd.grad(result, x, weights(scores).to(dtype))[0].double())
    exact, rival = found
    error, rivals = (float((x - exact).norm()) for x in (ours, rival))
    assert error <= 3 * rivals + 16 * torch.finfo(torch.float32).eps * float(exact.norm())


@pytest.mark.parametrize("backend", COMPILED)
def test_the_compiler_breaks_its_graph_or_says_why_it_cannot(backend: str, results: dict[int, list[Any]]) -> None:
    saved = [of_rank["compiled", backend] for of_rank in results[2]]
    scores = torch.rand(2, 8, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scores = scores.to(dtype_of(backend))
    whole = torch.cat([of_rank["fullgraph=False"] for of_rank in saved], dim=1)
    torch.testing.assert_close(whole, sinkhorn(scores, backend="eager"))
    assert all("an operation with group= exchanges numbers" in of_rank["fullgraph=True"] for of_rank in saved)


@pytest.mark.parametrize(("operation", "backend"), [form for form in forms() if form[1] in COMPILED], ids=str)
def test_derivatives(operation: Operation, backend: str, results: dict[int, list[Any]]) -> None:
    """No second derivative of a kernel is lost without a word; eager has it."""
    for saved in results[2]:
        same, said = saved["derivatives", backend][str(operation)]
        assert same
        sentence = f'{operation.name}: its kernels have first derivatives only; for second ones pass backend="eager"'
        assert said == ("" if backend == "eager" else sentence)


def test_the_loss_without_scores_equals_one_process(results: dict[int, list[Any]]) -> None:
    """Averaged over the processes, the gradients are those of the whole batch."""
    losses, gradients = zip(*(of_rank["without scores"] for of_rank in results[2]), strict=True)
    loss, (of_embeddings, of_prototypes) = without_scores(many_embeddings())
    assert all(torch.allclose(of_rank, loss, rtol=1e-12) for of_rank in losses)
    torch.testing.assert_close(torch.cat([of_rank[0] for of_rank in gradients], dim=1) / 2, of_embeddings)
    torch.testing.assert_close((gradients[0][1] + gradients[1][1]) / 2, of_prototypes)


def test_sizes_go_from_host_to_host(results: dict[int, list[Any]]) -> None:
    """Where the group has no way between hosts, the processes make one."""
    for world, saved in results.items():
        assert [of_rank["sizes"] for of_rank in saved] == [list(range(5, 5 + world))] * world
        ranks = torch.arange(world).repeat_interleave(3).expand(2, -1)
        assert all(torch.equal(of_rank["equal sizes"], ranks) for of_rank in saved)


@pytest.mark.skipif("cpu" not in BACKENDS, reason="the CPU kernels are not built")
def test_no_process_holds_an_n_by_n_matrix(results: dict[int, list[Any]]) -> None:
    for of_rank in results[2]:
        assert max(of_rank["memory", "cpu"].values()) < 2**26


@pytest.mark.parametrize("operation", CASES, ids=str)
def test_what_is_no_group_is_refused(operation: Operation) -> None:
    with pytest.raises(TypeError, match=r"group must be a torch\.distributed\.ProcessGroup, got str"):
        operation.function(*operation.inputs(SIZES), group="world")
