"""No sum, exponential or logarithm is taken in half precision."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

HALF = (torch.bfloat16, torch.float16)


def at_least_single(tensor: Tensor) -> Tensor:
    """``tensor``, in float32 where it is half precision."""
    return cast(tensor, half_as_single(tensor.dtype))


def half_as_single(dtype: torch.dtype) -> torch.dtype:
    """float32 for half precision, any other dtype as it is."""
    return torch.float32 if dtype in HALF else dtype


def cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """``tensor.to(dtype)``, which costs microseconds even where there is nothing to do."""
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def gradient_buffer(tensor: Tensor) -> Tensor:
    """Memory for a gradient of ``tensor`` that is still to be scaled: float32 for float16, whose range is too small."""
    return torch.empty_like(tensor, dtype=gradient_dtype(tensor.dtype), memory_format=torch.contiguous_format)


def gradient_buffers(tensors: Sequence[Tensor], needs: Sequence[bool]) -> tuple[Tensor | None, ...]:
    """Those of the tensors whose gradients are needed, None for the others."""
    return tuple([gradient_buffer(x) if needed else None for x, needed in zip(tensors, needs, strict=True)])


def gradient_dtype(dtype: torch.dtype) -> torch.dtype:
    """That of :func:`gradient_buffer`."""
    return torch.float32 if dtype == torch.float16 else dtype


def loss_buffer(tensor: Tensor, *shape: int) -> Tensor:
    """Memory for losses of ``tensor``: float64 for float64, float32 otherwise."""
    # torch reads a size given by name 0.6 us faster than one given by position.
    return tensor.new_empty(size=shape, dtype=half_as_single(tensor.dtype))


def specification(function: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """The result of an eager function on its arguments in float32 or better, also inside ``torch.autocast``."""
    device = next(argument.device.type for argument in arguments if isinstance(argument, Tensor))
    with torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext():
        return function(*(at_least_single(x) if isinstance(x, Tensor) else x for x in arguments))
