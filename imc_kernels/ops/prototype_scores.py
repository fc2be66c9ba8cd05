"""Cosine similarity of embeddings and prototypes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from imc_kernels import backends, eager, native
from imc_kernels.ops import checks

NAME = "prototype_scores"


def prototype_scores(
    embeddings: Tensor, prototypes: Tensor, *, normalize_prototypes: bool = True, backend: str | None = None
) -> Tensor:
    """Cosine of every embedding with every prototype.

    Rows are divided by ``max(norm, 1e-12)``, as in ``torch.nn.functional.normalize``. Source: SwAV, arXiv 2006.09882,
    section 3.1.

    Args:
        embeddings: [..., D], float32, float64, bfloat16 or float16.
        prototypes: [K, D]; same dtype and device.
        normalize_prototypes: divide the prototypes by their norms too, inside the gradient. False takes them as they
            are: SwAV and IMC-SwAV normalise the parameter in place before the step, and its gradient is not projected.
        backend: see :mod:`imc_kernels.backends`.

    Returns:
        [..., K] of the embeddings' dtype. Half precision is computed in float32.

    Raises:
        TypeError: an input is no tensor, or not of a floating dtype.
        ValueError: shapes, devices or dtypes that do not fit, or an empty input.
    """
    checks.floating(NAME, "embeddings", embeddings, "[..., D]")
    checks.floating(NAME, "prototypes", prototypes, "[K, D]")
    checks.together(NAME, embeddings=embeddings, prototypes=prototypes)
    if embeddings.shape[-1] != prototypes.shape[-1]:
        raise ValueError(
            f"{NAME}: embeddings [..., D] and prototypes [K, D] must agree in D, got {list(embeddings.shape)} and "
            f"{list(prototypes.shape)}"
        )
    implementation = backends.select(NAME, IMPLEMENTATIONS, embeddings, backend)
    single = checks.at_least_single
    return implementation(single(embeddings), single(prototypes), normalize_prototypes).to(embeddings.dtype)


def _cpu(embeddings: Tensor, prototypes: Tensor, normalize_prototypes: bool) -> Tensor:
    if torch.is_grad_enabled() and (embeddings.requires_grad or prototypes.requires_grad):
        return _PrototypeScores.apply(embeddings, prototypes, normalize_prototypes)
    return _cpu_forward(embeddings.contiguous(), prototypes.contiguous(), normalize_prototypes)


class _PrototypeScores(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, embeddings: Tensor, prototypes: Tensor, normalize_prototypes: bool) -> Tensor:
        embeddings, prototypes = embeddings.contiguous(), prototypes.contiguous()
        ctx.save_for_backward(embeddings, prototypes)
        ctx.normalize_prototypes = normalize_prototypes
        return _cpu_forward(embeddings, prototypes, normalize_prototypes)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        embeddings, prototypes = ctx.saved_tensors
        gradients = [
            torch.empty_like(tensor) if needed else None
            for tensor, needed in zip((embeddings, prototypes), ctx.needs_input_grad, strict=False)
        ]
        native.call(
            "_cpu",
            "prototype_scores_backward",
            [
                (embeddings, embeddings.shape),
                (prototypes, prototypes.shape),
                (grad_output.contiguous(), (*embeddings.shape[:-1], prototypes.shape[0])),
                (gradients[0], embeddings.shape),
                (gradients[1], prototypes.shape),
            ],
            embeddings.shape[:-1].numel(),
            *prototypes.shape,
            ctx.normalize_prototypes,
        )
        return *gradients, None


def _cpu_forward(embeddings: Tensor, prototypes: Tensor, normalize_prototypes: bool) -> Tensor:
    scores = embeddings.new_empty(*embeddings.shape[:-1], prototypes.shape[0])
    native.call(
        "_cpu",
        NAME,
        [(embeddings, embeddings.shape), (prototypes, prototypes.shape), (scores, scores.shape)],
        embeddings.shape[:-1].numel(),
        *prototypes.shape,
        normalize_prototypes,
    )
    return scores


IMPLEMENTATIONS = {"cpu": _cpu, "eager": eager.prototype_scores}
