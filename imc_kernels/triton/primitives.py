"""Device functions that kernels of several operations share."""

import triton
import triton.language as tl
from triton import knobs

INTERPRETED = tl.constexpr(bool(knobs.runtime.interpret))
SMALLEST_NORMAL = tl.constexpr(2.0**-126)
HELD = tl.constexpr(0.999999e12)  # inverse norms are above where the norm is held at its least, 1e-12


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


@triton.jit
def product(a, b, sum, precision: tl.constexpr):
    """a @ b, added to ``sum`` where it is not None, in float32. The interpreter multiplies bfloat16 wrongly."""
    if INTERPRETED:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, sum, input_precision=precision)


@triton.jit
def inverse_norm(squares):
    """1 / max(norm, 1e-12) of rows whose squares add up to ``squares``, as torch.nn.functional.normalize has it."""
    norm = tl.sqrt_rn(squares)
    return 1.0 / tl.where(norm < 1e-12, 1e-12, norm)  # tl.maximum would lose a NaN


@triton.jit
def load_rows(z, i, count, d, dim: tl.constexpr):
    """Rows ``i`` and columns ``d`` of z [count, dim], 0 beyond them."""
    inside = (i < count)[:, None] & (d < dim)[None, :]
    return tl.load(z + i.to(tl.int64)[:, None] * dim + d[None, :], mask=inside, other=0.0)


@triton.jit(do_not_specialize=["count"])
def inverse_norms_kernel(
    rows,  # [count, dim]
    inverse_norms,  # [count] float32
    count,
    dim: tl.constexpr,
    block_rows: tl.constexpr,
    block_dim: tl.constexpr,
):
    i = tl.program_id(0) * block_rows + tl.arange(0, block_rows)
    squares = tl.zeros((block_rows,), tl.float32)
    for first in range(0, dim, block_dim):
        d = first + tl.arange(0, block_dim)
        x = load_rows(rows, i, count, d, dim).to(tl.float32)
        squares += tl.sum(x * x, axis=1)
    tl.store(inverse_norms + i, inverse_norm(squares), mask=i < count)


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
