"""What records or follows a call, and tensors of other kinds: they meet an operator of torch's, or are refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from operations import OPERATIONS, Operation, Sizes, all_backends, each_boundary_case, native_backends
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from imc_kernels import draw_crop_parameters, multi_crop, per_view_batch_norm, sinkhorn, swapped_prediction_loss

SIZES = Sizes(2, 5, 7, 3, 4)
each_operation = pytest.mark.parametrize("operation", OPERATIONS, ids=str)
each_crop_backend = pytest.mark.parametrize("backend", [*native_backends("multi_crop"), "eager"])


def leaves_of(operation: Operation, dtype: torch.dtype = torch.float32, shift: float = 0) -> tuple[Tensor, ...]:
    inputs = operation.inputs(SIZES, dtype)
    return tuple((x + shift).requires_grad_(n) for x, n in zip(inputs, operation.differentiable, strict=True))


def all_of(call: Callable[..., Tensor], leaves: tuple[Tensor, ...]) -> list[Tensor]:
    """The result and the gradients."""
    result = call(*leaves)
    weights = torch.linspace(0.5, 1.5, result.numel(), device=result.device).reshape(result.shape).to(result.dtype)
    return [result, *torch.autograd.grad((result * weights).sum(), [x for x in leaves if x.requires_grad])]


def trace(call: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> Callable[..., Tensor]:
    return torch.jit.trace(call, inputs)


def fx(call: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> Callable[..., Tensor]:
    return make_fx(call)(*inputs)


def symbolic(call: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> Callable[..., Tensor]:
    return make_fx(call, tracing_mode="fake")(*inputs)


def export(call: Callable[..., Tensor], inputs: tuple[Tensor, ...], strict: bool = False) -> Callable[..., Tensor]:
    class Module(torch.nn.Module):
        def forward(self, *x: Tensor) -> Tensor:
            return call(*x)

    return torch.export.export(Module(), inputs, strict=strict).module()


def export_strictly(call: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> Callable[..., Tensor]:
    return export(call, inputs, strict=True)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("record", [trace, fx, symbolic, export, export_strictly], ids=lambda record: record.__name__)
@each_boundary_case
def test_a_recorded_call_is_the_call(operation: Operation, backend: str, record: Callable[..., Any]) -> None:
    """On other values than those that it was recorded with, and with its gradients."""

    def call(*x: Tensor) -> Tensor:
        return operation(*(t * 1.5 for t in x), backend=backend) * 2

    dtype = torch.bfloat16 if operation.label else torch.float32
    recorded = record(call, leaves_of(operation, dtype))
    leaves = leaves_of(operation, dtype, shift=0.25)
    for result, expected in zip(all_of(recorded, leaves), all_of(call, leaves), strict=True):
        torch.testing.assert_close(result, expected, rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("record", [trace, fx], ids=lambda record: record.__name__)
@each_boundary_case
def test_a_gradient_that_was_not_recorded_is_not_lost(
    operation: Operation, backend: str, record: Callable[..., Any]
) -> None:
    """Recorded without gradients, run with: either they are right or the call is refused."""
    inputs = operation.inputs(SIZES, torch.float32)
    recorded = record(lambda *x: operation(*x, backend=backend), inputs)
    assert torch.equal(recorded(*inputs), operation(*inputs, backend=backend))
    leaves = leaves_of(operation)
    expected = all_of(lambda *x: operation(*x, backend=backend), leaves)
    flagged = operation.name not in ("prototype_scores", "per_view_batch_norm")  # whose operators always record it
    if record is fx and flagged:
        sentence = f"{operation.name}: this call was recorded with an input that required no gradient"
        with pytest.raises(RuntimeError, match=sentence):
            recorded(*leaves)
    else:
        results = all_of(recorded, leaves)
        assert all(torch.equal(result, value) for result, value in zip(results, expected, strict=True))


@each_boundary_case
def test_the_gradient_is_recorded_too(operation: Operation, backend: str) -> None:
    def gradients(*x: Tensor) -> list[Tensor]:
        leaves = tuple(t.detach().requires_grad_(n) for t, n in zip(x, operation.differentiable, strict=True))
        return all_of(lambda *y: operation(*y, backend=backend), leaves)

    recorded = make_fx(gradients)(*operation.inputs(SIZES, torch.float32))
    inputs = tuple(x.detach() for x in leaves_of(operation, shift=0.25))
    for result, expected in zip(recorded(*inputs), gradients(*inputs), strict=True):
        torch.testing.assert_close(result, expected, rtol=0, atol=0)


@each_boundary_case
def test_fake_tensors(operation: Operation, backend: str) -> None:
    leaves = leaves_of(operation)
    expected = all_of(lambda *x: operation(*x, backend=backend), leaves)
    with FakeTensorMode() as mode:
        fakes = tuple(mode.from_tensor(x).requires_grad_(x.requires_grad) for x in leaves)
        results = all_of(lambda *x: operation(*x, backend=backend), fakes)
    for result, value in zip(results, expected, strict=True):
        assert type(result) is not Tensor
        assert (result.shape, result.dtype, result.device) == (value.shape, value.dtype, value.device)
    assert torch.equal(operation(*leaves, backend=backend), expected[0])  # nothing fake was kept for the next call


@each_operation
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_meta_tensors(operation: Operation, dtype: torch.dtype) -> None:
    def call(*x: Tensor) -> Tensor:
        return operation.function(*x, **operation.options)  # on the backend that serves them

    leaves = leaves_of(operation, dtype)
    expected = all_of(call, leaves)
    metas = tuple(x.detach().to("meta").requires_grad_(x.requires_grad) for x in leaves)
    for result, value in zip(all_of(call, metas), expected, strict=True):
        assert result.is_meta
        assert (result.shape, result.dtype) == (value.shape, value.dtype)


class Seen(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


@each_boundary_case
def test_a_dispatch_mode_sees_the_operator(operation: Operation, backend: str) -> None:
    leaves = leaves_of(operation)
    expected = all_of(lambda *x: operation(*x, backend=backend), leaves)
    with Seen() as seen:
        results = all_of(lambda *x: operation(*x, backend=backend), leaves)
    assert f"imc_kernels.{operation.name}.default" in seen.names
    assert all(torch.equal(result, value) for result, value in zip(results, expected, strict=True))


class Marked(Tensor):
    """A subclass with memory of its own, as torchvision's are."""


