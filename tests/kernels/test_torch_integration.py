"""The operations inside torch's own machinery: registered operators, torch.compile, autocast, functional transforms."""

from __future__ import annotations

import pytest
import torch
from operations import CASES, OPERATIONS, Operation, Sizes, device_of, native_backends
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from imc_kernels import backends, draw_crop_parameters, multi_crop
from imc_kernels.version import __version__

SIZES = Sizes(3, 8, 12, 5, 6)

needs_cpu_kernels = pytest.mark.skipif("cpu" not in backends.available(), reason="the CPU kernels are not built")
each_native_case = pytest.mark.parametrize(("operation", "backend"), CASES, ids=str)
each_case = pytest.mark.parametrize(
    ("operation", "backend"), [*CASES, *((operation, "eager") for operation in OPERATIONS)], ids=str
)
each_crop_backend = pytest.mark.parametrize("backend", [*native_backends("multi_crop"), "eager"])


def compiler_for(backend: str) -> str:
    """Our operators with their registered gradients; of plain PyTorch only that it is one graph."""
    return "eager" if backend == "eager" else "aot_eager"


def leaves_of(operation: Operation, sizes: Sizes = SIZES) -> tuple[Tensor, ...]:
    inputs = operation.inputs(sizes, torch.float32)
    return tuple(x.requires_grad_(n) for x, n in zip(inputs, operation.differentiable, strict=True))


def gradients(result: Tensor, leaves: tuple[Tensor, ...]) -> list[Tensor]:
    weights = torch.linspace(0.5, 1.5, result.numel()).reshape(result.shape)
    return list(torch.autograd.grad((result * weights).sum(), [x for x in leaves if x.requires_grad]))


@pytest.mark.parametrize(
    ("backend", "dtype", "layout"),
    [
        (name, dtype, layout)
        for name in backends.available()
        if name != "eager" and device_of(name) == "cpu"
        for dtype, layout in (
            (torch.float32, "permuted"),
            (torch.float64 if name == "cpu" else torch.bfloat16, "contiguous"),
        )
    ],
    ids=str,
)
def test_opcheck(backend: str, dtype: torch.dtype, layout: str) -> None:
    """Schema, fake shapes, autograd registration and tracing of every registered operator."""
    s, operators = SIZES, torch.ops.imc_kernels
    generator = torch.Generator().manual_seed(0)

    def tensor(*shape: int, grad: bool = True) -> Tensor:
        made = (torch.rand(shape, generator=generator, dtype=torch.float64) + 0.1).to(dtype)
        if layout == "permuted":
            made = made.transpose(-1, -2).contiguous().transpose(-1, -2)
        return made.requires_grad_(grad)

    scores, logits = tensor(s.views, s.batch, s.prototypes), tensor(s.views, s.batch, s.clusters)
    embeddings, prototypes = tensor(s.views, s.batch, s.dim), tensor(s.prototypes, s.dim)
    targets = tensor(2, s.batch, s.prototypes, grad=False)
    two_views = tensor(2, s.batch, s.dim)
    heads = tensor(s.heads, 2, s.batch, s.clusters)
    calls = {
        operators.info_nce_loss: (two_views, 0.1, True, None, True, backend),
        operators.self_distillation_loss: (
            *(heads, heads.detach().flip(2), tensor(s.heads, s.clusters, grad=False), None, 0.1, 0.2, 0.6, 2.0, True),
            *(None, True, False, False, False, backend),
        ),
        operators.log_dot_product_loss: (heads, 0.01, 2.0, 25.0, None, True, backend),
        operators.sinkhorn: (scores, None, 0.05, 3, None, True, False, backend),
        operators.prototype_scores: (embeddings, prototypes, True, backend),
        operators.swapped_prediction_loss: (scores, targets, None, 0.1, False, None, True, False, False, backend),
        operators.linear_swapped_prediction_loss: (
            *(embeddings, prototypes, embeddings.detach()[:2], prototypes.detach(), None, None, None),
            *(0.05, 0.1, 2, 3, True, False, None, True, True, *[False] * 5, backend),
        ),
        operators.mutual_information_loss: (logits, scores, 0.1, 4.0, 5.0, False, None, True, True, backend),
    }
    for operator, arguments in calls.items():
        if backend in native_backends(operator.__name__):
            torch.library.opcheck(operator.default, (*arguments, __version__))


