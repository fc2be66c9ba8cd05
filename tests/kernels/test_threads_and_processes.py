"""Right answers and no deadlock from many threads, forked and spawned processes, and while the thread count changes."""

from __future__ import annotations

import ctypes
import itertools
import multiprocessing
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from operations import OPERATIONS, Operation, Sizes
from torch import Tensor

from imc_kernels import backends, draw_crop_parameters, multi_crop

pytestmark = pytest.mark.skipif("cpu" not in backends.available(), reason="the CPU kernels are not built")
PLAIN = [operation for operation in OPERATIONS if not operation.label]
KERNELS = [operation for operation in PLAIN if operation.name != "transport_plan"]  # of which torch computes a part
SIZES = Sizes(3, 150, 700, 10, 70)  # large enough for several threads
SECONDS = 60.0  # a process that takes longer hangs


def step(operation: Operation) -> list[Tensor]:
    """The value and the gradients."""
    inputs = operation.inputs(SIZES, torch.float32)
    leaves = [x.requires_grad_(n) for x, n in zip(inputs, operation.differentiable, strict=True)]
    result = operation(*leaves, backend="cpu")
    result.sum().backward()
    return [result.detach(), *(x.grad for x in leaves if x.grad is not None)]


def same(ours: list[Tensor], expected: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


def test_calls_from_many_threads_at_once() -> None:
    expected = [step(operation) for operation in PLAIN]
    wrong: list[str] = []

    def work(offset: int) -> None:
        for turn in range(2 * len(PLAIN)):
            position = (turn + offset) % len(PLAIN)
            if not same(step(PLAIN[position]), expected[position]):
                wrong.append(PLAIN[position].name)

    workers = [threading.Thread(target=work, args=(offset,), daemon=True) for offset in range(8)]
    for worker in workers:
        worker.start()
    deadline = time.monotonic() + SECONDS
    for worker in workers:
        worker.join(max(0.1, deadline - time.monotonic()))
    assert not any(worker.is_alive() for worker in workers), "a thread hangs"
    assert wrong == []


def test_the_number_of_threads_may_change_during_calls() -> None:
    operation, done = PLAIN[0], threading.Event()
    expected = step(operation)

    def change() -> None:
        while not done.is_set():
            for count in (1, 2, 3, 8):
                torch.set_num_threads(count)
                time.sleep(1e-3)

    changer = threading.Thread(target=change, daemon=True)
    changer.start()
    try:
        assert all(same(step(operation), expected) for _ in range(40))
    finally:
        done.set()
        changer.join(SECONDS)


def test_the_number_of_threads_may_change_between_forward_and_backward() -> None:
    for operation in PLAIN:
        expected = step(operation)
        for before, after in ((1, 3), (3, 1), (2, 64)):
            inputs = operation.inputs(SIZES, torch.float32)
            leaves = [x.requires_grad_(n) for x, n in zip(inputs, operation.differentiable, strict=True)]
            torch.set_num_threads(before)
            result = operation(*leaves, backend="cpu")
            torch.set_num_threads(after)
            result.sum().backward()
            ours = [result.detach(), *(x.grad for x in leaves if x.grad is not None)]
            assert same(ours, expected), (operation.name, before, after)


PARALLEL_REGION = """
void run(void (*inside)(int), int threads) {
  #pragma omp parallel for num_threads(threads)
  for (int i = 0; i < threads; ++i) inside(i);
}
"""


@pytest.mark.skipif(shutil.which("gcc") is None, reason="there is no gcc to compile a parallel region with")
def test_calls_inside_a_parallel_region_of_openmp(tmp_path: Path) -> None:
    (tmp_path / "region.c").write_text(PARALLEL_REGION)
    library = tmp_path / "region.so"
    subprocess.run(["gcc", "-fopenmp", "-shared", "-fPIC", tmp_path / "region.c", "-o", library], check=True)
    expected = [step(operation) for operation in PLAIN]
    right: list[bool] = []

    @ctypes.CFUNCTYPE(None, ctypes.c_int)
    def inside(rank: int) -> None:
        for turn in range(len(PLAIN)):
            position = (turn + rank) % len(PLAIN)
            right.append(same(step(PLAIN[position]), expected[position]))

    for threads in (1, 2, 4):
        ctypes.CDLL(str(library)).run(inside, threads)
    assert right == [True] * (7 * len(PLAIN))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_process_forked_while_other_threads_are_in_calls_computes_too() -> None:
    inputs = {operation.name: operation.inputs(SIZES, torch.float32) for operation in KERNELS}
    expected = {o.name: o(*inputs[o.name], backend="cpu").numpy().tobytes() for o in KERNELS}
    done = threading.Event()

    def work(offset: int) -> None:
        for operation in itertools.cycle(KERNELS[offset:] + KERNELS[:offset]):
            if done.is_set():
                break
            step(operation)

    workers = [threading.Thread(target=work, args=(offset,), daemon=True) for offset in range(2)]
    for worker in workers:
        worker.start()
    try:
        for turn in range(12):
            operation = KERNELS[turn % len(KERNELS)]
            time.sleep(0.002 * turn)
            process = os.fork()
            if process == 0:
                signal.alarm(int(SECONDS))  # which ends a child that hangs
                ours = operation(*inputs[operation.name], backend="cpu").numpy().tobytes()
                os._exit(0 if ours == expected[operation.name] else 3)
            assert os.waitpid(process, 0)[1] == 0, operation.name
    finally:
        done.set()
        for worker in workers:
            worker.join(SECONDS)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.parametrize("operation", KERNELS, ids=str)
def test_a_forked_process_computes_what_its_parent_did(operation: Operation) -> None:
    """The parent's OpenMP threads do not exist in the child, which would wait for them for ever."""
    inputs = operation.inputs(SIZES, torch.float32)
    expected = operation(*inputs, backend="cpu").numpy().tobytes()

    def child() -> None:  # compares without torch, whose own operators hang here
        os._exit(0 if operation(*inputs, backend="cpu").numpy().tobytes() == expected else 3)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(SECONDS)
    alive = process.is_alive()
    process.kill()
    assert not alive, "the forked process hangs"
    assert process.exitcode == 0


def spawned(queue: multiprocessing.Queue) -> None:
    torch.set_num_threads(2)
    queue.put([[x.numpy() for x in step(operation)] for operation in PLAIN])


def test_a_spawned_process_computes_what_its_parent_does() -> None:
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=spawned, args=(queue,))
    process.start()
    results = queue.get(timeout=SECONDS)
    process.join(SECONDS)
    for operation, arrays in zip(PLAIN, results, strict=True):
        assert same([torch.from_numpy(x) for x in arrays], step(operation)), operation.name


class Crops(torch.utils.data.Dataset):
    """One crop a sample, made in the worker."""

    images = torch.randint(0, 256, (20, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        indices = torch.tensor([index])
        parameters = draw_crop_parameters(0, 0, indices, views=2, height=32, width=32)
        return multi_crop(self.images, indices, parameters, size=24, mean=[0.5] * 3, std=[0.2] * 3, backend="cpu")


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_crops_in_the_workers_of_a_data_loader(start: str) -> None:
    data = Crops()
    expected = [data[index] for index in range(len(data))]
    loader = torch.utils.data.DataLoader(
        data, batch_size=None, num_workers=2, multiprocessing_context=start, timeout=SECONDS
    )
    assert same(list(loader), expected)
