"""The compiled modules: what is there, and how their functions are called.

Their functions take tensors and check them against their signature, which is their docstring (csrc/python/signature.h):
whatever else they are given is a TypeError or a ValueError.
"""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor

__all__ = ["VariableError", "call", "check_cuda_sizes", "missing", "module", "threads"]

_HOW_TO_BUILD = {
    "_cpu": "in the source tree, with g++ or clang++ on the path: pip install --force-reinstall --no-deps .",
    "_cuda": "in the source tree, with nvcc on the path or CUDA_HOME set: "
    "IMC_BUILD_CUDA=1 pip install --force-reinstall --no-deps .",
}


MOST_THREADS = 1024  # that the kernels accept
LARGEST_CUDA_SIZE = 2**30  # csrc/cuda_module.cpp; the _cpu kernels count in 64 bits
_forked = False


class VariableError(ValueError):
    """An environment variable of this package has a value that is not accepted; the message names both."""


def _after_fork() -> None:
    global _forked
    _forked = True


# The threads of the OpenMP library stay behind in the parent: a child that waits for them waits for ever.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def threads() -> int:
    """How many threads a CPU kernel uses: torch's setting; in a forked process one."""
    return 1 if _forked else min(torch.get_num_threads(), MOST_THREADS)


@functools.cache
def _load(name: str) -> ModuleType | str:
    try:
        return importlib.import_module(f"imc_kernels.{name}")
    except ModuleNotFoundError:
        return f"imc_kernels.{name} was not built; {_HOW_TO_BUILD[name]}"
    except ImportError as error:
        if "IMC_CPU_CAPABILITY" in str(error):  # what the module raises while it loads can be nothing else
            raise VariableError(str(error)) from None
        return f"imc_kernels.{name} does not load ({error}); {_HOW_TO_BUILD[name]}"


def missing(name: str) -> str | None:
    """Why the compiled module ``name`` ("_cpu" or "_cuda") is not there, in one sentence, or None.

    Raises:
        VariableError: it is there, but not for the instruction set that the environment asks for.
    """
    loaded = _load(name)
    return loaded if isinstance(loaded, str) else None


def module(name: str) -> ModuleType:
    """The compiled module ``name``, "_cpu" or "_cuda".

    Raises:
        RuntimeError: it was not built or does not load.
        VariableError: it is there, but not for the instruction set that the environment asks for.
    """
    loaded = _load(name)
    if isinstance(loaded, str):
        raise RuntimeError(loaded)
    return loaded


def check_cuda_sizes(operation: str, *sizes: int) -> None:
    """The sizes are such as the _cuda kernels take. To be called before anything of these sizes is allocated.

    Raises:
        ValueError: they are not.
    """
    if max(sizes) > LARGEST_CUDA_SIZE:
        raise ValueError(f"{operation}: backend 'cuda' takes sizes up to 2^30 = {LARGEST_CUDA_SIZE}, got {max(sizes)}")


@functools.cache
def _function(name: str, operation: str) -> Callable[..., None]:
    return getattr(module(name), operation)


def call(name: str, operation: str, *arguments: Tensor | float | None) -> None:
    """Run ``operation`` of the compiled module ``name`` on these arguments, those of its signature but for threads."""
    function = _function(name, operation)
    if name == "_cpu":
        function(*arguments, threads())
    else:
        function(*arguments)