class Wrapper(Tensor):
    """A subclass that holds another tensor, as distributed ones are."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Wrapper:
        made = torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype, device=inner.device)
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def bare(x: Any) -> Any:
            return x.inner if isinstance(x, Wrapper) else x

        results = function(*map(bare, args), **(kwargs or {}))
        return torch.utils._pytree.tree_map(lambda x: Wrapper(x) if isinstance(x, Tensor) else x, results)


@each_boundary_case
def test_subclasses(operation: Operation, backend: str) -> None:
    inputs = operation.inputs(SIZES, torch.float32)
    expected = operation(*inputs, backend=backend)
    marked = operation(*(x.as_subclass(Marked) for x in inputs), backend=backend)
    assert type(marked) is Marked
    assert torch.equal(marked.as_subclass(Tensor), expected)
    wrapped = operation(*map(Wrapper, inputs), backend=backend)
    assert isinstance(wrapped, Wrapper)
    assert torch.equal(wrapped.inner, expected)
    parameters = [torch.nn.Parameter(x, requires_grad=n) for x, n in zip(inputs, operation.differentiable, strict=True)]
    assert type(operation(*parameters, backend=backend)) is Tensor
    assert torch.equal(operation(*parameters, backend=backend), expected)


OTHER_LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "sparse": lambda x: x.to_sparse(),
    "sparse_csr": lambda x: x.flatten(0, -2).to_sparse_csr() if x.dim() > 1 else x.to_sparse(),
    "mkldnn": lambda x: x.to_mkldnn(),
    "nested": lambda x: torch.nested.nested_tensor(list(x.reshape(2, -1, 1)) if x.dim() == 1 else list(x)),
}


@pytest.mark.filterwarnings("ignore:.*prototype:UserWarning", "ignore:.*beta state:UserWarning")
@pytest.mark.parametrize("layout", OTHER_LAYOUTS)
@pytest.mark.parametrize(
    ("operation", "backend"),
    [(o, b) for o in OPERATIONS for b in ("cpu", "eager") if b in all_backends(o.name) and not o.label],
    ids=str,
)
def test_other_layouts_are_refused(operation: Operation, backend: str, layout: str) -> None:
    inputs = operation.inputs(SIZES, torch.float32)
    for position in range(len(inputs)):
        given = list(inputs)
        given[position] = OTHER_LAYOUTS[layout](given[position])
        with pytest.raises(
            TypeError, match=rf"^{operation.name}: \w+ must be a dense tensor, got a \w+ one; convert it$"
        ):
            operation(*given, backend=backend)


@each_boundary_case
def test_lazily_negated_inputs(operation: Operation, backend: str) -> None:
    inputs = operation.inputs(SIZES, torch.float32)
    lazy = [torch.complex(torch.zeros_like(x), -x).conj().imag for x in inputs]
    assert all(x.is_neg() for x in lazy)
    assert torch.equal(operation(*lazy, backend=backend), operation(*inputs, backend=backend))


@each_boundary_case
def test_inference_tensors(operation: Operation, backend: str) -> None:
    inputs = operation.inputs(SIZES, torch.float32)
    expected = operation(*inputs, backend=backend)
    with torch.inference_mode():
        kept = [x.clone() for x in inputs]
        assert torch.equal(operation(*kept, backend=backend), expected)
        assert torch.equal(operation(*leaves_of(operation), backend=backend), expected)
    assert torch.equal(operation(*kept, backend=backend), expected)


def test_targets_that_were_made_in_inference_mode() -> None:
    scores = torch.rand(3, 5, 7, requires_grad=True)
    with torch.inference_mode():
        targets = sinkhorn(scores[:2])
    (gradient,) = torch.autograd.grad(swapped_prediction_loss(scores, targets), scores)
    (expected,) = torch.autograd.grad(swapped_prediction_loss(scores, targets.clone()), scores)
    assert torch.equal(gradient, expected)


def statistics_inputs() -> tuple[Tensor, ...]:
    """Input, weight, bias and running statistics of a batch normalisation."""
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(shape, generator=generator) for shape in ((6, 4, 3), (4,), (4,)))
    return x, weight, bias, torch.zeros(4), torch.ones(4)


def with_statistics(*inputs: Tensor, backend: str | None = None) -> Tensor:
    *given, mean, variance = inputs
    return per_view_batch_norm(*given, views=2, running_mean=mean, running_var=variance, backend=backend)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("record", [trace, fx, symbolic, export], ids=lambda record: record.__name__)
@pytest.mark.parametrize("backend", all_backends("per_view_batch_norm"))
def test_recorded_running_statistics(backend: str, record: Callable[..., Any]) -> None:
    """They move with every call of the recording, by its values; to rounding where Triton's kernel moves them else."""
    recorded = record(lambda *x: with_statistics(*x, backend=backend), statistics_inputs())
    ours, expected = ((x + 1, *rest) for x, *rest in (statistics_inputs(), statistics_inputs()))
    assert torch.equal(recorded(*ours), with_statistics(*expected, backend=backend))
    bounds = {} if backend == "triton" else {"rtol": 0, "atol": 0}
    for x, y in zip(ours, expected, strict=True):
        torch.testing.assert_close(x, y, **bounds)
    assert not torch.equal(ours[3], torch.zeros(4))


