"""What every Triton launcher shares: the launch itself, the workspace and the length of blocks."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import triton
from torch import Tensor


def launch(kernel: Any, grid: Sequence[int], *arguments: Any, **constants: Any) -> None:
    """Run a kernel on the device of its first tensor and torch's current stream."""
    first = next(x for x in arguments if isinstance(x, Tensor))
    with torch.cuda.device_of(first):  # does nothing for a CPU tensor, which the interpreter takes
        execute(kernel, tuple(grid), arguments, constants)


def execute(kernel: Any, grid: tuple[int, ...], arguments: Sequence[Any], constants: Mapping[str, Any]) -> None:
    """The one place where a kernel starts: whatever counts, records or compiles launches stands in for it."""
    kernel[grid](*arguments, **constants)


def workspace(like: Tensor, *sizes: int) -> list[Tensor]:
    """float32 buffers of these sizes on the device of ``like``, from one allocation, aligned to 16 bytes each."""
    padded = [-(-size // 4) * 4 for size in sizes]
    return list(torch.empty(sum(padded), dtype=torch.float32, device=like.device).split(padded))


def block_of(n: int, most: int, least: int = 1) -> int:
    """The length of a block for ``n`` elements: the smallest power of two that holds them, within limits."""
    return max(least, min(most, triton.next_power_of_2(n)))


def warps_for(elements: int, each: int = 8) -> int:
    """How many warps share a block of so many elements: about ``each`` a thread, from 1 to 16 warps."""
    return max(1, min(16, triton.next_power_of_2(elements // (32 * each))))


@functools.cache
def has_tf32(device: torch.device) -> bool:
    """Whether Triton multiplies in TF32 there: on NVIDIA's GPUs, and of AMD's on gfx942 alone."""
    return torch.version.hip is None or torch.cuda.get_device_properties(device).gcnArchName.startswith("gfx942")


def tf32_precision(device: torch.device) -> str:
    """TF32, or float32 where there is none."""
    return "tf32" if has_tf32(device) else "ieee"


def float32_precision(device: torch.device) -> str:
    """How Triton multiplies float32: as torch does."""
    return "ieee" if torch.get_float32_matmul_precision() == "highest" else tf32_precision(device)
