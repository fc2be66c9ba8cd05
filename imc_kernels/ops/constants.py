"""Small tensors of numbers that Python knows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def constants(values: Sequence[float], dtype: torch.dtype, device: torch.device) -> Tensor:
    """``values`` [n] on a device.

    Off the CPU each is filled in by the device: a copy from the host's memory would wait for all work that is queued
    there, and a stream that is being captured refuses it.
    """
    if device.type == "cpu":
        return torch.tensor(values, dtype=dtype, device=device)
    return torch.stack([torch.full((), value, dtype=dtype, device=device) for value in values])
