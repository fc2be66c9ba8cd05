"""Small tensors of numbers that Python knows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def constants(values: Sequence[float], like: Tensor) -> Tensor:
    """``values`` [n] in the dtype and on the device of ``like``.

    Off the CPU each is filled in by the device: a copy from the host's memory would wait for all work that is queued
    there, and a stream that is being captured refuses it.
    """
    if like.is_cpu:
        return torch.tensor(values, dtype=like.dtype, device=like.device)
    return torch.stack([like.new_full((), value) for value in values])
