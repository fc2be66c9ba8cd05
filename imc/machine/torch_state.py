"""What a program has set in torch, kept from changing what a run computes, and as it was when the run has ended."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from typing import Any

import torch

from imc.machine.threads import one_thread

# The convolutions of cuDNN are not among them: in a new process they round to TF32 too.
PRODUCTS: list[Any] = [*(getattr(torch.backends.mkldnn, x) for x in ("matmul", "conv")), torch.backends.cuda.matmul]
REDUCED = ("bf16", "tf32")
HIGHEST = "highest"
VARIABLES = ("MKL_CBWR",)  # that a run sets for its process


@contextlib.contextmanager
def as_in_a_new_process() -> Iterator[None]:
    """Torch computes as in a process where nothing was set: gradients, no autocast, new tensors on the CPU, products of
    float32 in float32.

    All but the last are settings of the calling thread. That is one of the process, which threads that are here at once
    share: the first sets it and the last puts it back. The default dtype, also the process's, is not touched: every
    tensor of this package names its own. A forked process computes on one thread: torch's operators would wait for ever
    for the others, which are not there.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        if _forked and torch.get_num_threads() > 1:
            stack.enter_context(one_thread())
        stack.enter_context(_exact_products)
        yield


class _ExactProducts:
    """Products of float32 in float32, for as long as any thread is inside."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._inside = 0

    def __enter__(self) -> None:
        with self.lock:
            self._inside += 1
            if self._inside == 1:
                self._set()

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self._inside -= 1
            if self._inside == 0:
                self._put_back()

    def _set(self) -> None:
        # What was set by torch's older function is put back by it: torch refuses to read a mixture.
        self._precision = _matmul_precision()
        if self._precision != HIGHEST:
            torch.set_float32_matmul_precision(HIGHEST)
        self._reduced = [(x, x.fp32_precision) for x in PRODUCTS if x.fp32_precision in REDUCED]
        for products, _ in self._reduced:
            products.fp32_precision = "ieee"

    def _put_back(self) -> None:
        for products, precision in self._reduced:
            products.fp32_precision = "none"  # inherits
            if products.fp32_precision != precision:
                products.fp32_precision = precision
        if self._precision != HIGHEST:
            torch.set_float32_matmul_precision(self._precision)


def _matmul_precision() -> str:
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # it was set by the newer attributes
        return HIGHEST


@contextlib.contextmanager
def turn(device: torch.device | None = None) -> Iterator[None]:
    """As :func:`as_in_a_new_process`, for what seeds torch's generators or sets what all threads share: one thread at a
    time. Afterwards the generators, the number of threads and the environment's variables are as they were.

    What torch.compile stores on disk is marked by the instruction set meanwhile. torch 2.13 finds it by the program
    alone, and code for AVX-512 that is built again for AVX2 (with ATEN_CPU_CAPABILITY, or where two machines share a
    cache) leaves half of each vector unwritten.

    Args:
        device: of a run that draws from its generator.
    """
    if device is not None and device.type == "cuda":
        torch.cuda.init()  # before it a generator has no state that could be kept
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() and torch.cuda.is_initialized() else ()
    with _run, as_in_a_new_process(), torch.random.fork_rng(devices, device_type="cuda"):
        threads, variables = torch.get_num_threads(), {name: os.environ.get(name) for name in VARIABLES}
        tag = torch.compiler.config.cache_key_tag
        torch.compiler.config.cache_key_tag = f"{tag} {torch.backends.cpu.get_cpu_capability()}"
        try:
            yield
        finally:
            torch.compiler.config.cache_key_tag = tag
            if torch.get_num_threads() != threads:
                torch.set_num_threads(threads)
            for name, value in variables.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value


def seed_generators(seed: int, device: torch.device) -> None:
    """Seed torch's global generators of the CPU and of a run's device, no other."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed_all(seed)


_exact_products = _ExactProducts()
_run = threading.RLock()
_forked = False


def _in_forked_child() -> None:
    """A fork copies locks as they are; threads that hold them are not there in the child."""
    global _run, _forked
    _exact_products.lock, _run, _forked = threading.Lock(), threading.RLock(), True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_forked_child)
