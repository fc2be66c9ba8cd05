"""Random crops of several views: crop, antialiased resize, flip, colour jitter, grayscale, blur and normalisation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from imc_kernels import backends, eager, native
from imc_kernels.ops import checks
from imc_kernels.ops.autograd import has_values, is_direct
from imc_kernels.ops.constants import constants
from imc_kernels.ops.crop_parameters import Column, CropDraw
from imc_kernels.ops.fused_operation import FusedOperation, Kernels
from imc_kernels.ops.operator import Needs, of_triton
from imc_kernels.ops.precision import specification

NAME = "multi_crop"


def multi_crop(
    images: Tensor,
    indices: Tensor,
    parameters: Tensor | CropDraw,
    *,
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.channels_last,
    backend: str | None = None,
) -> Tensor:
    """Cut, resize and augment V crops of each of B images.

    A crop is its box of the image, resized by the antialiased bilinear filter of Pillow (the box is cut out first: no
    pixel outside it counts), mirrored or not, then, where its parameters say so: brightness, contrast, saturation and
    hue in its own order, each clamped to [0, 1]; grayscale; a Gaussian blur of 9 x 9 pixels with reflected edges. Last
    comes ``(crop - mean) / std``. Mirroring before the crop, as some transforms do, has the same distribution, since
    boxes are as likely as their mirror images.

    All stages run in float32 (float64 for a float64 result) on values in [0, 1]. Pillow rounds to 8 bits after every
    stage: its crops differ from these by about a step of 1/255, by 17 where it has rounded a hue, and by 28 at most in
    what was measured of all stages in turn (docs/numerics.md). The definitions of the colour
    operations are those of torchvision, with Pillow's luma (0.299, 0.587, 0.114). Images of one channel have no
    saturation, hue or colour to lose. There is no gradient.

    Memory: on ``cpu``, beside the result, C size (W + 3 size) + 4 (H + W) numbers a thread. ``size`` times the images'
    larger side plus ``size`` must stay below 2^30; ``cuda`` takes other sizes up to 2^30,
    C size^2 among them; ``triton`` takes crops of up to 6,120 pixels.

    Args:
        images: uint8 [M, H, W, C], C 1 or 3, the whole data set; only the images named by ``indices`` are read.
        indices: int64 [B], each in [0, M).
        parameters: float32 [V, B, 13] from :func:`draw_crop_parameters`, for these views and samples; or a
            :class:`CropDraw` of them, which is drawn here: on GPUs by the kernels themselves, the same numbers, but for
            what the last bit of a device's exponential may move.
        size: height and width of the crops, pixels.
        mean, std: C numbers each, of values in [0, 1].
        dtype: of the result: float32, float64, bfloat16 or float16 (rounded once, to nearest even).
        memory_format: ``torch.channels_last`` or ``torch.contiguous_format``, of the crops as [V*B, C, size, size].
        backend: see :mod:`imc_kernels.backends`.

    Returns:
        [V, B, C, size, size] of ``dtype``, on the images' device.

    Raises:
        TypeError: an input is no tensor or not of its dtype, ``dtype`` no floating one, or an option of another type.
        ValueError: shapes or devices that do not fit, a number out of its range, or a bad option. Values of indices and
            parameters are checked on the CPU only: elsewhere that would wait for the device. There the ``cuda`` backend
            fills a crop with NaN whose index, box or order is out of its range, and reads nothing for it.
    """
    if isinstance(parameters, CropDraw):
        _check_draw(images, indices, parameters)
    else:
        _check_tensors(images, indices, parameters)
    size = checks.integer(NAME, "size", size, least=1)
    mean = checks.several(NAME, "mean", mean, checks.FINITE, images.shape[3])
    std = checks.several(NAME, "std", std, checks.POSITIVE, images.shape[3])
    _check_options(images, size, dtype, memory_format)
    # The dtype that a backend must serve is that of the result.
    chosen = backends.choose(NAME, OPERATION.backends, images.device, dtype, backend)
    options = (size, dtype, mean, std, memory_format == torch.channels_last)
    if isinstance(parameters, CropDraw):
        if chosen in DRAWING and is_direct(NAME, chosen, images, indices, parameters.indices, *parameters.steps()):
            return KERNELS[chosen]((images, indices, parameters), options, ())[0]
        parameters = parameters.parameters()
    tensors = (images, indices, parameters.resolve_neg())
    if chosen != "eager":
        return OPERATION(chosen, tensors, options)[0]
    if images.is_cpu and all(map(has_values, tensors)):
        _check_values(*tensors)
    return specification(eager.multi_crop, *tensors, size, dtype, mean, std, memory_format)


def _check_draw(images: Tensor, indices: Tensor, draw: CropDraw) -> None:
    _check_tensors(images, indices)
    _, height, width, _ = images.shape
    if (draw.height, draw.width) != (height, width):
        raise ValueError(
            f"{NAME}: the draw must be for images of {height} x {width}, got one for {draw.height} x {draw.width}"
        )
    if draw.indices.shape != indices.shape or draw.indices.device != indices.device:
        raise ValueError(
            f"{NAME}: the draw's indices must be [B] with B = {len(indices)}, the number of indices, on "
            f"{indices.device}, got {list(draw.indices.shape)} on {draw.indices.device}"
        )


COLUMNS = len(Column)
INPUTS = (
    ("images", torch.uint8, 4, "[M, H, W, C]"),
    ("indices", torch.int64, 1, "[B]"),
    ("parameters", torch.float32, 3, f"[V, B, {COLUMNS}]"),
)


def _check_tensors(images: Tensor, *others: Tensor) -> None:
    device = getattr(images, "device", None)
    for tensor, (name, dtype, rank, layout) in zip((images, *others), INPUTS, strict=False):
        checks.dense(NAME, name, tensor, layout)
        if tensor.dtype != dtype:
            raise TypeError(f"{NAME}: {name} {layout} must be {dtype}, got {tensor.dtype}")
        if tensor.dim() != rank or tensor.numel() == 0:
            raise ValueError(f"{NAME}: {name} must have the shape {layout}, none of them 0, got {list(tensor.shape)}")
        if tensor.device != device:
            raise ValueError(f"{NAME}: images are on {device} and {name} on {tensor.device}; move one")
    if images.shape[3] not in (1, 3):
        raise ValueError(f"{NAME}: images [M, H, W, C] must have 1 or 3 channels, got {list(images.shape)}")
    if len(others) == 1:
        return
    indices, parameters = others
    if parameters.requires_grad:
        raise ValueError(f"{NAME}: parameters are constants; pass parameters.detach()")
    _, samples, columns = parameters.shape
    if samples != indices.shape[0] or columns != COLUMNS:
        raise ValueError(
            f"{NAME}: parameters must be [V, B, {COLUMNS}] with B = {len(indices)}, the number of indices, got "
            f"{list(parameters.shape)}"
        )


def _check_options(images: Tensor, size: int, dtype: torch.dtype, memory_format: torch.memory_format) -> None:
    if dtype not in backends.FLOATING:
        raise TypeError(f"{NAME}: dtype must be float32, float64, bfloat16 or float16, got {dtype}")
    if memory_format not in (torch.channels_last, torch.contiguous_format):
        raise ValueError(f"{NAME}: memory_format must be channels_last or contiguous_format, got {memory_format}")
    _, height, width, _ = images.shape
    side = max(height, width)
    if 2 * max(size, 2) * (side + size) >= 2**31:  # what the weights' integers can hold
        raise ValueError(f"{NAME}: crops of {size} pixels from images of {side} are too large")


def _check_values(images: Tensor, indices: Tensor, parameters: Tensor) -> None:
    count, height, width, _ = images.shape
    low, high = indices.aminmax()
    if low < 0 or high >= count:
        raise ValueError(f"{NAME}: indices must lie in [0, {count}), got {int(low)} to {int(high)}")
    largest = torch.finfo(torch.float32).max
    lows = parameters.new_tensor([0, 0, 1, 1, 0, 0, 0, -0.5, 0, 0, 0, 0, 0])
    highs = parameters.new_tensor([height, width, height, width, *[largest] * 3, 0.5, largest, 1, 1, 1, 23])
    # A minimum of NaN is NaN, which fails every comparison.
    rows = parameters.flatten(0, 1)
    inside = (rows.amin(0) >= lows) & (rows.amax(0) <= highs)
    if not inside.all():
        column = Column(int(inside.int().argmin()))
        raise ValueError(
            f"{NAME}: parameters of the column {column.name} must lie in [{lows[column]:g}, {highs[column]:g}], got "
            f"{rows[:, column].min():g} to {rows[:, column].max():g}"
        )
    boxes = rows[:, :4]
    ends = boxes[:, :2] + boxes[:, 2:]
    if not (ends <= parameters.new_tensor([height, width])).all() or not (boxes == boxes.floor()).all():
        raise ValueError(f"{NAME}: the boxes of parameters must be whole pixels inside the images, {height} x {width}")
    order = rows[:, Column.ORDER]
    if not (order == order.floor()).all():
        raise ValueError(f"{NAME}: parameters of the column ORDER must be whole numbers")


@lru_cache(maxsize=64)
def _normalisation(mean: tuple[float, ...], std: tuple[float, ...]) -> tuple[list[float], Tensor]:
    """Factors and offsets of ``x -> (x - mean) / std``: of three channels in turn, and as float64 [2, C]."""
    rows = [1 / s for s in std], [-m / s for m, s in zip(mean, std, strict=True)]
    return [number for row in rows for number in (row * 3)[:3]], torch.tensor(rows, dtype=torch.float64, device="cpu")


def _native(module: str, inputs: Sequence[Any], options: Sequence[Any], needs: Needs) -> tuple[Tensor]:
    images, indices, parameters = inputs
    size, _, mean, std, channels_last = options
    if module == "_cuda":
        native.check_cuda_sizes(NAME, *images.shape, *_counts(inputs), images.shape[3] * size**2)
    if not images.is_contiguous():  # a copy of the batch, not of the data set
        images, indices = images[indices].contiguous(), torch.arange(len(indices), device=images.device)
    crops = _memory(inputs, options)
    numbers, affine = _normalisation(tuple(mean), tuple(std))
    tensors = (crops, images, indices.contiguous())
    if module == "_cpu":
        native.call(module, NAME, *tensors, parameters.contiguous(), affine, size, channels_last)
    else:  # whose numbers travel with the launch
        drawn, key = _drawn(parameters)
        native.call(module, NAME, *tensors, *drawn, size, channels_last, *numbers, *key)
    return (crops.permute(0, 1, 4, 2, 3) if channels_last else crops,)


def _drawn(parameters: Tensor | CropDraw) -> tuple[tuple[Tensor | None, ...], tuple[float, ...]]:
    """Parameters, samples, step and law, and key and first view in two halves each, as the CUDA kernel has them."""
    if isinstance(parameters, Tensor):
        return (parameters.contiguous(), None, None, None), (0.0,) * 4
    draw, device = parameters, parameters.indices.device
    recording = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
    law = (constants if recording else _kept_constants)(draw.law(), torch.float64, device)
    step = draw.step if isinstance(draw.step, Tensor) else None
    halves = [float(half) for number in (draw.key(), draw.first_view) for half in divmod(number % 2**64, 2**32)]
    return (None, draw.indices.contiguous(), step, law), tuple(halves)


_kept_constants = lru_cache(maxsize=64)(constants)  # a run has one for each size of crops


def _checked(kernel: Callable[..., tuple[Tensor]], inputs: Sequence[Tensor], *rest: Any) -> tuple[Tensor]:
    if inputs[0].is_cpu:
        _check_values(*inputs)
    return kernel(inputs, *rest)


def _memory(inputs: Sequence[Any], options: Sequence[Any]) -> Tensor:
    """[V, B, size, size, C] or, with the channels first, [V, B, C, size, size]."""
    images = inputs[0]
    size, dtype, *_, channels_last = options
    (views, batch), channels = _counts(inputs), images.shape[3]
    shape = (views, batch, size, size, channels) if channels_last else (views, batch, channels, size, size)
    return images.new_empty(size=shape, dtype=dtype)


def _counts(inputs: Sequence[Any]) -> tuple[int, int]:
    """Views and samples."""
    _, indices, parameters = inputs
    views = parameters.views if isinstance(parameters, CropDraw) else parameters.shape[0]
    return views, indices.shape[0]


def _empty(backend: str, inputs: Sequence[Tensor], options: Sequence[Any], needs: Needs) -> tuple[Tensor]:
    crops = _memory(inputs, options)
    return (crops.permute(0, 1, 4, 2, 3) if options[-1] else crops,)


KERNELS: dict[str, Callable[..., tuple[Tensor]]] = {
    "cuda": partial(_native, "_cuda"),
    "triton": of_triton(NAME),
    "cpu": partial(_native, "_cpu"),
}
DRAWING = ("cuda", "triton")  # whose kernels take a CropDraw in place of parameters
OPERATION = FusedOperation(
    NAME,
    {name: Kernels(partial(_checked, kernel)) for name, kernel in KERNELS.items()},
    inputs=("images", "indices", "parameters"),
    options={"size": "int", "dtype": "ScalarType", "mean": "float[]", "std": "float[]", "channels_last": "bool"},
    constants=("images", "indices", "parameters"),
    empty=_empty,
)
