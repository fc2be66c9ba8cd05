"""The operations, with inputs of any size, as the tests and the benchmarks share them."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import imc_kernels
from imc_kernels import backends


def native_backends(operation: str, dtype: torch.dtype = torch.float32) -> list[str]:
    """The backends of this machine, but for eager, that have the operation with its gradient and serve the dtype."""
    module = importlib.import_module(f"imc_kernels.ops.{operation}")
    form = module.LOSS if hasattr(module, "LOSS") else module.OPERATION
    return [name for name in form.kernels if name in backends.available() and dtype in backends.BACKENDS[name].dtypes]


def all_backends(operation: str, dtype: torch.dtype = torch.float32) -> list[str]:
    """Those and eager."""
    return [*native_backends(operation, dtype), "eager"]


def device_of(backend: str, default: str = "cpu") -> str:
    """Where a backend's inputs lie; ``default`` where it takes any."""
    entry = backends.BACKENDS[backend]
    return "cpu" if entry.emulated() else default if entry.devices is None else entry.devices[0]


device_of._dynamo_marked_constant = True  # type: ignore[attr-defined]  # as backends.choose: torch.compile asks once


def measured_backends(device: str = "cpu") -> list[str]:
    """The backends of this machine whose times mean something, for tensors on a type of device."""
    served = (name for name in backends.available() if device_of(name, default=device) == device)
    return [name for name in served if not backends.BACKENDS[name].emulated()]


class Sizes(NamedTuple):
    """V views, B samples a view, K prototypes, C clusters, D embedding dimensions, H cluster sub-heads."""

    views: int
    batch: int
    prototypes: int
    clusters: int
    dim: int
    heads: int = 2

    def __str__(self) -> str:
        heads = "" if self.heads == self._field_defaults["heads"] else f"-H{self.heads}"
        return "V{}-B{}-K{}-C{}-D{}".format(*self) + heads


