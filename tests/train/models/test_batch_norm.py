from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from imc.models.batch_norm import PerViewBatchNorm, synchronise
from imc_kernels import backends

VIEWS, BATCH, CHANNELS = 3, 5, 4


@pytest.fixture(params=["features", "maps"])
def pair(request: pytest.FixtureRequest) -> tuple[PerViewBatchNorm, nn.Module, Tensor]:
    torch.manual_seed(0)
    maps = request.param == "maps"
    ours = PerViewBatchNorm(CHANNELS, momentum=0.3)
    nn.init.normal_(ours.weight)
    nn.init.normal_(ours.bias)
    standard = (nn.BatchNorm2d if maps else nn.BatchNorm1d)(CHANNELS, momentum=0.3)
    standard.load_state_dict(ours.state_dict())
    shape = (VIEWS * BATCH, CHANNELS, 6, 7) if maps else (VIEWS * BATCH, CHANNELS)
    offsets = torch.arange(VIEWS).repeat_interleave(BATCH).view(-1, *[1] * (len(shape) - 1))
    return ours, standard, torch.randn(shape) * (1 + offsets) + 10 * offsets


def test_training_equals_separate_passes(pair: tuple[PerViewBatchNorm, nn.Module, Tensor]) -> None:
    ours, standard, x = pair
    x_ours, x_standard = (copy.deepcopy(x).requires_grad_() for _ in range(2))
    y_ours = ours(x_ours, VIEWS)
    y_standard = torch.cat([standard(view) for view in x_standard.split(BATCH)])
    torch.testing.assert_close(y_ours, y_standard)
    weights = torch.randn_like(x)
    (y_ours * weights).sum().backward()
    (y_standard * weights).sum().backward()
    torch.testing.assert_close(x_ours.grad, x_standard.grad)
    for name, parameter in standard.named_parameters():
        torch.testing.assert_close(ours.get_parameter(name).grad, parameter.grad)
    for name, buffer in standard.named_buffers():
        torch.testing.assert_close(ours.get_buffer(name), buffer, msg=name)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("mode", ["training", "evaluation", "without statistics"])
def test_a_residual_is_added_before_the_relu(
    mode: str, relu: bool, pair: tuple[PerViewBatchNorm, nn.Module, Tensor]
) -> None:
    ours, _, x = pair
    if mode == "without statistics":
        ours = PerViewBatchNorm(CHANNELS, track_running_stats=False)
    ours.train(mode == "training")
    residual = torch.randn_like(x).requires_grad_()
    fused = ours(x, VIEWS, relu=relu, residual=residual)
    apart = ours(x, VIEWS) + residual
    apart = torch.relu(apart) if relu else apart
    torch.testing.assert_close(fused, apart)
    direction = torch.randn_like(x)
    for a, b in zip(*(torch.autograd.grad(y, residual, direction) for y in (fused, apart)), strict=True):
        torch.testing.assert_close(a, b)


def test_views_matter(pair: tuple[PerViewBatchNorm, nn.Module, Tensor]) -> None:
    ours, _, x = pair
    assert (ours(x, VIEWS) - ours(x, 1)).abs().max() > 0.5


def test_evaluation_uses_the_running_statistics(pair: tuple[PerViewBatchNorm, nn.Module, Tensor]) -> None:
    ours, standard, x = pair
    ours(x, VIEWS)
    standard.load_state_dict(ours.state_dict())
    assert torch.equal(ours.eval()(x, VIEWS), standard.eval()(x))


def test_rejects_views_that_do_not_divide_the_rows() -> None:
    with pytest.raises(ValueError, match="5 rows are not 2 views"):
        PerViewBatchNorm(CHANNELS)(torch.randn(5, CHANNELS), 2)


FORMS: dict[str, dict[str, Any]] = {
    "usual": {},
    "cumulative average": {"momentum": None},
    "no momentum": {"momentum": 0.0},
    "momentum 1": {"momentum": 1.0},
    "no statistics": {"track_running_stats": False},
    "no statistics, cumulative": {"track_running_stats": False, "momentum": None},
    "no parameters": {"affine": False},
    "no bias": {"bias": False},
    "large eps": {"eps": 0.5},
    "float64": {"dtype": torch.float64},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [(), (6,), (3, 2)], ids=str)
