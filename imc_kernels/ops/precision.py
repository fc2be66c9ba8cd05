"""No sum, exponential or logarithm is taken in half precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def at_least_single(tensor: Tensor) -> Tensor:
    """``tensor``, in float32 where it is half precision."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


def specification(function: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """The result of an eager function on its arguments in float32 or better, also inside ``torch.autocast``."""
    tensors = [argument for argument in arguments if isinstance(argument, Tensor)]
    with torch.autocast(tensors[0].device.type, enabled=False):
        return function(*(at_least_single(x) if isinstance(x, Tensor) else x for x in arguments))
