"""What a program may have set before it calls this package: the states, and what must be as before when a call ends."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import matplotlib
import numpy as np
import torch

mkldnn, cuda_matmul = torch.backends.mkldnn, torch.backends.cuda.matmul


@contextlib.contextmanager
def setting(read: Callable[[], Any], write: Callable[[Any], None], value: Any) -> Iterator[None]:
    """A setting at this value."""
    before = read()
    write(value)
    try:
        yield
    finally:
        write(before)


def attribute(owner: Any, name: str, value: Any) -> AbstractContextManager[None]:
    """An attribute at this value."""
    return setting(lambda: getattr(owner, name), lambda x: setattr(owner, name, x), value)


def default_dtype(dtype: torch.dtype) -> AbstractContextManager[None]:
    return setting(torch.get_default_dtype, torch.set_default_dtype, dtype)


def default_device(device: str | None) -> AbstractContextManager[None]:
    return setting(lambda: None, torch.set_default_device, device)


def environment(**variables: str) -> AbstractContextManager[None]:
    def replace(content: dict[str, str]) -> None:
        os.environ.clear()
        os.environ.update(content)

    return setting(lambda: dict(os.environ), replace, {**os.environ, **variables})


@contextlib.contextmanager
def all_at_once() -> Iterator[None]:
    """Several of them, each of which changed a result or ended in an error."""
    with contextlib.ExitStack() as stack:
        for name in ("dtype float64", "device meta", "inference_mode", "autocast", "products in bfloat16", "ranks"):
            stack.enter_context(STATES[name]())
        yield


STATES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "dtype float64": lambda: default_dtype(torch.float64),
    "dtype bfloat16": lambda: default_dtype(torch.bfloat16),
    "dtype float16": lambda: default_dtype(torch.float16),
    "device meta": lambda: default_device("meta"),
    "with device meta": lambda: torch.device("meta"),
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "deterministic": lambda: setting(
        torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms, True
    ),
    "anomaly": torch.autograd.detect_anomaly,
    "backward in one thread": lambda: torch.autograd.set_multithreading_enabled(False),
    "saved tensors on the CPU": torch.autograd.graph.save_on_cpu,
    "swapped parameters": lambda: setting(
        torch.__future__.get_swap_module_params_on_conversion,
        torch.__future__.set_swap_module_params_on_conversion,
        True,
    ),
    "products in bfloat16": lambda: setting(
        torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "medium"
    ),
    "products in bfloat16, by attribute": lambda: attribute(mkldnn.matmul, "fp32_precision", "bf16"),
    "convolutions in bfloat16": lambda: attribute(mkldnn.conv, "fp32_precision", "bf16"),
    "everything in bfloat16": lambda: attribute(torch.backends, "fp32_precision", "bf16"),
    "denormals flushed": lambda: setting(lambda: False, torch.set_flush_denormal, True),
    "torch's seed": lambda: setting(
        torch.get_rng_state, torch.set_rng_state, torch.Generator().manual_seed(5).get_state()
    ),
    "NumPy raises": lambda: np.errstate(all="raise"),
    "without stderr": lambda: attribute(sys, "stderr", None),
    "stderr of a logger": lambda: attribute(sys, "stderr", type("Log", (), {"write": len, "flush": lambda _: None})()),
    "without stdout": lambda: attribute(sys, "stdout", None),
    "ranks": lambda: environment(WORLD_SIZE="2", RANK="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="1"),
    "a launcher's empty variables": lambda: environment(WORLD_SIZE="", RANK="", LOCAL_RANK=""),
    "srun": lambda: environment(SLURM_STEP_NUM_TASKS="4", SLURM_PROCID="3"),
}


def observed() -> dict[str, Any]:
    """What must be as before."""
    with torch.device("cpu"):
        return {
            "dtype": torch.get_default_dtype(),
            "grad": (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_anomaly_enabled()),
            "autocast": (torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")),
            "deterministic": torch.are_deterministic_algorithms_enabled(),
            "precision": [x.fp32_precision for x in (torch.backends, mkldnn, mkldnn.matmul, mkldnn.conv, cuda_matmul)],
            "torch's generator": torch.get_rng_state().tolist(),
            "NumPy's generator": np.random.get_state()[1].tolist(),
            "Python's generator": random.getstate(),
            "number of threads": torch.get_num_threads(),
            "threads": threading.enumerate(),
            "mark of compiled code": torch.compiler.config.cache_key_tag,
            "filters of warnings": list(warnings.filters),
            "logging": (logging.root.manager.disable, list(logging.root.handlers)),
            "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
            "environment": dict(os.environ),
            "folder": os.getcwd(),
            "streams": (sys.stdout, sys.stderr),
            "NumPy's errors": np.geterr(),
            "matplotlib": (matplotlib.rcParams["backend"], dict(matplotlib.rcParams)),
        }


def default_device_now() -> torch.device:
    """Where a new tensor lies."""
    return torch.empty(0).device
