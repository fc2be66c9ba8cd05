"""Calls every public function on tensors of a device that is not there, and prints what each did: {case: [launches] or
what went wrong}.

The device is registered from Python, and its tensors are fake: they have shapes and no values. So whatever would make
the host wait for a GPU fails: a question for a value (``.item()``, ``nonzero``, a mask as an index), and a tensor made
on the host or copied to it or from it. Kernels are recorded instead of run. In a process of its own: the device stays
registered.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed._tools.fake_collectives  # registers the exchanges of fake tensors
from operations import OPERATIONS, Sizes
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

import imc_kernels
from imc_kernels import backends, native

DEVICE = "gpu"
GPU_BACKENDS = ("cuda", "triton")
GROUPED = {"info_nce_loss", "log_dot_product_loss", "mutual_information_loss", "per_view_batch_norm", "sinkhorn"}
# Operations of torch that start nothing on a device.
FREE = {
    "_unsafe_view",
    "alias",
    "as_strided",
    "as_strided_",
    "detach",
    "device",
    "empty",
    "empty_like",
    "empty_permuted",
}
FREE |= {
    "empty_strided",
    "expand",
    "lift_fresh",
    "new_empty",
    "new_empty_strided",
    "permute",
    "select",
    "slice",
    "split",
}
FREE |= {"split_with_sizes", "squeeze", "t", "transpose", "unbind", "unsqueeze", "view"}


class DeviceModule(_DummyBackendModule):
    """What ``torch.<device>`` answers: eager forms leave autocast."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


class Launches(TorchDispatchMode):
    """Names what would start something on the device, this package's kernels too. A copy from or to the host raises."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result, name = function(*args, **(kwargs or {})), function.overloadpacket.__name__
        devices = {x.device.type for x in torch.utils._pytree.tree_leaves((args, result)) if isinstance(x, Tensor)}
        if name in ("_to_copy", "copy_", "index") and devices == {"cpu", DEVICE}:
            raise AssertionError(f"{name} between host and device")
        if DEVICE in devices and name not in FREE:
            self.names.append(name)
        return result

    def execute(self, kernel: Any, *rest: Any) -> None:
        self.names.append(kernel.fn.__name__)

    def call(self, module: str, operation: str, *arguments: Any) -> None:
        self.names.append(f"{module}.{operation}")


def serve_the_device() -> None:
    """The GPU backends take its tensors, as if they lay in memory."""
    table: Any = backends.BACKENDS
    for name in GPU_BACKENDS:
        table[name] = dataclasses.replace(table[name], devices=(DEVICE,), missing=lambda: None, emulated=lambda: False)
    for name, module in list(sys.modules.items()):
        if name.startswith("imc_kernels.") and hasattr(module, "is_direct"):
            module.is_direct = lambda *_: True  # type: ignore[attr-defined]
        if name.startswith("imc_kernels.") and hasattr(module, "refuse_recording"):
            module.refuse_recording = lambda *_: None  # type: ignore[attr-defined]


def join_processes() -> None:
    """As the second of three, which exchange nothing. The first has more samples, the third none."""
    dist.init_process_group("fake", store=FakeStore(), rank=1, world_size=3)

    def sizes(size: int, group: dist.ProcessGroup) -> list[int]:
        assert type(size) is int
        return [size + 2, size, 0]

    for name in ("collectives", "info_nce_loss"):  # between hosts, whose tensors have no values here either
        module: Any = importlib.import_module(f"imc_kernels.ops.distributed.{name}")
        module.gather_sizes = sizes


def leaves(make: Callable[[], tuple[Tensor, ...]], needs: tuple[bool, ...]) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(x, device=DEVICE).requires_grad_(n) for x, n in zip(make(), needs, strict=True))


def cases() -> dict[str, Callable[[], Any]]:
    """Name -> a call, with its gradients."""
    made: dict[str, Callable[[], Any]] = {}
    for operation in OPERATIONS:
        for dtype in (torch.float32, torch.bfloat16):
            for backend in (*GPU_BACKENDS, "eager"):

                def call(
                    operation: Any = operation, dtype: torch.dtype = dtype, backend: str = backend, **options: Any
                ) -> None:
                    inputs = leaves(
                        lambda: operation.make_inputs(Sizes(4, 24, 40, 10, 16), None), operation.differentiable
                    )
                    inputs = tuple(x.to(dtype).detach().requires_grad_(x.requires_grad) for x in inputs)
                    result = operation.function(*inputs, **operation.options, **options, backend=backend)
                    torch.autograd.grad(result, [x for x in inputs if x.requires_grad], torch.ones_like(result))

                name = f"{operation} {str(dtype)[6:]} {backend}"
                made[name] = call
                if operation.name in GROUPED:
                    made[f"{name} with a group"] = lambda call=call: call(group=dist.group.WORLD)

    def draw(step: Any) -> Tensor:
        indices = torch.empty(256, dtype=torch.int64, device=DEVICE)
        return imc_kernels.draw_crop_parameters(0, step(), indices, views=4, height=32, width=32, blur_probability=0.5)

    made["draw_crop_parameters"] = lambda: draw(lambda: 5)
    made["draw_crop_parameters, the step a tensor"] = lambda: draw(
        lambda: torch.empty((), dtype=torch.int64, device=DEVICE)
    )
    for backend in (*GPU_BACKENDS, "eager"):

        def crop(backend: str = backend) -> None:
            images = torch.empty(50, 32, 32, 3, dtype=torch.uint8, device=DEVICE)
            indices = torch.empty(8, dtype=torch.int64, device=DEVICE)
            parameters = torch.empty(2, 8, 13, device=DEVICE)
            options: dict[str, Any] = {"size": 28, "mean": [0.5] * 3, "std": [0.2] * 3}
            imc_kernels.multi_crop(images, indices, parameters, **options, backend=backend)

        made[f"multi_crop {backend}"] = crop
    return made


def waiting() -> dict[str, Callable[[], Any]]:
    """What must be told on."""

    def numbers() -> Tensor:
        return torch.empty(4, device=DEVICE)

    return {
        "waits for a value": lambda: numbers().sum().item(),
        "waits for a truth": lambda: bool((numbers() > 0).all()),
        "waits for a mask": lambda: numbers()[numbers() > 0],
        "waits for a tensor made on the host": lambda: torch.tensor([1.0, 2.0], device=DEVICE),
        "waits for a copy to the device": lambda: torch.ones(4).to(DEVICE),
        "waits for a copy to the host": lambda: numbers().cpu(),
    }


def main() -> None:
    _setup_privateuseone_for_python_backend(DEVICE, DeviceModule())
    import imc_kernels.triton  # noqa: F401  # what it needs to know of the machine is found out before
    from imc_kernels.triton import launch

    serve_the_device()
    join_processes()
    results: dict[str, Any] = {}
    for name, call in (cases() | waiting()).items():
        counter = Launches()
        launch.execute, native.call = counter.execute, counter.call  # type: ignore[assignment]
        try:
            with FakeTensorMode(), counter:
                call()
            results[name] = counter.names
        except ValueError as error:  # the backend has no form of it
            results[name] = f"refused: {error}"
        except Exception as error:
            results[name] = f"{type(error).__name__}: {error}"
    dist.destroy_process_group()
    print(json.dumps(results))


if __name__ == "__main__":
    main()
