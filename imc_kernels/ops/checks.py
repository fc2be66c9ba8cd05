"""Checks that every operation shares. Each failure is one sentence: what was wrong, and what is accepted."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from imc_kernels.backends import FLOATING


def floating(operation: str, name: str, tensor: Tensor, layout: str) -> Tensor:
    """``tensor`` is a non-empty floating tensor whose rank is that of ``layout``, such as "[V, B, K]" or "[..., D]".

    Returns:
        The tensor, whose memory holds what it says: a lazily negated view (of a conjugate's imaginary part, say) is
        written out, as kernels read memory.

    Raises:
        TypeError: not a tensor, or not a floating dtype.
        ValueError: wrong rank, or a dimension of size zero.
    """
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{operation}: {name} must be a torch.Tensor {layout}, got {type(tensor).__name__}")
    if tensor.dtype not in FLOATING:
        raise TypeError(f"{operation}: {name} must be float32, bfloat16, float16 or float64, got {tensor.dtype}")
    rank = layout.count(",") + 1
    if tensor.dim() != rank and not (layout.startswith("[...") and tensor.dim() >= rank - 1):
        raise ValueError(f"{operation}: {name} must have the shape {layout}, got {list(tensor.shape)}")
    if tensor.numel() == 0:
        raise ValueError(f"{operation}: {name} {layout} is empty: its shape is {list(tensor.shape)}")
    return tensor.resolve_neg()


def together(operation: str, first: str, a: Tensor, second: str, b: Tensor) -> None:
    """The tensors ``a`` and ``b``, named ``first`` and ``second``, share one device and one dtype.

    Raises:
        ValueError: they do not.
    """
    if a.device != b.device:
        raise ValueError(f"{operation}: {first} is on {a.device} and {second} on {b.device}; move one")
    if a.dtype != b.dtype:
        raise ValueError(f"{operation}: {first} is {a.dtype} and {second} {b.dtype}; cast one")


def group(operation: str, group: object) -> None:
    """``group`` is None or a process group of torch.distributed.

    Raises:
        TypeError: it is not.
    """
    if group is not None and not isinstance(group, torch.distributed.ProcessGroup):
        raise TypeError(f"{operation}: group must be a torch.distributed.ProcessGroup, got {type(group).__name__}")


def positive(operation: str, name: str, value: float) -> None:
    """``value`` is a finite number above zero.

    Raises:
        ValueError: it is not.
    """
    if not (isinstance(value, (int, float)) and 0 < value < math.inf):  # not isfinite: torch.compile cannot trace it
        raise ValueError(f"{operation}: {name} must be a finite number above 0, got {value!r}")
