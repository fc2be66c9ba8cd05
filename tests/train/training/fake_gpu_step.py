"""Makes a step of each method on tensors of a device that is not there, and prints what it launched, and what two
updates of a captured step do not launch alike: {case: [[names], [differences]] or what went wrong}.

The device is that of tests/kernels/fake_gpu.py, which says what fails on it. Here the encoder runs in bfloat16, whose
casts torch has for devices that it knows: they are registered for this one as it makes them on a GPU, where a weight is
rounded once within an autocast context.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from kernels.fake_gpu import DEVICE, DeviceModule, Launches, serve_the_device
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from imc.config import Config
from imc.data import Dataset, Images
from imc.data.views import Batch
from imc.methods import build_model
from imc.methods.method import Method, Plan
from imc.train import plan
from imc.training.loop import Loop
from imc.training.ranks import Ranks
from imc_kernels import backends, native

AUTOCAST = torch._C.DispatchKey.AutocastPrivateUse1
rounded_weights: dict[int, Tensor] = {}


class StepLaunches(Launches):
    """With what fake tensors leave out: the order in memory that cuDNN gives its results, and an optimiser."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        if name == "_fused_sgd_":
            self.names.append(name)
            return None
        result = super().__torch_dispatch__(function, types, args, kwargs)
        if name == "convolution":
            return channels_last(result)
        return tuple(map(channels_last, result)) if name == "convolution_backward" else result


class Arguments(StepLaunches):
    """Says too what each launch takes: its numbers, and of a tensor which operation of the step made its memory, or
    which memory it is that was there before."""

    def __init__(self) -> None:
        super().__init__()
        self.taken: list[str] = []
        self.names_of: dict[int, str] = {}  # of memory
        self.kept: list[Tensor] = []  # so that no memory takes another's place

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.namespace == "profiler":
            return function(*args, **(kwargs or {}))
        self.take(str(function), (args, kwargs))
        result = super().__torch_dispatch__(function, types, args, kwargs)
        for x in torch.utils._pytree.tree_leaves(result):
            if isinstance(x, Tensor):
                self.name_of(x, f"made by {len(self.taken)}")
        return result

    def name_of(self, x: Tensor, otherwise: str) -> str:
        place = int(x.untyped_storage()._cdata)
        if place not in self.names_of:
            self.names_of[place] = otherwise or str(place)
            self.kept.append(x)
        return self.names_of[place]

    def execute(self, kernel: Any, *rest: Any) -> None:
        self.take(kernel.fn.__name__, rest)
        super().execute(kernel, *rest)

    def call(self, module: str, operation: str, *arguments: Any) -> None:
        self.take(f"{module}.{operation}", arguments)
        super().call(module, operation, *arguments)

    def take(self, name: str, arguments: Any) -> None:
        words = [name]
        for x in torch.utils._pytree.tree_leaves(arguments):
            known = isinstance(x, Tensor)
            words.append(f"{x.dtype} {list(x.shape)} {x.stride()} {self.name_of(x, '')}" if known else repr(x))
        self.taken.append(" ".join(words))


def channels_last(x: Any) -> Any:
    return x.to(memory_format=torch.channels_last) if isinstance(x, Tensor) and x.dim() == 4 else x


def register_autocast() -> list[Any]:
    """Returns what must be kept for as long as it is to hold."""
    others = torch.library.Library("_", "IMPL")
    others.fallback(torch.library.fallthrough_kernel, AUTOCAST.name)
    library, excluded = torch.library.Library("aten", "IMPL"), torch._C.DispatchKeySet(AUTOCAST)

    def single(x: Any) -> Any:
        if not isinstance(x, Tensor) or x.dtype != torch.float32:
            return x
        if not (x.is_leaf and x.requires_grad):
            return x.to(torch.bfloat16)
        if id(x) not in rounded_weights:
            rounded_weights[id(x)] = x.to(torch.bfloat16)
        return rounded_weights[id(x)]

    for operation in (torch.ops.aten.conv2d, torch.ops.aten.linear):

        def run(*arguments: Any, operation: Any = operation) -> Tensor:
            with torch._C._ExcludeDispatchKeyGuard(excluded):
                return operation(*map(single, arguments))

        library.impl(operation.__name__, run, AUTOCAST.name)
    clear = torch.clear_autocast_cache

    def cleared() -> None:
        rounded_weights.clear()
        clear()

    torch.clear_autocast_cache = cleared  # type: ignore[assignment]
    return [others, library]


def on_the_device(x: Tensor) -> Tensor:
    strides = x.to(memory_format=torch.channels_last).stride() if x.dim() == 4 else x.stride()
    return torch.empty_strided(x.shape, strides, dtype=x.dtype, device=DEVICE)


def moved(model: Method) -> Method:
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            module.register_parameter(name, nn.Parameter(on_the_device(parameter)))
        for name, buffer in module.named_buffers(recurse=False):
            module.register_buffer(name, on_the_device(buffer))
    model.amp = True
    return model.train()  # type: ignore[return-value]


def step(method: str, backend: str | None) -> tuple[list[str], list[str]]:
    """The launches of a step at the settings for CIFAR-10, and :func:`changing` where no backend is named."""
    images = torch.zeros(512, 32, 32, 3, dtype=torch.uint8)
    train = Images("cifar10", images, torch.arange(512) % 10, tuple("0123456789"))
    data = Dataset("cifar10", train, None, None, mean=(0.5,) * 3, std=(0.25,) * 3, note="")
    config = replace(plan(Config(data="cifar10", method=method, device="cpu"), data), freeze_updates=0)
    with FakeTensorMode(), backends.backend(backend, otherwise=lambda *_: None):
        loop = Loop(moved(build_model(config)), [torch.empty(images.shape, dtype=torch.uint8)], config, Ranks())  # type: ignore[arg-type]
        positions = torch.empty(config.batch_size, dtype=torch.int64, device=DEVICE)
        batch = Batch(loop.pixels.images, positions, positions, 0, config.batch_size)  # type: ignore[attr-defined]
        for _ in range(2):  # the first makes the optimiser's moments
            counter = StepLaunches()
            launches(counter, lambda: loop.train_step(batch, Plan()))
        return counter.names, [] if backend else changing(loop, batch)


def changing(loop: Loop, batch: Batch) -> list[str]:
    """What two updates, as a graph holds them, do not launch alike."""
    views: Any = loop.views
    number, taken = torch.empty((), dtype=torch.int64, device=DEVICE), []
    for _ in range(2):
        loop.update += 1
        arguments = Arguments()
        launches(arguments, lambda: loop.compute(views(batch, number), Plan()))
        taken.append(arguments.taken)
    return [f"{a}, then {b}" for a, b in itertools.zip_longest(*taken) if a != b]


def launches(counter: StepLaunches, work: Callable[[], Any]) -> None:
    from imc_kernels.triton import launch

    launch.execute, native.call = counter.execute, counter.call  # type: ignore[assignment]
    with counter:
        work()


def outcome(method: str, backend: str | None) -> tuple[list[str], list[str]] | str:
    try:
        return step(method, backend)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def main() -> None:
    _setup_privateuseone_for_python_backend(DEVICE, DeviceModule())
    import imc_kernels.triton  # noqa: F401  # what it needs to know of the machine is found out before

    kept = register_autocast()
    serve_the_device()
    results: dict[str, Any] = {}
    for method, backend in itertools.product(("imc-swav", "crlc"), (None, "triton")):
        results[f"{method} {backend}"] = outcome(method, backend)
    print(json.dumps(results))
    del kept


if __name__ == "__main__":
    main()
