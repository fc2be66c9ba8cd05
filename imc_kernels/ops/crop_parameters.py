"""The random numbers of :func:`multi_crop`, as a pure function of (seed, step, sample index, view)."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from enum import IntEnum
from typing import ParamSpec

import torch
from torch import Tensor

from imc_kernels.ops import checks
from imc_kernels.ops.constants import constants

NAME = "draw_crop_parameters"

MOST_VIEWS = 2**16
MOST_SIDE = 2**24  # whole pixels that float32 holds
ATTEMPTS = 10  # boxes tried before the central one, as in torchvision's RandomResizedCrop


class Column(IntEnum):
    """Columns of the parameters [V, B, len(Column)], float32.

    One tensor rather than one per quantity: kernels read a crop's numbers from one place, and it is sliced by view,
    reordered by sample and moved between devices as a whole. The integers among them are exact in float32.
    """

    TOP = 0  # the box, whole pixels of the source image
    LEFT = 1
    HEIGHT = 2
    WIDTH = 3
    BRIGHTNESS = 4  # factors, at least 0
    CONTRAST = 5
    SATURATION = 6
    HUE = 7  # turns of the colour circle, -0.5 to 0.5
    BLUR = 8  # standard deviation of the Gaussian blur in pixels of the crop, 0 for none
    FLIP = 9  # 1: mirrored left to right
    JITTER = 10  # 1: brightness, contrast, saturation and hue are changed
    GRAYSCALE = 11  # 1: the crop loses its colour
    ORDER = 12  # the jitter's four operations run in the permutation of this rank, 0 to 23 in lexicographic order


# SplitMix64 (Steele, Lea and Flood, OOPSLA 2014): its increment and the multipliers of its output function.
INCREMENT = 0x9E3779B97F4A7C15
MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
WORDS = 16  # 64-bit words a crop, each two uniform numbers of 24 bits


class CropDraw:
    """The parameters of random resized crops with colour jitter, for :func:`multi_crop`, which draws them itself.

    The numbers of a crop are a hash of (seed, step, sample index, view), whatever else is drawn with it: the batch's
    order, the number of ranks it is cut over, threads and device change nothing. The box is that of torchvision's
    RandomResizedCrop: of 10 draws of area and log aspect ratio the first that fits, else the central box nearest to the
    whole image. Sources: Inception crops, arXiv 1409.4842; jitter, grayscale and blur, SimCLR, arXiv 2002.05709.

    On a GPU the kernels of :func:`multi_crop` draw within their own launch: nothing is copied, and the step may be a
    tensor there, which a captured CUDA graph advances. :meth:`parameters` gives the numbers: float32 [V, B, 13].

    Args:
        seed, step: integers of 64 bits. The step may be an int64 tensor [] on the indices' device.
        indices: int64 [B], the samples' numbers in the data set.
        views: number V of views drawn, up to 2^16.
        first_view: number of the first; views of another size or scale take other numbers.
        height, width: of the source images, pixels, up to 2^24.
        scale: range of the box's area as a fraction of the image's.
        ratio: range of the box's width / height.
        flip, jitter_probability, grayscale, blur_probability: of each happening, 0 to 1.
        brightness, contrast, saturation: half-widths x of the factors' range, [max(0, 1 - x), 1 + x].
        hue: half-width of the rotation, in turns, at most 0.5.
        blur_sigma: range of the blur's standard deviation, pixels of the crop.

    Raises:
        TypeError: indices are no int64 tensor, step is a tensor of another dtype, or an option is of another type.
        ValueError: indices of another rank, a step on another device, or an option out of its range.
    """

    def __init__(
        self,
        seed: int,
        step: int | Tensor,
        indices: Tensor,
        *,
        views: int,
        first_view: int = 0,
        height: int,
        width: int,
        scale: tuple[float, float] = (0.2, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        flip: float = 0.5,
        jitter_probability: float = 0.8,
        brightness: float = 0.4,
        contrast: float = 0.4,
        saturation: float = 0.4,
        hue: float = 0.1,
        grayscale: float = 0.2,
        blur_probability: float = 0.0,
        blur_sigma: tuple[float, float] = (0.1, 2.0),
    ) -> None:
        if isinstance(step, Tensor):
            if step.dtype != torch.int64 or step.dim() > 0:
                raise TypeError(
                    f"{NAME}: step must be an integer or an int64 tensor [], got {step.dtype} {list(step.shape)}"
                )
        else:
            step = checks.integer(NAME, "step", step)
        _check_indices(indices)
        if isinstance(step, Tensor) and step.device != indices.device:
            raise ValueError(f"{NAME}: indices are on {indices.device} and step on {step.device}; move one")
        self.seed, self.step, self.indices = checks.integer(NAME, "seed", seed), step, indices
        self.first_view = checks.integer(NAME, "first_view", first_view)
        self.views, self.height, self.width = (
            checks.integer(NAME, name, value, 1, most)
            for name, value, most in (
                ("views", views, MOST_VIEWS),
                ("height", height, MOST_SIDE),
                ("width", width, MOST_SIDE),
            )
        )
        self.scale, self.ratio, blur_sigma = (
            _range(name, ends) for name, ends in (("scale", scale), ("ratio", ratio), ("blur_sigma", blur_sigma))
        )
        factors = (
            checks.number(NAME, name, value, checks.NOT_NEGATIVE)
            for name, value in (("brightness", brightness), ("contrast", contrast), ("saturation", saturation))
        )
        hue = checks.number(NAME, "hue", hue, _HUE)
        # Of brightness, contrast, saturation, hue and blur.
        self.ranges = (*((max(0.0, 1 - x), 1 + x) for x in factors), (-hue, hue), blur_sigma)
        self.flip, self.jitter_probability, self.grayscale, self.blur_probability = (
            checks.number(NAME, name, value, checks.PROBABILITY)
            for name, value in (
                ("flip", flip),
                ("jitter_probability", jitter_probability),
                ("grayscale", grayscale),
                ("blur_probability", blur_probability),
            )
        )

    def law(self) -> tuple[float, ...]:
        """What a crop's uniform numbers are turned into its parameters by, as a kernel takes it.

        Span and least of the area and of half the logarithm of width / height; height and width of the central box;
        lowest and span of the brightness, contrast, saturation, hue and blur; the four probabilities.
        """
        least, most = self.scale
        low, high = (math.log(end) for end in self.ratio)
        spread = (end for low, high in self.ranges for end in (low, high - low))
        rates = (self.flip, self.jitter_probability, self.grayscale, self.blur_probability)
        area = ((most - least) * self.height * self.width, least * self.height * self.width)
        return (*area, (high - low) / 2, low / 2, *map(float, self._central()), *spread, *rates)

    def steps(self) -> tuple[Tensor, ...]:
        """The step, where it is a tensor."""
        return (self.step,) if isinstance(self.step, Tensor) else ()

    def key(self) -> int:
        """What the number of a view is added to, as an int64: where the step is a tensor, what that is added to."""
        whole = _mix(self.seed)
        return _signed(whole if isinstance(self.step, Tensor) else _mix(whole + self.step))

    def _central(self) -> tuple[int, int]:
        """Height and width of the box where none of the attempts fits."""
        height, width = self.height, self.width
        if width / height < self.ratio[0]:
            height = max(1, round(width / self.ratio[0]))
        elif width / height > self.ratio[1]:
            width = max(1, round(height * self.ratio[1]))
        return height, width

    def parameters(self) -> Tensor:
        """float32 [V, B, 13] on the indices' device; the columns are those of :class:`Column`.

        Memory: beside the result, less than 2 KiB a crop. Nothing is copied from the host and nothing waits for the
        device.
        """
        uniform = _uniforms(self.seed, self.step, self.indices, self.first_view, self.views)  # [32, V, B]
        planes = torch.empty(len(Column), *uniform.shape[1:], dtype=torch.float64, device=self.indices.device)
        rest = uniform[2 * ATTEMPTS :]
        self._fill_boxes(planes[:4], uniform[: 2 * ATTEMPTS], rest[:2])
        # Options travel with a launch, also in a tensor [] on the host. One of several would be copied, for which a
        # device waits.
        host = "meta" if self.indices.is_meta else "cpu"
        for plane, drawn, (low, high) in zip(planes[Column.BRIGHTNESS :], rest[2:], self.ranges, strict=False):
            torch.add(torch.tensor(low, dtype=torch.float64, device=host), drawn, alpha=high - low, out=plane)
        rates = (self.flip, self.jitter_probability, self.grayscale)
        for plane, drawn, rate in zip(planes[Column.FLIP :], rest[7:], rates, strict=False):
            torch.lt(drawn, rate, out=plane)
        planes[Column.BLUR] *= rest[10] < self.blur_probability
        torch.floor(rest[11] * 24, out=planes[Column.ORDER])
        return planes.permute(1, 2, 0).to(torch.float32, memory_format=torch.contiguous_format)

    def _fill_boxes(self, boxes: Tensor, attempts: Tensor, position: Tensor) -> None:
        """[20, V, B] and [2, V, B] uniform numbers -> float64 [4, V, B]: top, left, height, width.

        In float64, so that the last bit of an exponential, which is not the same on every device, does not move a
        rounded side in practice.
        """
        height, width = self.height, self.width
        area_span, least_area, root_span, least_root = self.law()[:4]
        area = attempts[:ATTEMPTS] * area_span + least_area
        root = (attempts[ATTEMPTS:] * root_span + least_root).exp_()  # of width / height
        area.sqrt_()
        tried = torch.empty(2, *area.shape, dtype=torch.float64, device=area.device)
        torch.div(area, root, out=tried[0])
        torch.mul(area, root, out=tried[1])
        tried.round_()
        heights, widths = tried.unbind()
        fits = (heights.clamp(1, height) == heights) & (widths.clamp(1, width) == widths)  # [10, V, B]
        # The first that fits has the largest rank; none gives 0.
        ranks = torch.arange(ATTEMPTS, 0, -1, device=fits.device)[:, None, None]
        rank = fits.double().mul_(ranks).amax(0)
        found = rank > 0
        first = (ATTEMPTS - rank).clamp_(max=ATTEMPTS - 1).long()[None]
        for axis, (side, whole) in enumerate(zip(self._central(), (height, width), strict=True)):
            boxes[2 + axis] = torch.where(found, tried[axis].gather(0, first)[0], side)
            torch.sub(whole, boxes[2 + axis], out=boxes[axis])
        free = boxes[:2]
        torch.floor(torch.where(found, position * (free + 1), free / 2), out=free)


P = ParamSpec("P")


def _at_once(draw: Callable[P, CropDraw]) -> Callable[P, Tensor]:
    def draw_crop_parameters(*arguments: P.args, **options: P.kwargs) -> Tensor:
        return draw(*arguments, **options).parameters()

    about, _, rest = (inspect.getdoc(draw) or "").partition("\n\nOn a GPU")
    arguments, _, errors = rest.partition("Args:")[2].partition("Raises:")
    draw_crop_parameters.__doc__ = (
        "Draw the parameters of random resized crops with colour jitter, for :func:`multi_crop`: a :class:`CropDraw`\n"
        f"in numbers. {about.partition(chr(10) * 2)[2]}\n\nArgs:{arguments}"
        "Returns:\n    float32 [V, B, 13] on the indices' device; the columns are those of :class:`Column`.\n\n"
        f"Raises:{errors}"
    )
    signature = inspect.signature(draw).replace(return_annotation="Tensor")
    draw_crop_parameters.__signature__ = signature  # type: ignore[attr-defined]  # shown by help()
    given = {name: parameter.annotation for name, parameter in signature.parameters.items()}
    draw_crop_parameters.__annotations__ = {**given, "return": "Tensor"}
    return draw_crop_parameters


draw_crop_parameters = _at_once(CropDraw)


_HUE = checks.Range("a number from 0 to 0.5", lambda value: 0 <= value <= 0.5)


def _check_indices(indices: Tensor) -> None:
    if not isinstance(indices, Tensor) or indices.dtype != torch.int64:
        got = indices.dtype if isinstance(indices, Tensor) else type(indices).__name__
        raise TypeError(f"{NAME}: indices must be an int64 tensor [B], got {got}")
    checks.dense(NAME, "indices", indices, "[B]")
    if indices.dim() != 1:
        raise ValueError(f"{NAME}: indices must have the shape [B], got {list(indices.shape)}")


def _range(name: str, ends: tuple[float, float]) -> tuple[float, float]:
    low, high = checks.several(NAME, name, ends, checks.POSITIVE, 2)
    if low > high:
        raise ValueError(f"{NAME}: {name} must be a range (low, high) with low <= high, got {(low, high)}")
    return low, high


def _signed(word: int) -> int:
    """The low 64 bits of ``word`` as the int64 of the same bits."""
    return (word + 2**63) % 2**64 - 2**63


def _mix(z: int) -> int:
    """SplitMix64's output function, a bijection of the 64-bit integers."""
    z %= 2**64
    z = (z ^ (z >> 30)) * MULTIPLIERS[0] % 2**64
    z = (z ^ (z >> 27)) * MULTIPLIERS[1] % 2**64
    return z ^ (z >> 31)


