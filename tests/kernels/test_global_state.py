"""Whatever state torch lets a program set: the same answers in it, and after it, whichever call came first."""

from __future__ import annotations

import contextlib
import functools
import gc
from collections.abc import Callable, Iterator

import pytest
import torch
from operations import OPERATIONS, Sizes, all_backends, native_backends
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import imc_kernels
from imc_kernels import backends

SIZES = Sizes(2, 5, 7, 3, 4)


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def default_device(device: str) -> Iterator[None]:
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


STATES: dict[str, Callable[[], contextlib.AbstractContextManager[object]]] = {
    "default dtype float64": lambda: default_dtype(torch.float64),
    "default dtype float16": lambda: default_dtype(torch.float16),
    "default device meta": lambda: default_device("meta"),
    "default device as a context": lambda: torch.device("meta"),
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "no_grad": torch.no_grad,
    "inference mode": torch.inference_mode,
    "deterministic algorithms": deterministic,
    "anomaly mode": functools.partial(torch.autograd.set_detect_anomaly, True),
    "fake tensors": FakeTensorMode,
}


def caches() -> list[Callable[[], None]]:
    """Of all functions of the package that remember results."""
    wrappers = [o for o in gc.get_objects() if type(o) is functools._lru_cache_wrapper]
    return [o.cache_clear for o in wrappers if getattr(o, "__module__", "").startswith("imc_kernels")]


def crops(backend: str) -> Tensor:
    images = torch.arange(5 * 9 * 8 * 3, device="cpu").remainder(251).to(torch.uint8).reshape(5, 9, 8, 3)
    indices = torch.tensor([4, 0, 2], device="cpu")
    parameters = imc_kernels.draw_crop_parameters(0, 0, indices, views=2, height=9, width=8, blur_probability=0.5)
    return imc_kernels.multi_crop(images, indices, parameters, size=6, mean=(0.1,) * 3, std=(0.3,) * 3, backend=backend)


def everything(backend: str, inputs: dict[str, tuple[Tensor, ...]]) -> list[Tensor]:
    """The result, and where gradients are recorded these, of every operation that the backend has."""
    results = [crops(backend)]
    for operation in OPERATIONS:
        if backend not in all_backends(operation.name):
            continue
        leaves = [
            x.detach().requires_grad_(n) for x, n in zip(inputs[str(operation)], operation.differentiable, strict=True)
        ]
        results.append(operation(*leaves, backend=backend))
        if torch.is_grad_enabled():
            with torch.autocast("cpu", enabled=False):  # torch advises against a backward inside autocast
                results += torch.autograd.grad(results[-1].sum(), [x for x in leaves if x.requires_grad])
    return results


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("backend", ["cpu", "eager"])
def test_the_same_answers_in_any_state_and_after_it(backend: str, state: str) -> None:
    if backend not in backends.available():
        pytest.skip("the CPU kernels are not built")
    inputs = {str(operation): operation.inputs(SIZES, torch.float32) for operation in OPERATIONS}
    expected = everything(backend, inputs)
    with torch.no_grad():
        without = everything(backend, inputs)
    assert caches()
    for clear in caches():  # the first call of a process is made in that state
        clear()
    with STATES[state]() as entered:
        if isinstance(entered, FakeTensorMode):
            everything(backend, {name: tuple(map(entered.from_tensor, given)) for name, given in inputs.items()})
        else:
            for result, value in zip(
                everything(backend, inputs), expected if torch.is_grad_enabled() else without, strict=True
            ):
                assert result.dtype == value.dtype
                assert torch.equal(result, value)
    for result, value in zip(everything(backend, inputs), expected, strict=True):
        assert type(result) is Tensor
        assert not result.is_inference()
        assert torch.equal(result, value)


def test_a_backend_is_chosen_anew_at_each_call(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[str] = []
    choice = backends._choice
    monkeypatch.setattr(backends, "_choice", lambda *a: chosen.append(choice(*a)) or chosen[-1])
    scores = torch.rand(3, 4)
    automatic = backends.serving("cpu", torch.float32)[0]
    for name in ("eager", "", "eager", None):
        monkeypatch.delenv("IMC_BACKEND", raising=False)
        if name is not None:
            monkeypatch.setenv("IMC_BACKEND", name)
        imc_kernels.sinkhorn(scores)
        with backends.backend("eager"):
            imc_kernels.sinkhorn(scores)
    assert chosen == ["eager", "eager", automatic, "eager", "eager", "eager", automatic, "eager"]


def test_dtypes_and_devices_alternate() -> None:
    """What one call remembers is not taken for another's."""
    operation = OPERATIONS[0]
    for _ in range(2):
        for dtype in (torch.float32, torch.float64, torch.float16):
            assert imc_kernels.sinkhorn(*operation.inputs(SIZES, dtype)).dtype == dtype
        assert imc_kernels.sinkhorn(*(x.to("meta") for x in operation.inputs(SIZES))).is_meta
    for channels in (1, 3):
        images = torch.full((1, 4, 4, channels), 255, dtype=torch.uint8)
        indices = torch.tensor([0])
        parameters = imc_kernels.draw_crop_parameters(0, 0, indices, views=1, height=4, width=4, jitter_probability=0)
        for name in native_backends("multi_crop"):
            for mean in (0.0, 0.5):
                options = {"size": 2, "mean": (mean,) * channels, "std": (0.5,) * channels, "backend": name}
                crop = imc_kernels.multi_crop(images, indices, parameters, **options)
                torch.testing.assert_close(crop, torch.full_like(crop, (1 - mean) / 0.5))
