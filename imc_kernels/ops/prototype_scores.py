"""Cosine similarity of embeddings and prototypes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from imc_kernels import backends, eager, native
from imc_kernels.ops import checks
from imc_kernels.ops.autograd import memory
from imc_kernels.ops.fused_operation import FusedOperation, Gradients, Inputs, Kernels
from imc_kernels.ops.operator import Needs, of_triton
from imc_kernels.ops.precision import cast, specification

NAME = "prototype_scores"


def prototype_scores(
    embeddings: Tensor, prototypes: Tensor, *, normalize_prototypes: bool = True, backend: str | None = None
) -> Tensor:
    """Cosine of every embedding with every prototype.

    Rows are divided by ``max(norm, 1e-12)``, as in ``torch.nn.functional.normalize``. Source: SwAV, arXiv 2006.09882,
    section 3.1.

    Memory: on ``cpu``, beside result and gradients, one copy of the prototypes; in the backward of them or, for the
    prototypes' gradient, of the embeddings, and for half precision a gradient in float32.

    Args:
        embeddings: [..., D], float32, float64, bfloat16 or float16.
        prototypes: [K, D], the same, on the same device.
        normalize_prototypes: divide the prototypes by their norms too, inside the gradient. False takes them as they
            are: SwAV and IMC-SwAV normalise the parameter in place before the step, and its gradient is not projected.
        backend: see :mod:`imc_kernels.backends`.

    Returns:
        [..., K] of the inputs' dtype, or of that to which torch's arithmetic promotes two: float32 for bfloat16
        embeddings and float32 prototypes. Half precision is computed in float32.

    Raises:
        TypeError: an input is no tensor, not of a floating dtype, or the option no boolean.
        ValueError: shapes or devices that do not fit, or an empty input.
        NotImplementedError: a kernel is asked for a derivative that only ``backend="eager"`` has.
    """
    embeddings = checks.floating(NAME, "embeddings", embeddings, "[..., D]")
    prototypes = checks.floating(NAME, "prototypes", prototypes, "[K, D]")
    dtype = checks.together(NAME, embeddings=embeddings, prototypes=prototypes)
    embeddings, prototypes = cast(embeddings, dtype), cast(prototypes, dtype)
    if embeddings.shape[-1] != prototypes.shape[-1]:
        raise ValueError(
            f"{NAME}: embeddings [..., D] and prototypes [K, D] must agree in D, got {list(embeddings.shape)} and "
            f"{list(prototypes.shape)}"
        )
    normalize = checks.flag(NAME, "normalize_prototypes", normalize_prototypes)
    chosen = backends.choose(NAME, OPERATION.backends, embeddings.device, embeddings.dtype, backend)
    if chosen == "eager":
        scores = specification(eager.prototype_scores, embeddings, prototypes, normalize)
        return scores.to(embeddings.dtype)
    return cast(OPERATION(chosen, (embeddings, prototypes), (normalize,))[0], embeddings.dtype)


def _cpu(inputs: Inputs, options: Sequence[Any], needs: Needs) -> tuple[Tensor]:
    embeddings, prototypes = inputs[0].contiguous(), inputs[1].contiguous()
    scores = _empty("cpu", inputs, options, needs)[0]
    native.call("_cpu", NAME, embeddings, prototypes, scores, *options)
    return (scores,)


def _cpu_backward(
    inputs: Inputs, saved: Sequence[Tensor], grad_output: Tensor, options: Sequence[Any], needs: Needs
) -> Gradients:
    tensors = [x.contiguous() for x in inputs]
    gradients = tuple(torch.empty_like(x) if needed else None for x, needed in zip(tensors, needs, strict=True))
    native.call("_cpu", "prototype_scores_backward", *tensors, memory(grad_output), *gradients, *options)
    return gradients


def _empty(backend: str, inputs: Inputs, options: Sequence[Any], needs: Needs) -> tuple[Tensor]:
    embeddings, prototypes = inputs
    return (embeddings.new_empty(size=(*embeddings.shape[:-1], prototypes.shape[0])),)


OPERATION = FusedOperation(
    NAME,
    {
        "triton": Kernels(of_triton(NAME), of_triton(NAME, "prototype_scores_backward"), reads_half=True),
        "cpu": Kernels(_cpu, _cpu_backward, reads_half=True),
    },
    inputs=("embeddings", "prototypes"),
    options={"normalize_prototypes": "bool"},
    empty=_empty,
)
