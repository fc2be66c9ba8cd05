"""Checks that every operation shares. Each failure is one sentence: what was wrong, and what is accepted."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from imc_kernels.backends import FLOATING
from imc_kernels.ops.autograd import has_tangent, is_transformed


def floating(operation: str, name: str, tensor: Tensor, layout: str, group: object = None) -> Tensor:
    """``tensor`` is a non-empty floating tensor whose rank is that of ``layout``, such as "[V, B, K]" or "[..., D]".
    Where a group is given, over which the batch is spread, the dimension that the layout calls B may be 0: a process
    without samples.

    Returns:
        The tensor, whose memory holds what it says: a lazily negated view (of a conjugate's imaginary part, say) is
        written out, as kernels read memory.

    Raises:
        TypeError: not a tensor, not a dense one, or not a floating dtype.
        ValueError: wrong rank, or a dimension of size zero.
    """
    dense(operation, name, tensor, layout)
    if tensor.dtype not in FLOATING:
        raise TypeError(f"{operation}: {name} must be float32, bfloat16, float16 or float64, got {tensor.dtype}")
    rank = layout.count(",") + 1
    if tensor.dim() != rank and not ("..." in layout and tensor.dim() >= rank - 1):
        raise ValueError(f"{operation}: {name} must have the shape {layout}, got {list(tensor.shape)}")
    if tensor.numel() == 0 and (group is None or _empty_but_for_samples(tensor, layout)):
        raise ValueError(f"{operation}: {name} {layout} is empty: its shape is {list(tensor.shape)}")
    return tensor.resolve_neg()


def _empty_but_for_samples(tensor: Tensor, layout: str) -> bool:
    names = layout.split(", ")
    samples = next(position for position, name in enumerate(names) if "B" in name)
    if "..." in names[0]:
        samples -= len(names)
    sizes = list(tensor.shape)
    del sizes[samples]
    return 0 in sizes


def dense(operation: str, name: str, tensor: object, layout: str) -> None:
    """``tensor`` is a tensor in torch's usual layout: not sparse, nested or of a library's own.

    Raises:
        TypeError: it is not.
    """
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{operation}: {name} must be a torch.Tensor {layout}, got {type(tensor).__name__}")
    if tensor.layout is not torch.strided or tensor.is_nested:
        kind = "nested" if tensor.is_nested else str(tensor.layout).removeprefix("torch.").lstrip("_")
        raise TypeError(f"{operation}: {name} must be a dense tensor, got a {kind} one; convert it")


def together(operation: str, **tensors: Tensor | None) -> torch.dtype:
    """The tensors, those that are not None, share one device.

    Returns:
        The dtype to which torch's arithmetic promotes them all, that of their computation: bfloat16 scores, as autocast
        makes them, fit a float32 parameter.

    Raises:
        ValueError: they do not.
    """
    first = device = promoted = None
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if promoted is None:
            first, device, promoted = name, tensor.device, tensor.dtype
            continue
        if tensor.device != device:
            raise ValueError(f"{operation}: {first} is on {device} and {name} on {tensor.device}; move one")
        if tensor.dtype != promoted:
            promoted = torch.promote_types(promoted, tensor.dtype)
    assert promoted is not None
    return promoted


def dtype(operation: str, dtype: object) -> None:
    """``dtype`` is None or a floating one that the operations have.

    Raises:
        TypeError: it is not.
    """
    if dtype is not None and dtype not in FLOATING:
        raise TypeError(
            f"{operation}: dtype must be torch.float32, torch.bfloat16, torch.float16 or torch.float64, got {dtype!r}"
        )


def group(operation: str, group: object) -> None:
    """``group`` is None or a process group of torch.distributed.

    Raises:
        TypeError: it is not.
    """
    if group is not None and not isinstance(group, torch.distributed.ProcessGroup):
        raise TypeError(f"{operation}: group must be a torch.distributed.ProcessGroup, got {type(group).__name__}")


def constant(operation: str, name: str, tensor: Tensor | None, layout: str, shape: Sequence[int]) -> Tensor | None:
    """``tensor`` is None, or a floating one of this shape to which no gradient flows.

    Raises:
        TypeError: not a tensor, or not a floating dtype.
        ValueError: another shape, or it requires a gradient.
    """
    if tensor is None:
        return None
    tensor = floating(operation, name, tensor, layout)
    if tuple(tensor.shape) != tuple(shape):
        raise ValueError(f"{operation}: {name} {layout} must have the shape {list(shape)}, got {list(tensor.shape)}")
    if tensor.requires_grad:
        raise ValueError(f"{operation}: {name} must be constant; pass {name}.detach()")
    return tensor


PAIRS = ("others", "all")


def all_pairs(operation: str, pairs: object) -> bool:
    """Whether ``pairs`` is "all", and not "others".

    Raises:
        ValueError: it is neither.
    """
    if not isinstance(pairs, str) or pairs not in PAIRS:
        raise ValueError(f'{operation}: pairs must be "others" or "all", got {pairs!r}')
    return pairs == "all"


class Range(NamedTuple):
    """Which numbers an option takes: in words, and as a function."""

    words: str
    holds: Callable[[float], bool]


# Not math.isfinite, which torch.compile cannot trace.
POSITIVE = Range("a finite number above 0", lambda value: 0 < value < math.inf)
NOT_NEGATIVE = Range("a finite number of at least 0", lambda value: 0 <= value < math.inf)
FINITE = Range("a finite number", lambda value: -math.inf < value < math.inf)
FRACTION = Range("a number of at least 0 and below 1", lambda value: 0 <= value < 1)
PROBABILITY = Range("a number from 0 to 1", lambda value: 0 <= value <= 1)


def number(operation: str, name: str, value: Any, accepted: Range) -> float:
    """The option ``value`` as a float: a real number of Python's or NumPy's, or a tensor [] that has no gradient.

    While ``torch.compile`` traces, a tensor stays one, of float64 on the CPU: its value is checked when it is there
    (:mod:`imc_kernels.ops.scheduled`).

    Raises:
        TypeError: it is none of these. A boolean is no number.
        ValueError: it is not accepted, or a tensor that requires a gradient: options are constants.
    """
    if type(value) is not float:
        value = _scalar(operation, name, value)
        held = isinstance(value, Tensor) and value.dim() == 0 and not value.is_meta
        if held and value.dtype not in (torch.bool, *COMPLEX):
            return value.to("cpu", torch.float64)  # type: ignore[return-value]
        if type(value) is not int and (isinstance(value, bool) or not isinstance(value, numbers.Real)):
            raise TypeError(f"{operation}: {name} must be {accepted.words}, got {_kind(value)}")
        try:
            value = float(value)
        except OverflowError:
            value = math.inf if value > 0 else -math.inf
    if not accepted.holds(value):
        raise ValueError(f"{operation}: {name} must be {accepted.words}, got {value:g}")
    return value


def integer(operation: str, name: str, value: Any, least: int | None = None, most: int | None = None) -> int:
    """The option ``value`` as an int: an integer of Python's or NumPy's, or an integer tensor [].

    Where run time or memory grows with an option and with nothing else that the caller has made, ``most`` ends it: a
    call with a mistyped number says so, and does not run for years.

    Raises:
        TypeError: it is none of these. A boolean is no integer, nor is a float, of whatever value.
        ValueError: it is below ``least`` or above ``most``.
    """
    if type(value) is not int:
        value = _scalar(operation, name, value)
        if not isinstance(value, torch.SymInt):
            if isinstance(value, bool) or not isinstance(value, numbers.Integral):
                raise TypeError(f"{operation}: {name} must be {_integer(least, most)}, got {_kind(value)}")
            value = int(value)
    if (least is not None and value < least) or (most is not None and value > most):
        raise ValueError(f"{operation}: {name} must be {_integer(least, most)}, got {value}")
    return value


def _integer(least: int | None, most: int | None) -> str:
    if least is None:
        return "an integer"
    return f"an integer of at least {least}" if most is None else f"an integer from {least} to {most}"


def flag(operation: str, name: str, value: Any) -> bool:
    """The option ``value`` as a bool: True or False, of Python's or NumPy's, or a boolean tensor [].

    Raises:
        TypeError: it is none of these: 1, "no" and None are not.
    """
    if type(value) is not bool:
        value = _scalar(operation, name, value)
        if not isinstance(value, bool):
            raise TypeError(f"{operation}: {name} must be True or False, got {_kind(value)}")
    return value


def several(operation: str, name: str, values: Any, accepted: Range, count: int) -> tuple[float, ...]:
    """The option ``values`` as so many floats: a sequence of what :func:`number` takes, or an array or tensor [count].

    Raises:
        TypeError: it is no sequence of numbers.
        ValueError: there are more or fewer, or one is not accepted.
    """
    words = f"{count} numbers"
    if isinstance(values, Tensor):
        _no_derivative(operation, name, values)
    if isinstance(values, (str, bytes)) or getattr(values, "ndim", 1) != 1 or not hasattr(values, "__getitem__"):
        raise TypeError(f"{operation}: {name} must be {words}, got {_kind(values)}")
    if len(values) != count:
        raise ValueError(f"{operation}: {name} must be {words}, got {len(values)}")
    return tuple(number(operation, f"{name}[{i}]", values[i], accepted) for i in range(count))


COMPLEX = (torch.complex32, torch.complex64, torch.complex128)


def _scalar(operation: str, name: str, value: Any) -> Any:
    """A tensor, array or NumPy scalar without dimensions as Python has it; while torch.compile traces, a tensor."""
    if isinstance(value, Tensor):
        _no_derivative(operation, name, value)
        return value if value.dim() or value.is_meta or torch.compiler.is_compiling() else value.item()
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value


def _no_derivative(operation: str, name: str, value: Tensor) -> None:
    if value.requires_grad or (not torch.compiler.is_compiling() and (has_tangent(value) or is_transformed(value))):
        raise ValueError(
            f"{operation}: {name} is a constant, to which no gradient flows; pass its detach(), got a tensor that "
            "requires one"
        )


def _kind(value: object) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    without = ", which has no value on the device meta" if value.is_meta else ""
    return f"a tensor {list(value.shape)} of {value.dtype}{without}"
