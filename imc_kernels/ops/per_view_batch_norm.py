"""Batch normalisation of several views in one call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from imc_kernels import backends, eager, native
from imc_kernels.eager.per_view_batch_norm import update_running_statistics
from imc_kernels.ops import checks
from imc_kernels.ops.autograd import is_direct, memory
from imc_kernels.ops.fused_operation import FusedOperation, Gradients, Inputs, Kernels
from imc_kernels.ops.operator import Needs, of_triton
from imc_kernels.ops.precision import cast, half_as_single

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

NAME = "per_view_batch_norm"


def per_view_batch_norm(
    input: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    views: int = 1,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    momentum: float | Sequence[float] = 0.1,
    eps: float = 1e-5,
    relu: bool = False,
    residual: Tensor | None = None,
    group: ProcessGroup | None = None,
    backend: str | None = None,
) -> Tensor:
    """Normalise each channel of each view by the view's own mean and variance, as training does.

    What ``torch.nn.functional.batch_norm`` gives for each view in turn, running statistics included, so that views can
    share the layers around it as one batch. On ``cpu`` and ``triton`` kernels take all views at once, on ``cpu`` their
    bits the same for any number of threads, which torch's are not; ``cuda`` is torch's own function, view by view.
    Source: batch normalisation, arXiv 1502.03167; statistics per view, the separate passes of IMC-SwAV, arXiv
    2103.07368.

    Memory: on ``cpu``, beside result and gradients, for each element of the input at most half a byte, in the backward
    three quarters, and 64 bytes for each channel of a view; and a copy of an input, residual or gradient whose channels
    do not lie together (``torch.channels_last``). The result's do.

    Args:
        input: [V*B, C, ...], the V views one after the other; float32, float64, bfloat16 or float16.
        weight: [C], floating, or None for 1.
        bias: [C], floating, or None for 0.
        views: V.
        running_mean: [C], floating, or None; replaced by ``(1 - momentum) running_mean + momentum mean``, view by view.
        running_var: the same for the unbiased variance; given if ``running_mean`` is.
        momentum: between 0 and 1; or one for each view, as a cumulative average takes them.
        eps: added to the variance.
        relu: return ``max(result, 0)``, of the sum with the residual where there is one.
        residual: of the input's shape, floating, or None for 0: what is added to the result, as at the end of a block
            of a ResNet. The gradient reaches it.
        group: where given, the statistics of a view are those of its rows in all processes, which may hold unequally
            many, or none. The gradients of the input are those of the sum of all processes' losses; those of weight and
            bias add up to that over the processes. On ``triton``, otherwise in PyTorch.
        backend: see :mod:`imc_kernels.backends`.

    Returns:
        [V*B, C, ...], as the input and of its dtype. Half precision is computed in float32; with a weight, bias or
        residual of another dtype, in that to which torch's arithmetic promotes them.

    Raises:
        TypeError: an input is no tensor, or not of a floating dtype.
        ValueError: shapes or devices that do not fit, an empty input, or views of a single value a channel.
        NotImplementedError: the kernel is asked for a derivative that only ``backend="eager"`` has.
    """
    checks.group(NAME, group)
    alone = group is None or group.size() == 1
    input = checks.floating(NAME, "input", input, "[V*B, C, ...]", group)
    views = checks.integer(NAME, "views", views, least=1)
    if len(input) % views:
        raise ValueError(f"{NAME}: {len(input)} rows are not {views} views of equal size")
    channels = input.shape[1]
    rows = input.numel() // (views * channels)
    if alone and rows < 2:
        raise ValueError(f"{NAME}: a variance takes 2 values a channel and view, got input {list(input.shape)}")
    weight, bias = (
        None if vector is None else _vector(name, vector, input)
        for name, vector in (("weight", weight), ("bias", bias))
    )
    if (running_mean is None) != (running_var is None):
        raise ValueError(f"{NAME}: running_mean and running_var must be given together")
    if residual is not None:
        residual = checks.floating(NAME, "residual", residual, "[V*B, C, ...]", group)
        if residual.shape != input.shape:
            raise ValueError(
                f"{NAME}: residual must have the shape of the input, {list(input.shape)}, got {list(residual.shape)}"
            )
    if running_mean is not None and running_var is not None:
        _vector("running_mean", running_mean, input)
        _vector("running_var", running_var, input)
    momenta = _momenta(momentum, views)
    eps = checks.number(NAME, "eps", eps, checks.POSITIVE)
    relu = checks.flag(NAME, "relu", relu)
    promoted = checks.together(NAME, input=input, weight=weight, bias=bias, residual=residual)
    form, offered = (NAME, OFFERED) if group is None else (f"{NAME} with a group", WITH_GROUP)
    chosen = backends.choose(form, offered, input.device, promoted, backend)
    single = half_as_single(promoted)
    # Contiguous for torch's function too, whose gradient reads a strided weight as if it were (2.13, CPU).
    w, b = (None if vector is None else cast(vector, single).contiguous() for vector in (weight, bias))
    if chosen not in OPERATION.kernels:
        # Whose sums over half precision are not of float32 on the CPU in every memory order (2.13).
        x = cast(input, single) if input.is_cpu or single != torch.float32 or group is not None else input
        beside = None if residual is None else cast(residual, x.dtype)
        mean, variance = (None if vector is None else cast(vector, single) for vector in (running_mean, running_var))
        result = eager.per_view_batch_norm(x, w, b, mean, variance, views, momenta, eps, relu, beside, group)
        for given, moved in ((running_mean, mean), (running_var, variance)):
            if given is not None and moved is not None and moved is not given:
                given.copy_(moved)
        return cast(result, input.dtype)
    if single != torch.float32 or (residual is not None and residual.dtype != input.dtype):
        input_given, residual = cast(input, single), None if residual is None else cast(residual, single)
    else:  # the kernel reads half precision, where its maps are of one kind
        input_given = input
    tensors = (_channels_together(input_given), w, b, None if residual is None else _channels_together(residual))
    options: tuple[Any, ...] = (views, eps, relu)
    running = None if running_mean is None or running_var is None else (running_mean, running_var)
    moves = chosen == "triton" and running is not None and _moved_by_kernel(*running, momenta, *tensors)
    moving = (*running, momenta[0]) if running is not None and moves else None
    if group is not None:
        from imc_kernels.ops import distributed  # which imports the compiler

        output, *statistics, rows = distributed.per_view_batch_norm(chosen, tensors, options, moving, group)
    else:
        output, *statistics = OPERATION(chosen, tensors, options if moving is None else (*options, moving))
    if running is not None and not moves:
        update_running_statistics(*running, statistics[0], statistics[1], rows, momenta)
    return cast(output, input.dtype)


def _moved_by_kernel(mean: Tensor, variance: Tensor, momenta: Sequence[float], *inputs: Tensor | None) -> bool:
    """Whether Triton's kernel may move these statistics. An operator of torch's may not: it changes nothing."""
    plain = len(set(momenta)) == 1 and all(
        x.dtype == torch.float32 and x.is_contiguous() and not x.is_neg() for x in (mean, variance)
    )
    return plain and is_direct(NAME, "triton", mean, variance, *inputs)


def _vector(name: str, vector: Tensor, input: Tensor) -> Tensor:
    vector = checks.floating(NAME, name, vector, "[C]")
    if len(vector) != input.shape[1] or vector.device != input.device:
        raise ValueError(
            f"{NAME}: {name} must have one element for each of the input's {input.shape[1]} channels, on "
            f"{input.device}, got {list(vector.shape)} on {vector.device}"
        )
    return vector


def _momenta(momentum: float | Sequence[float], views: int) -> Sequence[float]:
    """One for each view."""
    if isinstance(momentum, (list, tuple)):
        return checks.several(NAME, "momentum", momentum, checks.PROBABILITY, views)
    return [checks.number(NAME, "momentum", momentum, checks.PROBABILITY)] * views


def _channels_together(x: Tensor) -> Tensor:
    """``x``, copied where its channels do not lie together: once, for the backward too."""
    return x if x.movedim(1, -1).is_contiguous() else x.movedim(1, -1).contiguous().movedim(-1, 1)


def _cpu(inputs: Inputs, options: Sequence[Any], needs: Needs) -> tuple[Tensor, Tensor, Tensor]:
    """The output, and mean and variance [V, C]."""
    x, weight, bias, residual = inputs
    views, *others = options
    output, mean, variance = _empty("cpu", inputs, options, needs)
    beside = None if residual is None else _rows(residual, views)
    native.call("_cpu", NAME, _rows(x, views), weight, bias, beside, _rows(output, views), mean, variance, *others)
    return output, mean, variance


def _cpu_backward(
    inputs: Inputs, saved: Sequence[Tensor], grad_output: Tensor, options: Sequence[Any], needs: Needs
) -> Gradients:
    x, weight, bias, residual = inputs
    views, *others = options
    of_input, of_residual = (_with_channels_together(x) if need else None for need in (needs[0], needs[3]))
    of_weight, of_bias = (_of_channels(x, x.shape[1]) if need else None for need in needs[1:3])
    rows, beside, of_rows, of_beside = (
        None if maps is None else _rows(maps, views) for maps in (x, residual, of_input, of_residual)
    )
    given = (rows, weight, bias, beside, *saved, _rows(grad_output, views))
    native.call("_cpu", "per_view_batch_norm_backward", *given, of_rows, of_weight, of_bias, of_beside, *others)
    return of_input, of_weight, of_bias, of_residual


def _rows(x: Tensor, views: int) -> Tensor:
    """[V*B, C, ...] -> [V, N, C], contiguous; no copy of one whose channels lie together."""
    return memory(x.movedim(1, -1).reshape(views, -1, x.shape[1]))


def _with_channels_together(like: Tensor) -> Tensor:
    """Memory of which :func:`_rows` is a view; or for a vector. Itself it is no view, which could not be edited in
    place, as ``relu(inplace=True)`` and ``+=`` do."""
    order = (0, *range(2, like.dim()), 1)[: like.dim()]
    return torch.empty_permuted(like.shape, order, dtype=like.dtype, device=like.device)


def _of_channels(x: Tensor, *shape: int) -> Tensor:
    """Memory for what the channels of ``x`` have, in the precision that is computed in."""
    return x.new_empty(size=shape, dtype=half_as_single(x.dtype))


def _empty(backend: str, inputs: Inputs, options: Sequence[Any], needs: Needs) -> tuple[Tensor, Tensor, Tensor]:
    x, views = inputs[0], options[0]
    mean = _of_channels(x, views, x.shape[1])
    return _with_channels_together(x), mean, torch.empty_like(mean)


OPERATION = FusedOperation(
    NAME,
    {
        "triton": Kernels(of_triton(NAME), of_triton(NAME, "per_view_batch_norm_backward"), reads_half=True),
        "cpu": Kernels(_cpu, _cpu_backward, reads_half=True),
    },
    inputs=("input", "weight?", "bias?", "residual?"),
    options={"views": "int", "eps": checks.POSITIVE, "relu": "bool"},
    empty=_empty,
    results=3,
    gradient_like=_with_channels_together,
)
OFFERED = (*OPERATION.backends, "cuda")  # which is torch's own function
WITH_GROUP = ("triton", "eager")
