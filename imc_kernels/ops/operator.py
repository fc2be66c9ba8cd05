"""What torch sees in place of a kernel where it must see an operator (ops/autograd.py)."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from imc_kernels.ops import scheduled
from imc_kernels.ops.checks import Range
from imc_kernels.version import __version__

Needs = tuple[bool, ...]
Options = Mapping[str, Range | str]


class Arguments(NamedTuple):
    """Those of an operator: its tensors, its options, the values of those of them that are None, and the rest."""

    tensors: Sequence[Any]
    options: Sequence[Any]
    changing: Tensor | None
    needs: Needs
    backend: str


class Operator:
    """``torch.ops.imc_kernels.<name>``, whose shapes are known without running it.

    Its arguments are the tensors, the options, a tensor of the options that change from call to call
    (:mod:`imc_kernels.ops.scheduled`) where there are numbers among them, for each of ``needs`` whether it is needed,
    the backend, and this package's version. It returns a tensor for each of the results, an empty one for None.

    Args:
        name: of the operator.
        run: (backend, tensors, options, needs) -> the results.
        empty: the same, its results without values.
        tensors: their names, with a question mark after one that may be None.
        options: name -> the numbers accepted, or of anything but a number its type in the schema.
        needs: names of the tensors whose gradients may be needed or not.
        results: how many there are.
    """

    def __init__(
        self,
        name: str,
        run: Callable[[str, Any, Sequence[Any], Needs], Sequence[Tensor | None]],
        empty: Callable[[str, Any, Sequence[Any], Needs], Sequence[Tensor | None]],
        *,
        tensors: Sequence[str],
        options: Options,
        needs: Sequence[str] = (),
        results: int = 1,
    ) -> None:
        self.name, self.options = name, options
        self.counts = len(tensors), len(options), len(needs)
        self.scheduled = any(isinstance(accepted, Range) for accepted in options.values())
        arguments = [
            *(f"Tensor? {n[:-1]}" if n.endswith("?") else f"Tensor {n}" for n in tensors),
            *(f"float? {n}" if isinstance(kind, Range) else f"{kind} {n}" for n, kind in options.items()),
            *(["Tensor? changing"] if self.scheduled else []),
            *(f"bool of_{n}" for n in needs),  # torch.jit.trace takes no list of these
            "str backend",
            # torch keeps compiled graphs on disk and finds them by the calls of the forward alone: without this, a new
            # version's backward would be that of the old.
            "str version",
        ]
        schema = f"({', '.join(arguments)}) -> ({', '.join(['Tensor'] * results)})"

        def real(*given: Any) -> Any:
            tensors, options, changing, needs, backend = self.arguments(given)
            options = scheduled.unpacked(name, self.options, options, changing)
            return _returned(run(backend, tensors, options, needs), tensors[0])

        def fake(*given: Any) -> Any:
            tensors, options, _, needs, backend = self.arguments(given)
            return _returned(empty(backend, tensors, options, needs), tensors[0])

        self.registered = torch.library.custom_op(f"imc_kernels::{name}", real, mutates_args=(), schema=schema)
        self.registered.register_fake(fake)

    def __call__(
        self, backend: str, tensors: Sequence[Any], options: Sequence[Any], needs: Needs
    ) -> tuple[Tensor, ...]:
        packed = scheduled.packed(self.options, options) if self.scheduled else (options, None)
        return self.call(Arguments(tensors, *packed, needs, backend))

    def call(self, given: Arguments) -> tuple[Tensor, ...]:
        changing = (given.changing,) if self.scheduled else ()
        return as_tuple(
            self.registered(*given.tensors, *given.options, *changing, *given.needs, given.backend, __version__)
        )

    def arguments(self, given: Sequence[Any]) -> Arguments:
        tensors, options, needs = self.counts
        *rest, backend, _ = given
        changing = rest[tensors + options] if self.scheduled else None
        flags = tuple(rest[len(rest) - needs :])
        return Arguments(rest[:tensors], rest[tensors : tensors + options], changing, flags, backend)


def _returned(results: Sequence[Tensor | None], like: Tensor) -> Tensor | tuple[Tensor, ...]:
    """As torch has the results of an operator: of one that has one, this alone."""
    tensors = tuple([like.new_empty(0) if result is None else result for result in results])
    return tensors if len(tensors) > 1 else tensors[0]


def as_tuple(results: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The way back."""
    return (results,) if isinstance(results, Tensor) else results


def of_triton(module: str, function: str | None = None) -> Callable[..., Any]:
    """The function of ``imc_kernels.triton.<module>``, of the module's name: imported when it is first called, as that
    takes Triton and seconds."""

    @cache
    def imported() -> Callable[..., Any]:
        return getattr(importlib.import_module(f"imc_kernels.triton.{module}"), function or module)

    return lambda *arguments: imported()(*arguments)
