"""With a group a call is no operator of torch's: what would follow it, for a derivative or a recording, is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from operations import Operation, Sizes
from test_autograd import TRANSFORMS
from test_distributed import COMPILED, forms
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

SIZES = Sizes(2, 3, 4, 3, 3)
KERNELS = [(operation, backend) for operation, backend in forms() if backend in COMPILED and backend != "eager"]
each_form = pytest.mark.parametrize(("operation", "backend"), KERNELS, ids=str)


@pytest.fixture(scope="module")
def group() -> Iterator[dist.ProcessGroup]:
    """This process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


def caller(operation: Operation, **where: Any) -> Callable[..., Tensor]:
    return lambda *x: operation.function(*x, **operation.options, **where)


@each_form
def test_a_forward_mode_derivative_is_refused(operation: Operation, backend: str, group: dist.ProcessGroup) -> None:
    inputs = operation.inputs(SIZES, torch.float32)
    call = caller(operation, backend=backend, group=group)
    with forward_ad.dual_level():
        for position in range(len(inputs)):
            x = list(inputs)
            x[position] = forward_ad.make_dual(x[position], torch.ones_like(x[position]))
            with pytest.raises(NotImplementedError, match=rf'{operation.name}: .*forward-mode .*backend="eager"'):
                call(*x)
        call(*inputs)  # no tangent, no refusal


@each_form
def test_transforms_of_torch_func_are_refused(operation: Operation, backend: str, group: dist.ProcessGroup) -> None:
    inputs = operation.inputs(SIZES, torch.float32)
    call = caller(operation, backend=backend, group=group)
    for transform in TRANSFORMS.values():
        with pytest.raises(NotImplementedError, match=rf'{operation.name}: .*backend="eager"'):
            transform(lambda x: call(x, *inputs[1:]), inputs[0])


class Looking(TorchDispatchMode):
    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return function(*args, **(kwargs or {}))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit:DeprecationWarning")
@each_form
def test_a_recording_is_refused(operation: Operation, backend: str, group: dist.ProcessGroup) -> None:
    inputs = operation.inputs(SIZES, torch.float32)
    call = caller(operation, backend=backend, group=group)
    refusal = rf'{operation.name}: with a group, .*recorded.*backend="eager"'
    for record in (torch.jit.trace, lambda f, x: make_fx(f)(*x)):
        with pytest.raises(NotImplementedError, match=refusal):
            record(call, inputs)
    with FakeTensorMode() as mode, pytest.raises(NotImplementedError, match=refusal):
        call(*map(mode.from_tensor, inputs))
    expected = call(*inputs)
    with Looking():  # a mode that only looks on is of no consequence
        assert torch.equal(call(*inputs), expected)