@pytest.mark.parametrize("backend", all_backends("per_view_batch_norm"))
def test_running_statistics_of_fake_and_meta_tensors(backend: str) -> None:
    def gradients(*inputs: Tensor, name: str | None) -> list[Tensor]:
        leaves = [x.requires_grad_() for x in inputs[:3]]
        result = with_statistics(*inputs, backend=name)
        return [result, *torch.autograd.grad(result.sum(), leaves)]

    expected = gradients(*statistics_inputs(), name=backend)
    with FakeTensorMode() as mode:
        fake = gradients(*map(mode.from_tensor, statistics_inputs()), name=backend)
    meta = gradients(*(x.to("meta") for x in statistics_inputs()), name=None)  # the backend that serves them
    for results in (fake, meta):
        for result, value in zip(results, expected, strict=True):
            assert (result.shape, result.dtype) == (value.shape, value.dtype)


def crop_inputs() -> tuple[Tensor, Tensor, Tensor]:
    images = torch.randint(0, 256, (5, 9, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    indices = torch.tensor([4, 0, 2])
    return images, indices, draw_crop_parameters(0, 0, indices, views=2, height=9, width=8)


def crop(*inputs: Tensor, backend: str | None = None) -> Tensor:
    return multi_crop(*inputs, size=6, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), backend=backend)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize(
    ("backend", "record"),
    [
        *((name, fx) for name in (*native_backends("multi_crop"), "eager")),
        *(
            (name, record)
            for name in native_backends("multi_crop")
            if name == "cpu"
            for record in (trace, symbolic, export)
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_recorded_crops(backend: str, record: Callable[..., Any]) -> None:
    images, indices, parameters = crop_inputs()
    recorded = record(lambda *x: crop(*x, backend=backend), (images, indices, parameters))
    other = torch.tensor([1, 3, 3])
    parameters = draw_crop_parameters(0, 1, other, views=2, height=9, width=8)
    expected = crop(images, other, parameters, backend=backend)
    torch.testing.assert_close(recorded(images, other, parameters), expected, rtol=0, atol=1e-6)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("record", [trace, fx, symbolic], ids=lambda record: record.__name__)
def test_recorded_parameters_of_crops(record: Callable[..., Any]) -> None:
    def draw(indices: Tensor, step: Tensor) -> Tensor:
        return draw_crop_parameters(0, step, indices, views=2, height=9, width=8)

    recorded = record(draw, (torch.tensor([4, 0, 2]), torch.tensor(0)))
    given = torch.tensor([1, 3, 3]), torch.tensor(7)
    assert torch.equal(recorded(*given), draw(*given))


@each_crop_backend
def test_crops_of_fake_and_meta_tensors(backend: str) -> None:
    expected = crop(*crop_inputs(), backend=backend)
    with FakeTensorMode() as mode:
        fake = crop(*map(mode.from_tensor, crop_inputs()), backend=backend)
        indices = mode.from_tensor(torch.tensor([4, 0, 2]))
        drawn = draw_crop_parameters(0, 0, indices, views=2, height=9, width=8)
    meta = crop(*(x.to("meta") for x in crop_inputs()))
    for result in (fake, meta):
        assert (result.shape, result.dtype, result.stride()) == (expected.shape, expected.dtype, expected.stride())
    step = torch.zeros((), dtype=torch.int64, device="meta")
    for result in (
        drawn,
        draw_crop_parameters(0, 0, torch.arange(3, device="meta"), views=2, height=9, width=8),
        draw_crop_parameters(0, step, torch.arange(3, device="meta"), views=2, height=9, width=8),
    ):
        assert result.shape == (2, 3, 13)
        assert result.dtype == torch.float32
    assert torch.equal(crop(*crop_inputs(), backend=backend), expected)


@each_crop_backend
def test_crops_of_other_tensors(backend: str) -> None:
    images, indices, parameters = crop_inputs()
    expected = crop(images, indices, parameters, backend=backend)
    lazy = torch.complex(torch.zeros_like(parameters), -parameters).conj().imag
    assert torch.equal(crop(images, indices, lazy, backend=backend), expected)
    marked = crop(*(x.as_subclass(Marked) for x in (images, indices, parameters)), backend=backend)
    assert torch.equal(marked.as_subclass(Tensor), expected)
    with Seen() as seen:
        assert torch.equal(crop(images, indices, parameters, backend=backend), expected)
    assert ("imc_kernels.multi_crop.default" in seen.names) == (backend != "eager")
    with pytest.raises(TypeError, match=r"^multi_crop: images must be a dense tensor, got a sparse_coo one"):
        crop(images.to_sparse(), indices, parameters, backend=backend)
    with pytest.raises(ValueError, match=r"parameters are constants; pass parameters.detach\(\)"):
        crop(images, indices, parameters.requires_grad_(), backend=backend)