def test_every_form_of_the_standard_module(form: str, shape: tuple[int, ...]) -> None:
    """Over three steps, then evaluated, with copies and state dicts between them."""
    torch.manual_seed(0)
    ours = PerViewBatchNorm(CHANNELS, **FORMS[form])
    standard = {0: nn.BatchNorm1d, 1: nn.BatchNorm1d, 2: nn.BatchNorm2d}[len(shape)](CHANNELS, **FORMS[form])
    for parameter in ours.parameters():
        nn.init.normal_(parameter)
    standard.load_state_dict(ours.state_dict())
    dtype = FORMS[form].get("dtype", torch.float32)
    for step in range(4):
        ours, standard = copy.deepcopy(ours).train(step < 3), standard.train(step < 3)
        x = (torch.randn(VIEWS * BATCH, CHANNELS, *shape) * (1 + step) + step).to(dtype)
        x_ours, x_standard = (x.clone().requires_grad_() for _ in range(2))
        y_ours, y_standard = ours(x_ours, VIEWS), torch.cat([standard(view) for view in x_standard.split(BATCH)])
        torch.testing.assert_close(y_ours, y_standard)
        weights = torch.randn_like(x)
        for a, b in zip(
            torch.autograd.grad(y_ours, [x_ours, *ours.parameters()], weights),
            torch.autograd.grad(y_standard, [x_standard, *standard.parameters()], weights),
            strict=True,
        ):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
        assert ours.state_dict().keys() == standard.state_dict().keys()
        for name, buffer in standard.named_buffers():
            torch.testing.assert_close(ours.get_buffer(name), buffer, msg=name)


def test_statistics_that_are_no_longer_tracked_stay() -> None:
    ours, standard = PerViewBatchNorm(CHANNELS), nn.BatchNorm1d(CHANNELS)
    ours.track_running_stats = standard.track_running_stats = False
    x = torch.randn(BATCH, CHANNELS)
    torch.testing.assert_close(ours(x), standard(x))
    assert ours.state_dict()["num_batches_tracked"] == 0
    assert not ours.running_mean.any()
    torch.testing.assert_close(ours.eval()(x), standard.eval()(x))


class Block(nn.Module):
    """As a third party's residual network has it."""

    def __init__(self, norm_layer: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1), norm_layer(CHANNELS)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.norm(self.convolution(x)))
        out = self.norm(out)
        out += x
        return self.relu(out)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("channels_last", [True, False])
