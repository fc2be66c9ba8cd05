"""CUDA graphs without a GPU: a step's operations are recorded as they are dispatched, and a replay makes the same ones
on the same tensors. As on a GPU, no Python runs again: what a step took from it stays as it was at the recording."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from imc.methods.method import Step
from imc.training import cuda_graph, loop
from imc.training.cuda_graph import GraphedStep, Recorded
from imc_kernels import native

EMPTY = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "empty_permuted")


class Recording(TorchDispatchMode):
    """Keeps what is dispatched, and the calls of this package's kernels, with their arguments and results."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Callable[..., Any], Any, Any, Any]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        self.calls.append((function, args, kwargs or {}, result))
        return result

    @contextlib.contextmanager
    def kernels_too(self) -> Iterator[None]:
        call = native.call

        def recorded(*arguments: Any) -> None:
            call(*arguments)
            self.calls.append((call, arguments, {}, None))

        with mock.patch.object(native, "call", recorded):
            yield

    @torch.no_grad()
    def replay(self) -> None:
        for function, args, kwargs, result in self.calls:
            if getattr(function, "_opname", "") in EMPTY:  # a graph has no launch for it: what lay there lies there
                continue
            made = function(*args, **kwargs)
            for old, new in zip(tree_leaves(result), tree_leaves(made), strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)
                elif isinstance(new, torch.ScriptObject) and hasattr(new, "wait"):  # an exchange between ranks
                    new.wait()


@contextlib.contextmanager
def emulated(warm_up: int = 3) -> Iterator[Counter[frozenset[str]]]:
    """Training on the CPU replays its steps from here on, after so many ordinary ones; how often those of each form."""
    replays: Counter[frozenset[str]] = Counter()

    def record(self: GraphedStep, form: frozenset[str], work: Callable[[], Step]) -> Recorded:
        recording = Recording()
        with recording, recording.kernels_too():
            step = work()
        replays[form] = -1

        def replay() -> None:
            replays[form] += 1
            if replays[form]:  # a capture makes nothing, this one did: it stands for the first
                recording.replay()

        return Recorded(replay, step)

    with (
        mock.patch.object(GraphedStep, "record", record),
        mock.patch.object(cuda_graph, "WARM_UP", warm_up),
        mock.patch.object(loop, "obstacle", return_value=None),
    ):
        yield replays
