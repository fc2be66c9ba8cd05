"""Which implementation of an operation runs.

Backends in the order in which the automatic choice tries them:

    cuda     C++/CUDA, NVIDIA GPUs                       (imc_kernels._cuda)
    triton   Triton, NVIDIA and AMD GPUs, no compiler    (imc_kernels.triton)
    cpu      C++, vectorised and multi-threaded          (imc_kernels._cpu)
    eager    plain PyTorch, any device, differentiable   (imc_kernels.eager: the specification)

The choice, first match: the ``backend=`` argument of a call, ``with backend(name):``, ``set_backend(name)``,
the environment variable ``IMC_BACKEND``, and last the first backend that is built and serves the operation on the
input's device and dtype. A backend asked for by name that cannot serve raises; nothing falls back silently.

The GPU backends can also be emulated on CPU tensors, slowly, which is how they are tested without a GPU: ``triton`` by
its interpreter where ``TRITON_INTERPRET=1`` was set, ``cuda`` where it was built with ``IMC_BUILD_CUDA=simt``. An
emulated backend runs only when it is asked for by name.

The ``cpu`` kernels are compiled for three instruction sets of x86-64: default (SSE2), avx2 (with FMA and F16C) and
avx512 (with BW, DQ and VL); those made of matrix products for amx (AMX-BF16) too, where the others are avx512's. The
best that the processor has runs, or the one that the environment variable ``IMC_CPU_CAPABILITY`` names at the first
call, when they are loaded; a name that the processor lacks raises. They round differently.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass

import torch

from imc_kernels import native

__all__ = ["available", "backend", "choose", "describe", "set_backend"]

HALF_AND_SINGLE = (torch.float32, torch.bfloat16, torch.float16)
FLOATING = (*HALF_AND_SINGLE, torch.float64)


@dataclass(frozen=True)
class Backend:
    """What a backend serves.

    Attributes:
        devices: the types of device it is written for; None: all.
        dtypes: those of the inputs.
        missing: the sentence that says why it is not there, or None where it is.
        emulated: whether it runs emulated here: on CPU tensors, and only when asked for by name.
    """

    name: str
    devices: tuple[str, ...] | None
    dtypes: tuple[torch.dtype, ...]
    missing: Callable[[], str | None]
    emulated: Callable[[], bool] = lambda: False

    def refusal(self, device: str, dtype: torch.dtype) -> str | None:
        """Why this backend cannot take a tensor on this type of device and of this dtype, or None."""
        devices = ("cpu",) if self.emulated() else self.devices
        if devices is not None and device not in devices:
            return f"it serves {' and '.join(devices)} tensors, the input is on {device}"
        if dtype not in self.dtypes:
            names = ", ".join(str(known).removeprefix("torch.") for known in self.dtypes)
            return f"it serves {names}, the input is {str(dtype).removeprefix('torch.')} or promoted to it"
        return self.missing()


@functools.cache
def _cuda_emulated() -> bool:
    return native.missing("_cuda") is None and native.module("_cuda").emulated()


def _cuda_missing() -> str | None:
    if not _cuda_emulated() and not torch.cuda.is_available():
        return "this PyTorch sees no CUDA device"
    return native.missing("_cuda")


@functools.cache
def _triton_interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


@functools.cache
def _triton_missing() -> str | None:
    if importlib.util.find_spec("triton") is None:  # which does not import it
        return "triton is not installed; pip install triton"
    if not _triton_interpreted() and not torch.cuda.is_available():
        return "this PyTorch sees no GPU"
    return None


BACKENDS: Mapping[str, Backend] = {
    "cuda": Backend("cuda", ("cuda",), HALF_AND_SINGLE, _cuda_missing, _cuda_emulated),
    "triton": Backend("triton", ("cuda",), HALF_AND_SINGLE, _triton_missing, _triton_interpreted),
    "cpu": Backend("cpu", ("cpu",), FLOATING, lambda: native.missing("_cpu")),
    "eager": Backend("eager", None, FLOATING, lambda: None),
}


_process_choice: str | None = None
_context_choice: ContextVar[str | None] = ContextVar("imc_backend", default=None)
_context_otherwise: ContextVar[Callable[[str, str], None] | None] = ContextVar("imc_otherwise", default=None)

# For a name that is not set os.environ raises and catches two exceptions, 2 us of every call: the mapping behind it is
# looked into first. Where another Python has none, os.environ is always asked.
_VARIABLE = os.environ.encodekey("IMC_BACKEND")
_SET = getattr(os.environ, "_data", (_VARIABLE,))


def _known(name: str, source: str, error: type[ValueError] = ValueError) -> str:
    if not isinstance(name, str) or name not in BACKENDS:
        raise error(f"{source} names no backend: {name!r}; known are {', '.join(BACKENDS)}")
    return name


def set_backend(name: str | None) -> None:
    """Use this backend for every following call of the process; ``None`` returns to the automatic choice."""
    global _process_choice
    _process_choice = None if name is None else _known(name, "set_backend")


@contextlib.contextmanager
def backend(name: str | None, *, otherwise: Callable[[str, str], None] | None = None) -> Iterator[None]:
    """Use this backend inside a ``with`` block (of this thread or task); ``None`` is the automatic choice.

    Args:
        name: of the backend.
        otherwise: makes the name a preference. An operation that the backend has no form of goes by the automatic
            choice, and at the first such call ``otherwise`` is told its name and the backend that runs it. A call with
            ``backend=`` stays strict, and so does everything that has a form on the backend.
    """
    told: set[tuple[str, str]] = set()

    def tell(operation: str, chosen: str) -> None:
        if otherwise is not None and (operation, chosen) not in told:
            told.add((operation, chosen))
            otherwise(operation, chosen)

    choice = _context_choice.set(None if name is None else _known(name, "backend"))
    preference = _context_otherwise.set(None if otherwise is None else tell)
    try:
        yield
    finally:
        _context_otherwise.reset(preference)
        _context_choice.reset(choice)


def requested() -> str | None:
    """The backend asked for outside the call itself, or None for the automatic choice."""
    name = _context_choice.get() or _process_choice
    if name is None and _VARIABLE in _SET and (variable := os.environ.get("IMC_BACKEND")):
        name = _known(variable, "the environment variable IMC_BACKEND", native.VariableError)
    return name


def choose(operation: str, offered: tuple[str, ...], device: torch.device, dtype: torch.dtype, name: str | None) -> str:
    """The backend that runs ``operation``. While ``torch.compile`` traces, it is chosen once.

    Args:
        operation: its public name, for messages.
        offered: the backends that have it, best first.
        device: of the inputs.
        dtype: theirs.
        name: the ``backend=`` argument of the call.

    Raises:
        ValueError: an unknown backend, or one asked for by name that cannot serve this input.
    """
    if name is not None:
        return _choice(operation, offered, device, dtype, _known(name, "backend="))
    asked = requested()
    if asked is None or asked in offered or (tell := _context_otherwise.get()) is None:
        return _choice(operation, offered, device, dtype, asked)
    chosen = _choice(operation, offered, device, dtype, None)
    tell(operation, chosen)
    return chosen


@functools.cache
def _choice(
    operation: str, offered: tuple[str, ...], device: torch.device, dtype: torch.dtype, name: str | None
) -> str:
    """That of :func:`choose`, found out once: it holds as long as the process lives."""
    if name is not None:
        refusal = BACKENDS[name].refusal(device.type, dtype)
        if name not in offered:
            refusal = f"it has no {operation}; {', '.join(offered)} have"
        if refusal is not None:
            raise ValueError(f"backend {name!r} cannot run {operation}: {refusal}")
        return name
    for candidate in offered:
        entry = BACKENDS[candidate]
        if entry.refusal(device.type, dtype) is None and not entry.emulated():
            return candidate
    raise ValueError(f"no backend of this machine runs {operation} on {dtype} tensors on {device.type}")


# What torch.compiler.assume_constant_result does, without its import of the compiler, 2 seconds and triton.
choose._dynamo_marked_constant = True  # type: ignore[attr-defined]


def serving(device: str, dtype: torch.dtype) -> list[str]:
    """The backends that the automatic choice may take for such inputs, best first."""
    return [name for name, entry in BACKENDS.items() if not entry.emulated() and entry.refusal(device, dtype) is None]


def available() -> list[str]:
    """The backends that can run on this machine."""
    return [name for name, entry in BACKENDS.items() if entry.missing() is None]


def describe() -> str:
    """One line per backend: what it is and whether it is available, or what is missing."""
    lines = []
    for name, entry in BACKENDS.items():
        reason = entry.missing()
        where = "any device" if entry.devices is None else "/".join(entry.devices)
        state = "emulated on the CPU, when asked for by name" if entry.emulated() else "available"
        lines.append(f"{name:6} {where:11} {state if reason is None else 'not available: ' + reason}")
    choice = requested()
    lines.append(f"chosen: {choice}" if choice else "chosen: automatically, the first of these that serves the input")
    return "\n".join(lines)
