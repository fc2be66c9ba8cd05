"""What only a real GPU shows: graphs, streams, devices, autocast, the compiler, large tensors and repeated runs."""

from __future__ import annotations

import pytest
import torch
from operations import OPERATIONS, Operation
from stepped import GPU, leaves, require, step

from imc_kernels import prototype_scores, sinkhorn, swapped_prediction_loss

pytestmark = [
    pytest.mark.skipif(not GPU, reason="needs a GPU and a backend that serves it"),
    pytest.mark.parametrize("backend", GPU or ["cuda"]),
]
each_operation = pytest.mark.parametrize("operation", OPERATIONS, ids=str)


@each_operation
def test_two_runs_are_bitwise_equal(operation: Operation, backend: str) -> None:
    require(backend, operation)
    inputs = leaves(operation)
    first = step(operation, inputs, backend)
    for _ in range(5):
        assert all(torch.equal(a, b) for a, b in zip(first, step(operation, inputs, backend), strict=True))


@each_operation
def test_a_replayed_graph_sees_changed_inputs(operation: Operation, backend: str) -> None:
    require(backend, operation)
    static = leaves(operation)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            step(operation, static, backend)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(operation, static, backend)
    for shift in (0.9, 0.5):
        with torch.no_grad():
            for x in static:
                x.mul_(shift)
        graph.replay()
        torch.cuda.synchronize()
        assert all(torch.equal(a, b) for a, b in zip(captured, step(operation, static, backend), strict=True))


@each_operation
def test_runs_on_the_current_stream(operation: Operation, backend: str) -> None:
    """Inputs that a busy stream has yet to write are read by the work queued behind it."""
    require(backend, operation)
    inputs = leaves(operation)
    expected = step(operation, inputs, backend)
    late = tuple(torch.zeros_like(x).requires_grad_(x.requires_grad) for x in inputs)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        with torch.no_grad():
            for x, source in zip(late, inputs, strict=True):
                x.copy_(source)
        results = step(operation, late, backend)
    stream.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@each_operation
def test_runs_on_the_device_of_its_inputs(operation: Operation, backend: str) -> None:
    require(backend, operation)
    assert torch.cuda.current_device() == 0
    here, there = (step(operation, leaves(operation, device=f"cuda:{d}"), backend) for d in (0, 1))
    assert all(x.device.index == 1 for x in there)
    assert all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(here, there, strict=True))


@each_operation
def test_autocast_changes_nothing_for_float32_inputs(operation: Operation, backend: str) -> None:
    require(backend, operation)
    inputs = leaves(operation)
    plain = step(operation, inputs, backend)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        cast = step(operation, inputs, backend)
    assert all(torch.equal(a, b) for a, b in zip(plain, cast, strict=True))


@each_operation
def test_compiles_into_one_graph(operation: Operation, backend: str) -> None:
    require(backend, operation)
    torch.compiler.reset()
    inputs = leaves(operation)
    compiled = torch.compile(lambda *x: operation(*(t * 1.5 for t in x), backend=backend) * 2, fullgraph=True)
    expected = operation(*(t * 1.5 for t in inputs), backend=backend) * 2
    torch.testing.assert_close(compiled(*inputs), expected)


@each_operation
def test_nothing_waits_for_the_device(operation: Operation, backend: str) -> None:
    require(backend, operation)
    inputs = leaves(operation)
    step(operation, inputs, backend)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(operation, inputs, backend)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", ["sinkhorn", "swapped_prediction_loss", "prototype_scores"])
def test_more_than_two_to_the_31_elements(name: str, backend: str) -> None:
    rows, columns = 2**16 + 3, 2**15
    need = {"sinkhorn": 12, "swapped_prediction_loss": 24, "prototype_scores": 12}[name] << 30
    if torch.cuda.mem_get_info()[0] < 1.2 * need:
        pytest.skip(f"needs {need >> 30} GiB of free device memory")
    generator = torch.Generator("cuda").manual_seed(0)
    if name == "prototype_scores":
        z = torch.randn(rows, 16, device="cuda", generator=generator)
        w = torch.randn(columns, 16, device="cuda", generator=generator)
        last = prototype_scores(z, w, backend=backend)[-5:]
        torch.testing.assert_close(last, prototype_scores(z[-5:], w, backend="eager"), rtol=1e-4, atol=1e-5)
        return
    scores = torch.rand(2 if name != "sinkhorn" else 1, rows, columns, device="cuda", dtype=torch.bfloat16)
    if name == "sinkhorn":
        sums = sinkhorn(scores, iterations=1, backend=backend)[0, -5:].float().sum(dim=-1)
        torch.testing.assert_close(sums, torch.ones_like(sums), rtol=2e-2, atol=0)
    else:
        targets = torch.full_like(scores[:1], 1 / columns)
        tail = [x[:, -64:].float() for x in (scores, targets)]
        scores.requires_grad_()
        swapped_prediction_loss(scores, targets, backend=backend).backward()
        reference = tail[0].clone().requires_grad_()
        swapped_prediction_loss(reference, tail[1], backend="eager").backward()
        expected = reference.grad * (64 / rows)
        got = scores.grad[:, -64:].float()
        assert float((got - expected).norm() / expected.norm()) < 2e-2
