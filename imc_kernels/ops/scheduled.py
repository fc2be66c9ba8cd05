"""Numbers among an operator's options that change from call to call, while ``torch.compile`` traces.

A number in an operator's schema is part of the compiled graph: each new value compiles anew, and after eight of them
torch gives up. So one that torch has found to change, or that is a tensor, reaches the operator in a tensor instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from imc_kernels.ops.checks import Range, number

STATIC = "has_static_value"  # of the compiler: whether a number is part of the graph


def packed(options: Mapping[str, Range | str], given: Sequence[Any]) -> tuple[Sequence[Any], Tensor | None]:
    """The options, None for numbers that change, and a float64 tensor [n] of the values of these, None without."""
    changes = [isinstance(accepted, Range) and _changes(x) for accepted, x in zip(options.values(), given, strict=True)]
    if True not in changes:
        return given, None
    # A product with a tensor is what torch can compute of such a number without knowing it.
    one = torch.ones((), dtype=torch.float64, device="cpu")
    changing = [one * x for x, change in zip(given, changes, strict=True) if change]
    return [None if change else x for x, change in zip(given, changes, strict=True)], torch.stack(changing)


def unpacked(
    operation: str, options: Mapping[str, Range | str], given: Sequence[Any], changing: Tensor | None
) -> list[Any]:
    """The way back, in the operator. Numbers that no check has seen are checked: ``options`` has what is accepted."""
    rest = [] if changing is None else changing.tolist()
    return [
        number(operation, name, rest.pop(0), accepted) if value is None and isinstance(accepted, Range) else value
        for (name, accepted), value in zip(options.items(), given, strict=True)
    ]


def _changes(option: float | Tensor) -> bool:
    if isinstance(option, Tensor):
        return True
    if not torch.compiler.is_compiling():
        return False
    from torch.fx.experimental import symbolic_shapes  # of the compiler, which is loaded by now

    # Where a version lacks it (2.13 has it), each new value compiles anew.
    return hasattr(symbolic_shapes, STATIC) and not getattr(symbolic_shapes, STATIC)(option)