def _mix_(z: Tensor) -> Tensor:
    """The same of an int64 tensor, in place."""
    shifted = torch.empty_like(z)
    for shift, multiplier in ((30, MULTIPLIERS[0]), (27, MULTIPLIERS[1]), (31, 1)):
        torch.bitwise_right_shift(z, shift, out=shifted)
        z ^= shifted.bitwise_and_(2 ** (64 - shift) - 1)  # int64 shifts its sign in; these bits are 0 instead
        if multiplier != 1:
            z *= _signed(multiplier)
    return z


def _view_keys(seed: int, step: int | Tensor, views: range, device: torch.device) -> Tensor:
    """int64 [V], one hash of (seed, step, view) each. From a step in a tensor by the same arithmetic there."""
    whole = _mix(seed)
    if isinstance(step, Tensor):
        key = _mix_(step + _signed(whole))
        return _mix_(key + torch.arange(views.start, views.stop, device=device))
    whole = _mix(whole + step)
    return constants([_signed(_mix(whole + view)) for view in views], torch.int64, device)


def _uniforms(seed: int, step: int | Tensor, indices: Tensor, first_view: int, views: int) -> Tensor:
    """Uniform numbers in [0, 1), multiples of 2^-24, as float64 [2 * WORDS, V, B]."""
    keys = _view_keys(seed, step, range(first_view, first_view + views), indices.device)
    keys = _mix_(keys[:, None] + indices)  # [V, B]: for one (seed, step, view) no two samples share a key
    counters = torch.arange(1, WORDS + 1, device=indices.device) * _signed(INCREMENT)
    words = _mix_(keys + counters[:, None, None])
    uniform = torch.empty(2, *words.shape, dtype=torch.float64, device=indices.device)
    uniform[0] = words & 0xFFFFFF
    uniform[1] = words.bitwise_right_shift_(40).bitwise_and_(0xFFFFFF)
    return uniform.mul_(2.0**-24).flatten(0, 1)
