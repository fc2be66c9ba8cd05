"""The parameters of a crop, from where they lie or drawn: imc_kernels/ops/crop_parameters.py says how."""

import triton
import triton.language as tl

from imc_kernels.ops.crop_parameters import ATTEMPTS as MOST_ATTEMPTS
from imc_kernels.ops.crop_parameters import INCREMENT as STEP
from imc_kernels.ops.crop_parameters import MULTIPLIERS, WORDS, Column

COLUMNS = tl.constexpr(len(Column))
TOP, LEFT, HEIGHT, WIDTH = (tl.constexpr(int(c)) for c in (Column.TOP, Column.LEFT, Column.HEIGHT, Column.WIDTH))
BRIGHTNESS, CONTRAST = (tl.constexpr(int(c)) for c in (Column.BRIGHTNESS, Column.CONTRAST))
SATURATION, HUE, BLUR = (tl.constexpr(int(c)) for c in (Column.SATURATION, Column.HUE, Column.BLUR))
FLIP, JITTER = (tl.constexpr(int(c)) for c in (Column.FLIP, Column.JITTER))
GRAYSCALE, ORDER = (tl.constexpr(int(c)) for c in (Column.GRAYSCALE, Column.ORDER))

INCREMENT, FIRST_MULTIPLIER, SECOND_MULTIPLIER = (tl.constexpr(x) for x in (STEP, *MULTIPLIERS))
ATTEMPTS, LANES = tl.constexpr(MOST_ATTEMPTS), tl.constexpr(WORDS)
REST = tl.constexpr(2 * MOST_ATTEMPTS - WORDS)  # the word whose high half is the first number behind the attempts
ROUNDING = tl.constexpr(1.5 * 2.0**52)  # added to a float64 it leaves an integer, rounded to nearest even


@triton.jit
def given(p):
    """Of a row of parameters: the box, the factors, the blur, what happens, and the jitter's order."""
    return (
        tl.load(p + TOP).to(tl.int32),
        tl.load(p + LEFT).to(tl.int32),
        tl.load(p + HEIGHT).to(tl.int32),
        tl.load(p + WIDTH).to(tl.int32),
        tl.load(p + BRIGHTNESS),
        tl.load(p + CONTRAST),
        tl.load(p + SATURATION),
        tl.load(p + HUE),
        tl.load(p + BLUR),
        tl.load(p + FLIP) > 0,
        tl.load(p + JITTER) > 0,
        tl.load(p + GRAYSCALE) > 0,
        tl.load(p + ORDER).to(tl.int32),
    )


@triton.jit
def mixed(z):
    """SplitMix64's output function of uint64."""
    z = (z ^ (z >> 30)) * FIRST_MULTIPLIER
    z = (z ^ (z >> 27)) * SECOND_MULTIPLIER
    return z ^ (z >> 31)


@triton.jit
def words(key, lanes):
    return mixed(key + (lanes + 1).to(tl.uint64) * INCREMENT)


@triton.jit
def low_half(word):
    return (word & 0xFFFFFF).to(tl.float64) * 2.0**-24


@triton.jit
def high_half(word):
    return ((word >> 40) & 0xFFFFFF).to(tl.float64) * 2.0**-24


@triton.jit
def at_lane(numbers, lanes, lane):
    return tl.sum(tl.where(lanes == lane, numbers, 0.0), axis=0)


@triton.jit
def side_and_start(tried, lanes, first, found, central, position, whole: tl.constexpr):
    """Of the box along an axis: its length and its first pixel."""
    side = tl.where(found, at_lane(tried, lanes, first), central)
    free = whole - side
    start = tl.floor(tl.where(found, position * (free + 1), free / 2))
    return side.to(tl.int32), start.to(tl.int32)


@triton.jit
def drawn(step, key, view, sample, height: tl.constexpr, width: tl.constexpr, law: tl.constexpr):
    """What :func:`given` gives, from the numbers of (seed, step, sample, view)."""
    key = key.to(tl.int64)
    if step is not None:
        key = mixed((key + tl.load(step)).to(tl.uint64, bitcast=True)).to(tl.int64, bitcast=True)
    key = mixed((key + view).to(tl.uint64, bitcast=True)).to(tl.int64, bitcast=True)
    key = mixed((key + sample).to(tl.uint64, bitcast=True))
    lanes = tl.arange(0, LANES)
    own = words(key, lanes)
    high = high_half(own)

    # The box: the numbers of the attempts are the first 2 ATTEMPTS of all low halves, then all high ones.
    second = lanes + ATTEMPTS
    beyond = second >= LANES
    other = words(key, tl.where(beyond, second - LANES, second))
    ratio = tl.where(beyond, high_half(other), low_half(other))
    area = tl.sqrt(low_half(own) * law[0] + law[1])
    root = tl.exp(ratio * law[2] + law[3])
    heights = area / root + ROUNDING - ROUNDING
    widths = area * root + ROUNDING - ROUNDING
    fits = (heights >= 1) & (heights <= height) & (widths >= 1) & (widths <= width) & (lanes < ATTEMPTS)
    first = tl.min(tl.where(fits, lanes, LANES), axis=0)
    found = first < LANES
    box_height, top = side_and_start(heights, lanes, first, found, law[4], at_lane(high, lanes, REST), height)
    box_width, left = side_and_start(widths, lanes, first, found, law[5], at_lane(high, lanes, REST + 1), width)

    brightness = law[6] + at_lane(high, lanes, REST + 2) * law[7]
    contrast = law[8] + at_lane(high, lanes, REST + 3) * law[9]
    saturation = law[10] + at_lane(high, lanes, REST + 4) * law[11]
    hue = law[12] + at_lane(high, lanes, REST + 5) * law[13]
    sigma = law[14] + at_lane(high, lanes, REST + 6) * law[15]
    blurred = at_lane(high, lanes, REST + 10) < law[19]
    return (
        top,
        left,
        box_height,
        box_width,
        brightness.to(tl.float32),
        contrast.to(tl.float32),
        saturation.to(tl.float32),
        hue.to(tl.float32),
        tl.where(blurred, sigma, 0.0).to(tl.float32),
        at_lane(high, lanes, REST + 7) < law[16],
        at_lane(high, lanes, REST + 8) < law[17],
        at_lane(high, lanes, REST + 9) < law[18],
        tl.floor(at_lane(high, lanes, REST + 11) * 24).to(tl.int32),
    )
