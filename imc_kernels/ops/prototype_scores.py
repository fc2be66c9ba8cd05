"""Cosine similarity of embeddings and prototypes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from imc_kernels import backends, eager, native
from imc_kernels.ops import checks
from imc_kernels.ops.autograd import is_direct, memory, only_first_derivative
from imc_kernels.ops.precision import at_least_single, cast, specification

NAME = "prototype_scores"


def prototype_scores(
    embeddings: Tensor, prototypes: Tensor, *, normalize_prototypes: bool = True, backend: str | None = None
) -> Tensor:
    """Cosine of every embedding with every prototype.

    Rows are divided by ``max(norm, 1e-12)``, as in ``torch.nn.functional.normalize``. Source: SwAV, arXiv 2006.09882,
    section 3.1.

    Memory: on ``cpu``, beside result and gradients, one copy of the prototypes; in the backward of them or, for the
    prototypes' gradient, of the embeddings.

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
    chosen = backends.choose(NAME, OFFERED, embeddings.device, embeddings.dtype, backend)
    if chosen == "eager":
        scores = specification(eager.prototype_scores, embeddings, prototypes, normalize)
        return scores.to(embeddings.dtype)
    kernels = KERNELS[chosen]
    direct = is_direct(NAME, chosen, embeddings, prototypes)
    x, w = (t if kernels.reads_half else at_least_single(t) for t in (embeddings, prototypes))
    if not direct:
        return cast(_operator(x, w, normalize, chosen), embeddings.dtype)
    if torch.is_grad_enabled() and (embeddings.requires_grad or prototypes.requires_grad):
        return cast(_PrototypeScores.apply(chosen, x, w, normalize), embeddings.dtype)
    return cast(kernels.forward(x, w, normalize), embeddings.dtype)


Backward = Callable[[Tensor, Tensor, Tensor, bool, Sequence[bool]], "tuple[Tensor | None, Tensor | None]"]


class Kernels(NamedTuple):
    """A backend's form of the operation.

    Attributes:
        forward: (embeddings, prototypes, normalize_prototypes) -> the scores.
        backward: (embeddings, prototypes, grad_output, normalize_prototypes, needs) -> the gradients of the two
            tensors, None for one that is not needed.
        reads_half: whether it reads half precision itself.
    """

    forward: Callable[[Tensor, Tensor, bool], Tensor]
    backward: Backward
    reads_half: bool = False


def _triton(embeddings: Tensor, prototypes: Tensor, normalize_prototypes: bool) -> Tensor:
    from imc_kernels.triton.prototype_scores import prototype_scores as kernel

    return kernel(embeddings, prototypes, normalize_prototypes)


def _triton_backward(*arguments: Any) -> tuple[Tensor | None, Tensor | None]:
    from imc_kernels.triton.prototype_scores import prototype_scores_backward as kernel

    return kernel(*arguments)


def _cpu(embeddings: Tensor, prototypes: Tensor, normalize_prototypes: bool) -> Tensor:
    embeddings, prototypes = embeddings.contiguous(), prototypes.contiguous()
    scores = embeddings.new_empty(*embeddings.shape[:-1], prototypes.shape[0])
    native.call("_cpu", NAME, embeddings, prototypes, scores, normalize_prototypes)
    return scores


def _cpu_backward(
    embeddings: Tensor,
    prototypes: Tensor,
    grad_output: Tensor,
    normalize_prototypes: bool,
    needs: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None]:
    embeddings, prototypes = embeddings.contiguous(), prototypes.contiguous()
    gradients = (
        torch.empty_like(embeddings) if needs[0] else None,
        torch.empty_like(prototypes) if needs[1] else None,
    )
    given = (embeddings, prototypes, memory(grad_output))
    native.call("_cpu", "prototype_scores_backward", *given, *gradients, normalize_prototypes)
    return gradients


KERNELS = {
    "triton": Kernels(_triton, _triton_backward, reads_half=True),
    "cpu": Kernels(_cpu, _cpu_backward),
}
OFFERED = (*KERNELS, "eager")


class _PrototypeScores(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, backend: str, embeddings: Tensor, prototypes: Tensor, normalize_prototypes: bool) -> Tensor:
        ctx.save_for_backward(embeddings, prototypes)
        ctx.operation, ctx.backend, ctx.normalize_prototypes = NAME, backend, normalize_prototypes
        return KERNELS[backend].forward(embeddings, prototypes, normalize_prototypes)

    @staticmethod
    @only_first_derivative
    def backward(ctx: Any, saved: tuple[Tensor, Tensor], grad_output: Tensor) -> tuple[Tensor | None, ...]:
        needs = ctx.needs_input_grad[1:3]
        return None, *KERNELS[ctx.backend].backward(*saved, grad_output, ctx.normalize_prototypes, needs), None


# What torch sees in place of the calls above, where it must see an operator (ops/autograd.py).


@torch.library.custom_op(
    "imc_kernels::prototype_scores",
    mutates_args=(),
    schema="(Tensor embeddings, Tensor prototypes, bool normalize_prototypes, str backend) -> Tensor",
)
def _operator(embeddings: Tensor, prototypes: Tensor, normalize_prototypes: bool, backend: str) -> Tensor:
    return KERNELS[backend].forward(embeddings, prototypes, normalize_prototypes)


@_operator.register_fake
def _(embeddings: Tensor, prototypes: Tensor, normalize_prototypes: bool, backend: str) -> Tensor:
    return embeddings.new_empty(*embeddings.shape[:-1], prototypes.shape[0])


@torch.library.custom_op(
    "imc_kernels::prototype_scores_backward",
    mutates_args=(),
    schema="(Tensor embeddings, Tensor prototypes, Tensor grad_output, bool normalize_prototypes, bool[] needs, "
    "str backend) -> Tensor[]",
)
def _backward_operator(embeddings: Tensor, *rest: Any) -> list[Tensor]:
    *arguments, backend = rest
    gradients = KERNELS[backend].backward(embeddings, *arguments)
    return [embeddings.new_empty(0) if gradient is None else gradient for gradient in gradients]


@_backward_operator.register_fake
def _(
    embeddings: Tensor,
    prototypes: Tensor,
    grad_output: Tensor,
    normalize_prototypes: bool,
    needs: Sequence[bool],
    backend: str,
) -> list[Tensor]:
    return [x.new_empty(x.shape if need else 0) for x, need in zip((embeddings, prototypes), needs, strict=True)]


def _setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    *tensors, ctx.normalize_prototypes, ctx.backend = inputs
    ctx.operation = NAME
    ctx.save_for_backward(*tensors)


@only_first_derivative
def _operator_backward(ctx: Any, saved: tuple[Tensor, Tensor], grad_output: Tensor) -> tuple[Tensor | None, ...]:
    needs = list(ctx.needs_input_grad[:2])
    gradients = _backward_operator(*saved, grad_output, ctx.normalize_prototypes, needs, ctx.backend)
    return *(gradient if need else None for gradient, need in zip(gradients, needs, strict=True)), None, None


_operator.register_autograd(_operator_backward, setup_context=_setup_context)