@each_case
def test_compiles_to_one_graph_for_any_batch_size(operation: Operation, backend: str) -> None:
    torch.compiler.reset()
    compiled = torch.compile(
        lambda *x: operation(*x, backend=backend), fullgraph=True, dynamic=True, backend=compiler_for(backend)
    )
    for batch in (8, 12, 20):
        leaves = leaves_of(operation, SIZES._replace(batch=batch))
        plain = operation(*leaves, backend=backend)
        result = compiled(*leaves)
        torch.testing.assert_close(result, plain)
        for gradient, expected in zip(gradients(result, leaves), gradients(plain, leaves), strict=True):
            torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize(("operation", "backend"), [case for case in CASES if not case[0].label], ids=str)
def test_inductor(operation: Operation, backend: str) -> None:
    """The default compiler, around the operation, with a step before and after it."""
    torch.compiler.reset()
    leaves = leaves_of(operation)
    compiled = torch.compile(lambda *x: operation(*(t * 1.5 for t in x), backend=backend) * 2, fullgraph=True)
    plain = operation(*(t * 1.5 for t in leaves), backend=backend) * 2
    result = compiled(*leaves)
    torch.testing.assert_close(result, plain)
    for gradient, expected in zip(gradients(result, leaves), gradients(plain, leaves), strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)


@each_case
def test_autocast_changes_nothing_for_float32_inputs(operation: Operation, backend: str) -> None:
    leaves = leaves_of(operation)
    plain = operation(*leaves, backend=backend)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = operation(*leaves, backend=backend)
    assert torch.equal(result, plain)
    for gradient, expected in zip(gradients(result, leaves), gradients(plain, leaves), strict=True):
        assert torch.equal(gradient, expected)


@each_native_case
def test_functional_transforms_are_refused(operation: Operation, backend: str) -> None:
    inputs = operation.inputs(SIZES, torch.float32)
    with pytest.raises(RuntimeError, match=rf"{operation.name}: .*torch\.func .*backend=\"eager\""):
        torch.func.grad(lambda x: operation(x, *inputs[1:], backend=backend).sum())(inputs[0])


@needs_cpu_kernels
@pytest.mark.parametrize("channels_last", [True, False])
def test_multi_crop_opcheck(channels_last: bool) -> None:
    images = torch.randint(0, 256, (5, 9, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    indices = torch.tensor([4, 0, 2])
    parameters = draw_crop_parameters(0, 0, indices, views=2, height=9, width=8)
    arguments = (images, indices, parameters, 6, torch.float32, [0.5] * 3, [0.2] * 3, channels_last, "cpu")
    torch.library.opcheck(torch.ops.imc_kernels.multi_crop.default, (*arguments, __version__))


@each_crop_backend
def test_multi_crop_compiles_to_one_graph_for_any_batch_size(backend: str) -> None:
    torch.compiler.reset()
    images = torch.randint(0, 256, (30, 9, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))

    def crop(indices: Tensor, parameters: Tensor) -> Tensor:
        options = {"size": 6, "mean": (0.5, 0.5, 0.5), "std": (0.2, 0.2, 0.2), "backend": backend}
        return multi_crop(images, indices, parameters, **options) * 2

    graphs = CompileCounterWithBackend(compiler_for(backend))
    compiled = torch.compile(crop, fullgraph=True, backend=graphs)
    for batch in (4, 5, 7):
        indices = torch.arange(batch)
        parameters = draw_crop_parameters(0, 0, indices, views=2, height=9, width=8)
        torch._dynamo.mark_dynamic(indices, 0)  # and not dynamic=True: symbols for the images' sizes double the time
        torch._dynamo.mark_dynamic(parameters, 1)
        torch.testing.assert_close(compiled(indices, parameters), crop(indices, parameters))
    assert graphs.frame_count == 1