@dataclass(frozen=True)
class Operation:
    """A public function, float64 inputs for given sizes, and which of them a gradient can reach.

    A loss returns float32 for half-precision inputs, every other operation the dtype of its inputs. The last inputs are
    passed by the names in ``keywords``, where there are any; those of one name as a tuple. ``constant`` says that the
    function holds something constant that its inputs determine, so that its gradient is no limit of its differences.
    """

    name: str
    make_inputs: Callable[[Sizes, torch.Generator], tuple[Tensor, ...]]
    differentiable: tuple[bool, ...]
    options: dict[str, Any] = field(default_factory=dict)
    label: str = ""
    is_loss: bool = False
    keywords: tuple[str, ...] = ()
    constant: bool = False

    @property
    def backends(self) -> list[str]:
        """Where it runs natively on this machine."""
        return native_backends(self.name)

    @property
    def function(self) -> Callable[..., Tensor]:
        function, keywords = getattr(imc_kernels, self.name), self.keywords

        def call(*inputs: Tensor, **options: Any) -> Tensor:
            first = len(inputs) - len(keywords)
            named: dict[str, list[Tensor]] = {}
            for name, tensor in zip(keywords, inputs[first:], strict=True):
                named.setdefault(name, []).append(tensor)
            given = {name: tensors[0] if len(tensors) == 1 else tuple(tensors) for name, tensors in named.items()}
            return function(*inputs[:first], **given, **options)

        return call if keywords else function

    def inputs(self, sizes: Sizes, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
        seed = int.from_bytes(hashlib.sha256(f"{self.name} {sizes}".encode()).digest()[:4], "big")
        made = self.make_inputs(sizes, torch.Generator().manual_seed(seed))
        # Rounded to float32 first: every dtype from float32 up is given the same numbers.
        return tuple(tensor.float().to(dtype) for tensor in made)

    def __call__(self, *inputs: Tensor, backend: str) -> Tensor:
        """The function on the backend's device, the result where the inputs are."""
        here = inputs[0].device
        there = device_of(backend, default=here.type)
        return self.function(*(x.to(there) for x in inputs), **self.options, backend=backend).to(here)

    def __str__(self) -> str:
        return self.label or self.name


def cosines(sizes: Sizes, generator: torch.Generator) -> Tensor:
    """Scores [V, B, K] in [-1, 1]."""
    return torch.rand(sizes.views, sizes.batch, sizes.prototypes, generator=generator, dtype=torch.float64) * 2 - 1


def assignments(sizes: Sizes, generator: torch.Generator) -> Tensor:
    """Peaky targets [A, B, K] whose rows sum to 1, for A = min(2, V) views."""
    logits = torch.randn(min(2, sizes.views), sizes.batch, sizes.prototypes, generator=generator, dtype=torch.float64)
    return torch.softmax(3 * logits, dim=-1)


def normal(*shape: int, generator: torch.Generator) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def maps_and_affine(sizes: Sizes, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Maps [2 B, D, 3, 3] about means that differ by channel, in the order of convolutions; weight and bias [D]."""
    maps = normal(2 * sizes.batch, sizes.dim, 3, 3, generator=generator)
    weight, bias, means = normal(3, sizes.dim, generator=generator)
    return (maps + 3 * means[:, None, None]).contiguous(memory_format=torch.channels_last), weight, bias


def embedded(sizes: Sizes, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Embeddings [V, B, D] and prototypes [K, D]."""
    embeddings = normal(sizes.views, sizes.batch, sizes.dim, generator=generator)
    return embeddings, normal(sizes.prototypes, sizes.dim, generator=generator) / sizes.dim**0.5


def distilled(sizes: Sizes, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Logits [H, 2, B, C] of students and teachers, as unsure of a cluster as in training at a temperature of 0.1."""
    students, teachers = 0.2 * normal(2, sizes.heads, 2, sizes.batch, sizes.clusters, generator=generator)
    return students, teachers


OPERATIONS = [
    Operation("sinkhorn", lambda s, g: (cosines(s, g)[: min(2, s.views)],), (True,)),
    Operation(
        "sinkhorn",
        lambda s, g: (cosines(s, g)[: min(2, s.views)] * 40,),
        (True,),
        {"iterations": 4},
        label="sinkhorn-logarithmic",
    ),
    Operation(
        "transport_plan",
        lambda s, g: (cosines(s, g)[: min(2, s.views)],),
        (True,),
        {"iterations": 6, "epsilon": 0.2, "reach": 0.5},
    ),
    Operation(
        "prototype_scores",
        lambda s, g: (
            normal(s.views, s.batch, s.dim, generator=g),
            normal(s.prototypes, s.dim, generator=g),
        ),
        (True, True),
    ),
    Operation(
        "prototype_scores",
        lambda s, g: (
            normal(s.views, s.batch, s.dim, generator=g),
            normal(s.prototypes, s.dim, generator=g) / s.dim**0.5,
        ),
        (True, True),
        {"normalize_prototypes": False},
        label="prototype_scores-unnormalised",
    ),
    Operation("per_view_batch_norm", maps_and_affine, (True, True, True), {"views": 2}),
    Operation(
        "per_view_batch_norm",
        maps_and_affine,
        (True, True, True),
        {"views": 2, "eps": 0.1, "relu": True},
        label="per_view_batch_norm-relu",
    ),
    Operation(
        "per_view_batch_norm",
        lambda s, g: (*maps_and_affine(s, g), normal(2 * s.batch, s.dim, 3, 3, generator=g)),
        (True, True, True, True),
        {"views": 2, "relu": True},
        label="per_view_batch_norm-residual",
        keywords=("residual",),
    ),
    Operation("swapped_prediction_loss", lambda s, g: (cosines(s, g), assignments(s, g)), (True, False), is_loss=True),
    Operation("linear_swapped_prediction_loss", embedded, (True, True), is_loss=True, constant=True),
    Operation(
        "linear_swapped_prediction_loss",
        lambda s, g: (
            *embedded(s, g),
            normal(2, s.batch, s.dim + 1, generator=g),
            normal(s.prototypes, s.dim + 1, generator=g),
            torch.rand(s.views, s.batch, generator=g, dtype=torch.float64) + 0.5,
        ),
        (True, True, False, False, False),
        {"pairs": "all", "epsilon": 0.1, "iterations": 1},
        label="linear_swapped_prediction_loss-teacher",
        is_loss=True,
        keywords=("teacher", "teacher", "weights"),
    ),
    Operation(
        "mutual_information_loss",
        lambda s, g: (2 * normal(s.views, s.batch, s.clusters, generator=g), cosines(s, g)),
        (True, True),
        is_loss=True,
    ),
    Operation(
        "mutual_information_loss",
        lambda s, g: (4 * normal(s.views, s.batch, s.clusters, generator=g), cosines(s, g)),
        (True, True),
        {"logit_limit": 5.0, "entropy_weight": 2.0, "temperature": 0.5},
        label="mutual_information_loss-guarded",
        is_loss=True,
    ),
    Operation(
        "log_dot_product_loss",
        lambda s, g: (2 * normal(s.heads, 2, s.batch, s.clusters, generator=g),),
        (True,),
        is_loss=True,
    ),
    Operation(
        "log_dot_product_loss",
        lambda s, g: (4 * normal(s.heads, 2, s.batch, s.clusters, generator=g),),
        (True,),
        {"smoothing": 0.0, "entropy_weight": 2.0, "logit_limit": 5.0},
        label="log_dot_product_loss-guarded",
        is_loss=True,
    ),
    Operation(
        "self_distillation_loss",
        lambda s, g: (*distilled(s, g), torch.softmax(normal(s.heads, s.clusters, generator=g), dim=-1)),
        (True, False, False),
        is_loss=True,
        keywords=("prior",),
    ),
    Operation(
        "self_distillation_loss",
        lambda s, g: (*distilled(s, g), torch.rand(s.batch, generator=g, dtype=torch.float64) + 0.5),
        (True, False, False),
        {"beta": 1.0, "student_temperature": 0.5, "teacher_temperature": 0.25, "entropy_weight": 2.0},
        label="self_distillation_loss-weighted",
        is_loss=True,
        keywords=("weights",),
    ),
    Operation(
        "info_nce_loss",
        lambda s, g: (torch.nn.functional.normalize(normal(2, s.batch, s.dim, generator=g), dim=-1),),
        (True,),
        is_loss=True,
    ),
    Operation(
        "info_nce_loss",
        lambda s, g: (normal(2, s.batch, s.dim, generator=g),),
        (True,),
        {"temperature": 0.5, "normalise": True},
        label="info_nce_loss-normalised",
        is_loss=True,
    ),
    Operation(
        "mutual_information_loss",
        lambda s, g: tuple(2 * normal(s.views, s.batch, s.clusters, generator=g) for _ in range(2)),
        (True, True),
        {"symmetric": True, "entropy_weight": 2.0, "temperature": 1.0},
        label="mutual_information_loss-symmetric",
        is_loss=True,
    ),
]

# Every operation on every backend that has it.
CASES = [(operation, backend) for operation in OPERATIONS for backend in operation.backends]
each_case = pytest.mark.parametrize(("operation", "backend"), CASES, ids=str)

# What stands between a call and its kernel is written once for all losses: of slow, emulated kernels one loss is tried.
BOUNDARY_CASES = [
    (operation, backend)
    for operation, backend in CASES
    if not backends.BACKENDS[backend].emulated()
    or (not operation.label and (not operation.is_loss or operation.name == "swapped_prediction_loss"))
]
each_boundary_case = pytest.mark.parametrize(("operation", "backend"), BOUNDARY_CASES, ids=str)
