"""What the report of a device measures: operations at the papers' sizes, with the forms of each and their floors.

Sizes: IMC-SwAV's CIFAR-10 (V6 B256 K1000 C10 D128), SwAV's ImageNet (B4096 K3000), CRLC's CIFAR-10 (H10 B512 C10 D128),
and InfoNCE at N = 65,536. A case counts the bytes that any form must move (each input read once, each output written
once) and its multiply-adds as two operations, of the forward and the backward pass where both are timed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import rivals
import torch
from losses import imc_swav_losses
from torch import Tensor
from torch.nn.functional import normalize

import imc_kernels
from imc_kernels import backends, draw_crop_parameters

Form = Callable[..., Any]
Inputs = tuple[Tensor, ...]
CIFAR_STATISTICS: dict[str, Any] = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2023, 0.1994, 0.2010)}


@dataclass(frozen=True)
class Case:
    """One piece of work in several forms.

    Attributes:
        name: of the operation or step.
        size: as the papers name it.
        make: (generator, device) -> a set of inputs; those that require a gradient get one.
        fused: the call of this package; it runs on every backend.
        rivals: other forms, by name. ``batched`` is also compiled.
        bytes, operations: the floor.
        dtype: of the inputs.
        rate: which measured matrix rate bounds it: that of "float32" or "bfloat16".
    """

    name: str
    size: str
    make: Callable[[torch.Generator, torch.device], Inputs]
    fused: Form
    rivals: dict[str, Form] = field(default_factory=dict)
    bytes: int = 0
    operations: int = 0
    dtype: torch.dtype = torch.float32
    rate: str = "float32"

    def inputs(self, seed: int, device: torch.device) -> Inputs:
        return self.make(torch.Generator(device).manual_seed(seed), device)

    def forms(self, device: torch.device, compiled: bool) -> dict[str, Form]:
        """Every form that can run on the device: backends, rivals, and torch.compile of the best of these."""
        serving = backends.serving(device.type, self.dtype)
        forms = {name: partial(_with_backend, name, self.fused) for name in serving} | self.rivals
        if compiled and "batched" in forms:
            # Without graphs of its own: every form is replayed from a graph by the same code.
            forms["torch.compile"] = torch.compile(forms["batched"], fullgraph=True, mode="max-autotune-no-cudagraphs")
        return {name: partial(_with_gradients, form) for name, form in forms.items()}


def _with_backend(name: str, form: Form, *inputs: Tensor) -> Any:
    with backends.backend(name):
        return form(*inputs)


def _with_gradients(form: Form, *inputs: Tensor) -> Any:
    result = form(*inputs)
    leaves = [x for x in inputs if x.requires_grad]
    if not leaves:
        return result
    return torch.autograd.grad(result, leaves, None if result.dim() == 0 else torch.ones_like(result))


def _uniform(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, gradient: bool = False):  # type: ignore[no-untyped-def]
    """Makes cosines: uniform in [-1, 1]."""

    def make(generator: torch.Generator, device: torch.device) -> Tensor:
        x = torch.rand(shape, generator=generator, device=device) * 2 - 1
        return x.to(dtype).requires_grad_(gradient)

    return make


def _normal(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, unit: bool = False):  # type: ignore[no-untyped-def]
    """Makes normal leaves, of norm 1 where asked."""

    def make(generator: torch.Generator, device: torch.device) -> Tensor:
        x = torch.randn(shape, generator=generator, device=device)
        return (normalize(x, dim=-1) if unit else x).to(dtype).requires_grad_()

    return make


def _all(*makers):  # type: ignore[no-untyped-def]
    return lambda generator, device: tuple(make(generator, device) for make in makers)


def _assignments(shape: tuple[int, ...]):  # type: ignore[no-untyped-def]
    return lambda generator, device: torch.softmax(3 * torch.randn(shape, generator=generator, device=device), dim=-1)


def _sinkhorn(problems: int, batch: int, prototypes: int, size: str, dtype: torch.dtype = torch.float32) -> Case:
    elements = problems * batch * prototypes
    return Case(
        "sinkhorn",
        f"[{problems}, {batch}, {prototypes}] {size}",
        _all(_uniform((problems, batch, prototypes), dtype)),
        imc_kernels.sinkhorn,
        {
            "released": lambda s: torch.stack([rivals.released_sinkhorn(view.float()) for view in s]).to(dtype),
            "batched": lambda s: rivals.batched_sinkhorn(s.float()).to(dtype),
        },
        bytes=2 * elements * dtype.itemsize,
        dtype=dtype,
    )


def _prototype_scores(rows: int, dim: int, prototypes: int, size: str, dtype: torch.dtype) -> Case:
    return Case(
        "prototype_scores",
        f"[{rows}, {dim}] x [{prototypes}, {dim}] {size}",
        _all(_normal((rows, dim), dtype), _normal((prototypes, dim), dtype)),
        imc_kernels.prototype_scores,
        {"batched": rivals.batched_prototype_scores},
        bytes=(3 * (rows + prototypes) * dim + 2 * rows * prototypes) * dtype.itemsize,
        operations=3 * 2 * rows * dim * prototypes,
        dtype=dtype,
        rate=str(dtype).removeprefix("torch."),
    )


def _info_nce(batch: int, dim: int, size: str, dtype: torch.dtype) -> Case:
    rows = 2 * batch
    return Case(
        "info_nce_loss",
        f"[2, {batch}, {dim}] {size}",
        _all(_normal((2, batch, dim), dtype, unit=True)),
        imc_kernels.info_nce_loss,
        {"batched": rivals.batched_info_nce},
        bytes=2 * rows * dim * dtype.itemsize,
        operations=3 * 2 * rows**2 * dim,  # S once forward; S again and its product with Z backward
        dtype=dtype,
        rate=str(dtype).removeprefix("torch."),
    )


def _swapped_prediction(views: int, batch: int, prototypes: int, size: str) -> Case:
    elements = batch * prototypes
    return Case(
        "swapped_prediction_loss",
        f"[{views}, {batch}, {prototypes}] {size}",
        _all(_uniform((views, batch, prototypes), gradient=True), _assignments((2, batch, prototypes))),
        imc_kernels.swapped_prediction_loss,
        rivals.RIVALS["swapped_prediction_loss"],
        bytes=4 * (2 * views + 2) * elements,
    )


def _mutual_information(views: int, batch: int, clusters: int, prototypes: int, size: str) -> Case:
    return Case(
        "mutual_information_loss",
        f"[{views}, {batch}, {clusters}], [{views}, {batch}, {prototypes}] {size}",
        _all(_normal((views, batch, clusters)), _uniform((views, batch, prototypes))),
        partial(imc_kernels.mutual_information_loss, **rivals.OPTIONS["mutual_information_loss"]),
        rivals.RIVALS["mutual_information_loss"],
        bytes=4 * views * batch * (2 * clusters + prototypes),
        operations=2 * 2 * views * clusters * batch * views * prototypes,
    )


def _log_dot_product(heads: int, batch: int, clusters: int, size: str) -> Case:
    return Case(
        "log_dot_product_loss",
        f"[{heads}, 2, {batch}, {clusters}] {size}",
        _all(_normal((heads, 2, batch, clusters))),
        partial(imc_kernels.log_dot_product_loss, **rivals.OPTIONS["log_dot_product_loss"]),
        rivals.RIVALS["log_dot_product_loss"],
        bytes=2 * 4 * heads * 2 * batch * clusters,
    )


def _self_distillation(heads: int, batch: int, clusters: int, size: str) -> Case:
    shape, elements = (heads, 2, batch, clusters), heads * 2 * batch * clusters

    def make(generator: torch.Generator, device: torch.device) -> Inputs:
        source: dict[str, Any] = {"generator": generator, "device": device}
        students, teachers = 0.2 * torch.randn(2, *shape, **source)
        prior = torch.softmax(torch.randn(heads, clusters, **source), dim=-1)
        return students.requires_grad_(), teachers, prior

    return Case(
        "self_distillation_loss",
        f"{list(shape)} {size}",
        make,
        lambda students, teachers, prior: imc_kernels.self_distillation_loss(students, teachers, prior=prior),
        rivals.RIVALS["self_distillation_loss"],
        bytes=3 * 4 * elements,
    )


def _multi_crop(batch: int, side: int, crops: tuple[tuple[int, int, tuple[float, float]], ...], size: str) -> Case:
    def make(generator: torch.Generator, device: torch.device) -> Inputs:
        source: dict[str, Any] = {"generator": generator, "device": device}
        images = torch.randint(0, 256, (4 * batch, side, side, 3), dtype=torch.uint8, **source)
        indices = torch.randperm(4 * batch, **source)[:batch]
        drawn, first = [], 0
        for views, _, scale in crops:
            fixed: dict[str, Any] = {"views": views, "first_view": first, "scale": scale}
            drawn.append(draw_crop_parameters(generator.initial_seed(), 0, indices, height=side, width=side, **fixed))
            first += views
        return images, indices, *drawn

    def crop(images: Tensor, indices: Tensor, *drawn: Tensor) -> list[Tensor]:
        return [
            imc_kernels.multi_crop(images, indices, parameters, size=pixels, **CIFAR_STATISTICS)
            for (_, pixels, _), parameters in zip(crops, drawn, strict=True)
        ]

    written = sum(views * batch * 3 * pixels**2 for views, pixels, _ in crops)
    return Case("multi_crop", size, make, crop, bytes=batch * side**2 * 3 + 4 * written)


def _imc_swav_step(views: int, batch: int, clusters: int, prototypes: int, size: str) -> Case:
    return Case(
        "losses of an IMC-SwAV step",
        f"V{views} B{batch} K{prototypes} C{clusters} {size}",
        _all(_uniform((views, batch, prototypes), gradient=True), _normal((views, batch, clusters))),
        imc_swav_losses,
        {"released": rivals.released_losses, "batched": rivals.batched_losses},
        bytes=4 * views * batch * 2 * (prototypes + clusters),
        operations=2 * 2 * views * clusters * batch * views * prototypes,
    )


def _crlc_step(heads: int, batch: int, clusters: int, dim: int, size: str) -> Case:
    def losses(logits: Tensor, embeddings: Tensor) -> Tensor:
        cluster = imc_kernels.log_dot_product_loss(logits, **rivals.OPTIONS["log_dot_product_loss"])
        return 10 * imc_kernels.info_nce_loss(embeddings) + cluster.mean()

    return Case(
        "losses of a CRLC step",
        f"H{heads} B{batch} C{clusters} D{dim} {size}",
        _all(_normal((heads, 2, batch, clusters)), _normal((2, batch, dim), unit=True)),
        losses,
        {
            "batched": lambda logits, embeddings: (
                10 * rivals.batched_info_nce(embeddings) + rivals.batched_log_dot_product(logits).mean()
            )
        },
        bytes=2 * 4 * 2 * batch * (heads * clusters + dim),
        operations=3 * 2 * (2 * batch) ** 2 * dim,
    )


def cases() -> list[Case]:
    """Everything the report measures."""
    cifar, swav, crlc, temi = "IMC-SwAV CIFAR-10", "SwAV ImageNet", "CRLC CIFAR-10", "TEMI CIFAR-10"
    sweep = "sweep"
    return [
        _imc_swav_step(6, 256, 10, 1000, cifar),
        _imc_swav_step(6, 512, 200, 1000, "IMC-SwAV Tiny-ImageNet"),
        _crlc_step(10, 512, 10, 128, crlc),
        _sinkhorn(2, 256, 1000, cifar),
        _sinkhorn(1, 4096, 3000, swav),
        *(_sinkhorn(2, batch, 1000, sweep) for batch in (64, 1024)),
        _sinkhorn(2, 256, 1000, cifar, torch.bfloat16),
        _prototype_scores(6 * 256, 128, 1000, cifar, torch.float32),
        _prototype_scores(8 * 4096, 128, 3000, swav, torch.bfloat16),
        _swapped_prediction(6, 256, 1000, cifar),
        _swapped_prediction(8, 4096, 3000, swav),
        _mutual_information(6, 256, 10, 1000, cifar),
        _log_dot_product(10, 512, 10, crlc),
        _self_distillation(16, 1024, 10, temi),
        _self_distillation(50, 512, 100, "TEMI, 50 heads"),
        _info_nce(512, 128, crlc, torch.float32),
        _info_nce(4096, 128, sweep, torch.bfloat16),
        _info_nce(32768, 128, "N = 65,536", torch.bfloat16),
        _multi_crop(256, 32, ((2, 28, (0.2, 1.0)), (4, 18, (0.08, 0.4))), f"B256 2x28 + 4x18 {cifar}"),
        _multi_crop(256, 96, ((2, 76, (0.2, 1.0)), (4, 52, (0.08, 0.4))), "B256 2x76 + 4x52 IMC-SwAV STL-10"),
    ]


def tiny_cases() -> list[Case]:
    """The same kinds of case, small enough for a test on the CPU."""
    return [
        _imc_swav_step(3, 16, 4, 12, "tiny"),
        _crlc_step(2, 16, 4, 8, "tiny"),
        _sinkhorn(2, 16, 12, "tiny"),
        _prototype_scores(16, 8, 12, "tiny", torch.float32),
        _swapped_prediction(3, 16, 12, "tiny"),
        _mutual_information(3, 16, 4, 12, "tiny"),
        _log_dot_product(2, 16, 4, "tiny"),
        _self_distillation(2, 16, 4, "tiny"),
        _info_nce(16, 8, "tiny", torch.float32),
        _multi_crop(8, 12, ((2, 8, (0.2, 1.0)), (1, 6, (0.08, 0.4))), "tiny"),
    ]