def test_a_residual_block_that_edits_in_place(channels_last: bool, training: bool) -> None:
    torch.manual_seed(0)
    ours, standard = Block(PerViewBatchNorm), Block(nn.BatchNorm2d)
    standard.load_state_dict(ours.state_dict())
    x = torch.randn(6, CHANNELS, 5, 5)
    x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    results = []
    for block in (ours.train(training), standard.train(training)):
        leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
        y = block(leaf)
        weights = torch.linspace(-1, 2, y.numel()).reshape(y.shape)
        results.append([y.detach(), *torch.autograd.grad(y, [leaf, *block.parameters()], weights)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


# Rows of a view in each process; the dtype; options of the module.
OVER_PROCESSES: dict[str, tuple[tuple[int, ...], torch.dtype, dict[str, Any]]] = {
    "5 and 11": ((5, 11), torch.float32, {}),
    "one row": ((1, 7), torch.float32, {"momentum": None}),
    "no row": ((0, 4), torch.float32, {}),
    "float64": ((5, 2), torch.float64, {}),
    "bfloat16": ((3, 4), torch.bfloat16, {"dtype": torch.float32}),
    "no bias": ((2, 3), torch.float32, {"bias": False}),
    "no parameters": ((2, 3), torch.float32, {"affine": False, "track_running_stats": False}),
    "1, 7 and 3": ((1, 7, 3), torch.float32, {}),
    "equal": ((2, 2, 2), torch.float64, {}),
}


TRITON = ("one row", "no row", "bfloat16", "no bias", "1, 7 and 3")  # in its interpreter, in milliseconds a launch
FORMS_OVER_PROCESSES = [(name, "eager") for name in OVER_PROCESSES]
if "triton" in backends.available():
    FORMS_OVER_PROCESSES += [(name, "triton") for name in TRITON]


def over_processes(name: str) -> tuple[PerViewBatchNorm, Tensor, Tensor]:
    """The module, all rows [V, B, C, 3, 2] and what flows back."""
    torch.manual_seed(0)
    parts, dtype, options = OVER_PROCESSES[name]
    module = PerViewBatchNorm(CHANNELS, **{"dtype": dtype, **options})
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(2, sum(parts), CHANNELS, 3, 2, dtype=torch.float64) * 2 + torch.arange(2.0).view(2, 1, 1, 1, 1)
    return module, x.to(dtype), torch.randn(x.shape).to(dtype)


def process(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    saved = {}
    for name, backend in FORMS_OVER_PROCESSES:
        parts = OVER_PROCESSES[name][0]
        if len(parts) != world:
            continue
        module, x, weights = over_processes(name)
        synchronise(module, dist.group.WORLD)
        own, flows = (t.split(parts, dim=1)[rank].flatten(0, 1) for t in (x, weights))
        own = own.clone().requires_grad_()
        with backends.backend(backend):
            module(own, 2, relu=True)
            y = module(own, 2)
        y += 0.5  # third parties edit in place
        gradients = torch.autograd.grad(y, [own, *module.parameters()], flows)
        saved[name, backend] = [y.detach(), *gradients], dict(module.named_buffers())
    torch.save(saved, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def of_processes(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[Any]]:
    found = {}
    for world in (2, 3):
        folder = tmp_path_factory.mktemp(f"world{world}")
        mp.start_processes(process, args=(world, str(folder)), nprocs=world, start_method="spawn")
        found[world] = [torch.load(folder / f"{rank}.pt") for rank in range(world)]
    return found


@pytest.mark.parametrize(("name", "backend"), FORMS_OVER_PROCESSES)
def test_processes_of_unequal_batches_equal_one_process(
    name: str, backend: str, of_processes: dict[int, list[Any]]
) -> None:
    """The gradients of the parameters add up to those of the whole batch; averaged, they are those of its mean."""
    parts, dtype, _ = OVER_PROCESSES[name]
    results, buffers = zip(*(of_rank[name, backend] for of_rank in of_processes[len(parts)]), strict=True)
    module, x, weights = over_processes(name)
    exact = module.double()
    leaf = x.double().flatten(0, 1).requires_grad_()
    exact(leaf, 2)
    expected = exact(leaf, 2) + 0.5
    flows = weights.double().flatten(0, 1)
    of_input, *of_parameters = torch.autograd.grad(expected, [leaf, *exact.parameters()], flows)
    bound = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 2e-2}[dtype]
    for position, whole in ((0, expected), (1, of_input)):
        together = torch.cat([r[position].unflatten(0, (2, part)) for r, part in zip(results, parts, strict=True)], 1)
        assert together.dtype == dtype
        torch.testing.assert_close(together.double().flatten(0, 1), whole.detach(), rtol=bound, atol=bound)
    for position, whole in enumerate(of_parameters, start=2):
        torch.testing.assert_close(sum(r[position].double() for r in results), whole, rtol=bound, atol=10 * bound)
    for of_rank in buffers:
        assert of_rank.keys() == dict(module.named_buffers()).keys()
        for key, buffer in exact.named_buffers():
            torch.testing.assert_close(of_rank[key].to(buffer.dtype), buffer, rtol=max(bound, 1e-6), atol=1e-6, msg=key)
            assert torch.equal(of_rank[key], buffers[0][key])


@pytest.mark.parametrize("training", [True, False])
def test_on_the_meta_device(training: bool) -> None:
    layer = PerViewBatchNorm(4).to("meta").train(training)
    x = torch.randn(6, 4, 3, device="meta", requires_grad=True)
    result = layer(x, views=2, relu=True)
    gradients = torch.autograd.grad(result.sum(), [x, *layer.parameters()])
    assert result.is_meta
    assert [gradient.shape for gradient in (result, *gradients)] == [x.shape, x.shape, (4,), (4,)]
