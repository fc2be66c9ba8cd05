"""The only place where a tensor becomes a pointer.

The compiled modules know neither torch nor Python objects: their functions take addresses, sizes, numbers and an
element-type code. A wrong address corrupts memory, so every tensor passes :func:`call`, which checks its device,
dtype, contiguity and shape first.
"""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

__all__ = ["call", "missing", "module", "threads", "workspace"]

ELEMENT_CODES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}

_HOW_TO_BUILD = {
    "_cpu": "in the source tree, with g++ or clang++ on the path: pip install --force-reinstall --no-deps .",
    "_cuda": "in the source tree, with nvcc on the path or CUDA_HOME set: "
    "IMC_BUILD_CUDA=1 pip install --force-reinstall --no-deps .",
}


_forked = False


def _after_fork() -> None:
    global _forked
    _forked = True


# The threads of the OpenMP library stay behind in the parent: a child that waits for them waits for ever.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def threads() -> int:
    """How many threads a CPU kernel uses: torch's setting; in a forked process one."""
    return 1 if _forked else torch.get_num_threads()


@functools.cache
def _load(name: str) -> ModuleType | str:
    try:
        return importlib.import_module(f"imc_kernels.{name}")
    except ModuleNotFoundError:
        return f"imc_kernels.{name} was not built; {_HOW_TO_BUILD[name]}"
    except ImportError as error:
        return f"imc_kernels.{name} does not load ({error}); {_HOW_TO_BUILD[name]}"


def missing(name: str) -> str | None:
    """Why the compiled module ``name`` ("_cpu" or "_cuda") is not there, in one sentence, or None."""
    loaded = _load(name)
    return loaded if isinstance(loaded, str) else None


def module(name: str) -> ModuleType:
    """The compiled module ``name``, "_cpu" or "_cuda".

    Raises:
        RuntimeError: it was not built or does not load.
    """
    loaded = _load(name)
    if isinstance(loaded, str):
        raise RuntimeError(loaded)
    return loaded


Argument = tuple[Tensor | None, tuple[int, ...]] | tuple[Tensor | None, tuple[int, ...], torch.dtype]


def call(name: str, operation: str, tensors: Sequence[Argument], *numbers: float) -> None:
    """Run ``operation`` of the compiled module ``name``.

    Args:
        tensors: (tensor, the shape it must have), and the dtype where that is not the first tensor's. None is passed as
            the null address. All are contiguous and on the first tensor's device.
        numbers: sizes and options, in the order of the native signature.

    Raises:
        RuntimeError: a tensor is not what its place requires (a fault of this package, not of its user).
    """
    first = tensors[0][0]
    assert first is not None
    element, device = first.dtype, first.device
    addresses = []
    for position, (tensor, shape, *other) in enumerate(tensors):
        if tensor is None:
            addresses.append(0)
            continue
        dtype = other[0] if other else element
        if tensor.dtype != dtype or tensor.device != device or tensor.shape != shape or not tensor.is_contiguous():
            raise RuntimeError(
                f"{name}.{operation}, tensor {position}: contiguous {dtype} {list(shape)} on {device} is required, got "
                f"{tensor.dtype} {list(tensor.shape)} with strides {tensor.stride()} on {tensor.device}"
            )
        addresses.append(tensor.data_ptr())
    function = getattr(module(name), operation)
    if device.type == "cuda":
        stream = torch.cuda.current_stream(device).cuda_stream
        function(ELEMENT_CODES[element], *addresses, *numbers, device.index, stream)
    elif name == "_cuda":  # emulated on the CPU
        function(ELEMENT_CODES[element], *addresses, *numbers, 0, 0)
    else:
        function(ELEMENT_CODES[element], *addresses, *numbers, threads())


def workspace(name: str, operation: str, like: Tensor, *sizes: int) -> Argument:
    """Memory for a CUDA operation of these sizes, as much as the module asks for, as an argument of :func:`call`."""
    count = getattr(module(name), f"{operation}_workspace_bytes")(*sizes, like.device.index or 0)
    return torch.empty(count, dtype=torch.uint8, device=like.device) if count else None, (count,), torch.uint8
