"""Device functions that kernels of several operations share."""

import triton
import triton.language as tl
from triton import knobs

INTERPRETED = tl.constexpr(bool(knobs.runtime.interpret))
SMALLEST_NORMAL = tl.constexpr(2.0**-126)


@triton.jit
def rounded(x, dtype: tl.constexpr):
    """float32 ``x`` in ``dtype``, to nearest even. The interpreter would truncate to bfloat16, and lose
    subnormal numbers; hardware does neither."""
    if INTERPRETED and dtype == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        bits = tl.where(x == x, bits + 0x7FFF + ((bits >> 16) & 1), 0x7FC00000)
        return (bits >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    return x.to(dtype)


@triton.jit
def safe_log(x):
    """The logarithm, from the smallest normal number up, so that 0 log 0 = 0. NaN stays NaN."""
    return tl.log(tl.where(x < SMALLEST_NORMAL, SMALLEST_NORMAL, x))


@triton.jit(do_not_specialize=["batch"])
def total_kernel(
    partials,  # [batch] float32
    total,  # [] float32
    batch,
    block: tl.constexpr,
):
    """The sum of the partial results, in an order that depends on their number alone."""
    at = tl.arange(0, block)
    sums = tl.zeros((block,), tl.float32)
    for first in range(0, batch, block):
        sums += tl.load(partials + first + at, mask=first + at < batch, other=0.0)
    tl.store(total, tl.sum(sums, axis=0))
