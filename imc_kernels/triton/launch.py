"""What every Triton launcher shares: the launch itself, the workspace and block shapes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton import knobs

INTERPRETED = tl.constexpr(bool(knobs.runtime.interpret))


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


def power_of_two(n: int, most: int, least: int = 1) -> int:
    """The smallest power of two that holds ``n``, within limits: the length of a block of ``n`` elements."""
    return max(least, min(most, triton.next_power_of_2(n)))


def batch_kernel(function: Callable) -> Any:
    """``triton.jit`` of a kernel whose argument ``batch`` changes from call to call: one compilation serves all."""
    return triton.jit(function, do_not_specialize=["batch"])


@triton.jit
def rounded(x, dtype: tl.constexpr):
    """float32 ``x`` to ``dtype``, to nearest even. The interpreter would truncate to bfloat16; hardware does not."""
    if INTERPRETED and dtype == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        bits += 0x7FFF + ((bits >> 16) & 1)
        x = tl.where(x == x, bits.to(tl.float32, bitcast=True), x)
    return x.to(dtype)
