"""Swapped-prediction loss of embeddings and prototypes, whose scores never exist."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from imc_kernels import backends, eager, native
from imc_kernels.ops import checks
from imc_kernels.ops.autograd import has_values
from imc_kernels.ops.fused_loss import FusedLoss, Kernel, Needs
from imc_kernels.ops.operator import of_triton
from imc_kernels.ops.precision import cast, gradient_buffers, half_as_single, loss_buffer, specification
from imc_kernels.ops.sinkhorn import MOST_ITERATIONS

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

NAME = "linear_swapped_prediction_loss"


def linear_swapped_prediction_loss(
    embeddings: Tensor,
    prototypes: Tensor,
    *,
    assigned: int = 2,
    epsilon: float = 0.05,
    iterations: int = 3,
    temperature: float = 0.1,
    teacher: tuple[Tensor, Tensor] | None = None,
    marginals: Tensor | None = None,
    center: Tensor | None = None,
    weights: Tensor | None = None,
    pairs: str = "others",
    normalize_prototypes: bool = True,
    group: ProcessGroup | None = None,
    backend: str | None = None,
) -> Tensor:
    """The loss of many prototypes: :func:`swapped_prediction_loss` of scores and assignments that never lie in memory.

    In value and gradient it equals

        ``scores = prototype_scores(embeddings, prototypes)``    # [V, B, K]
        ``swapped_prediction_loss(scores, sinkhorn(scores[:assigned].detach()))``

    with the options of these. The scores are computed piece by piece, again for each iteration of Sinkhorn-Knopp and
    for the gradient: the assignments are ``u_b v_k exp(scores / epsilon)``, which B + K numbers say, and the softmax of
    the predictions is taken online. Sources: SwAV, arXiv 2006.09882; with a teacher DINO, arXiv 2104.14294, and, with
    Sinkhorn-Knopp for its centring, DINOv2, arXiv 2304.07193; with weights and all pairs iBOT, arXiv 2111.07832.

    A teacher's centre is ``epsilon`` times minus the logarithm of v, which DINO keeps as a moving average of its mean
    scores. They need no matrix either, as the mean of cosines is one of the mean embedding:

        ``mean = normalize(teacher_embeddings, dim=-1).mean(dim=(0, 1)) @ normalize(teacher_prototypes, dim=-1).T``
        ``center.lerp_(mean, 0.1)``

    Memory: on ``cpu``, beside the gradients, a strip of the scores, of 1/32 of the prototypes but 128 at least and 1024
    at most (all scores, where they are no more than 2^21), and of its prototypes and their gradient; one copy of the
    embeddings; A K numbers.

    Args:
        embeddings: [V, B, D] of V views, float32, float64, bfloat16 or float16, divided by their norms. The gradient
            reaches them.
        prototypes: [K, D], the same, on the same device. The gradient reaches them.
        assigned: A, how many views give assignments: the first, 1 to V.
        epsilon: entropy regularisation of the assignments, their temperature; divides the scores, above 0.
        iterations: of Sinkhorn-Knopp, 1 to 2^20.
        temperature: divides the scores that predict, above 0.
        teacher: its embeddings [A, B, E] and prototypes [K, E], constants, from which the assignments are made. View a
            of both is one view of the images. Default: the student's own.
        marginals: [K] positive shares of the prototypes, constants, as in :func:`sinkhorn`.
        center: [K], a constant that is subtracted from the scores of the assignments, which are then their softmax:
            DINO's centring in place of Sinkhorn-Knopp.
        weights: [V, B] of the predictions, constants: each cross-entropy is multiplied with its own. The mean is not
            divided by their sum. iBOT: 0 for a patch that is not masked, 1 over the number of masked ones otherwise.
        pairs: "others", each assignment is predicted by all views but its own, or "all", by its own too.
        normalize_prototypes: divide the prototypes by their norms, the teacher's too. False takes them as they are.
        group: where given, the samples of all its processes are one batch, for Sinkhorn-Knopp and for the mean; every
            process gets its loss. Averaged over the processes, the gradients are those of the whole batch.
        backend: see :mod:`imc_kernels.backends`.

    Returns:
        A scalar: float64 where an input is, float32 otherwise. Inputs of several dtypes are promoted as in torch's
        arithmetic; half precision is computed in float32.

    Raises:
        TypeError: an input is no tensor, not of a floating dtype, or an option is of another type.
        ValueError: shapes or devices that do not fit, an empty input, a constant that requires a gradient, or a bad
            option.
        NotImplementedError: a kernel is asked for a derivative that only ``backend="eager"`` has.
    """
    embeddings = checks.floating(NAME, "embeddings", embeddings, "[V, B, D]")
    prototypes = checks.floating(NAME, "prototypes", prototypes, "[K, D]")
    (views, batch, _), count = embeddings.shape, prototypes.shape[0]
    _check_depth("", embeddings, prototypes)
    assigned = checks.integer(NAME, "assigned", assigned, 1)
    every = checks.all_pairs(NAME, pairs)
    if assigned > views or (views == 1 and not every):
        raise ValueError(
            f'{NAME}: embeddings [V, B, D] must hold at least the {assigned} assigned views, and 2 unless pairs="all", '
            f"got {list(embeddings.shape)}"
        )
    teacher_embeddings, teacher_prototypes = _teacher(teacher, assigned, batch, count)
    if marginals is not None and center is not None:
        raise ValueError(f"{NAME}: a center stands in for Sinkhorn-Knopp, which has the marginals; pass one of them")
    marginals = checks.constant(NAME, "marginals", marginals, "[K]", (count,))
    center = checks.constant(NAME, "center", center, "[K]", (count,))
    weights = checks.constant(NAME, "weights", weights, "[V, B]", (views, batch))
    # Asked on the CPU only: elsewhere the answer would wait for the device.
    if marginals is not None and marginals.is_cpu and has_values(marginals) and not bool((marginals > 0).all()):
        raise ValueError(f"{NAME}: marginals must all be above 0, got a smallest value of {marginals.min().item():g}")
    constants = {"marginals": marginals, "center": center, "weights": weights}
    of_teacher = {"teacher's embeddings": teacher_embeddings, "teacher's prototypes": teacher_prototypes}
    dtype = checks.together(NAME, embeddings=embeddings, prototypes=prototypes, **of_teacher, **constants)
    options = (
        checks.number(NAME, "epsilon", epsilon, checks.POSITIVE),
        checks.number(NAME, "temperature", temperature, checks.POSITIVE),
        assigned,
        checks.integer(NAME, "iterations", iterations, 1, MOST_ITERATIONS),
        checks.flag(NAME, "normalize_prototypes", normalize_prototypes),
        every,
    )
    checks.group(NAME, group)
    if marginals is not None:
        marginals = cast(marginals, half_as_single(dtype))
        marginals = marginals / marginals.sum()
    matrices = (embeddings, prototypes, teacher_embeddings, teacher_prototypes)
    tensors = [
        *(None if x is None else cast(x, dtype) for x in matrices),
        *(None if x is None else cast(x, half_as_single(dtype)) for x in (marginals, center, weights)),
    ]
    if group is not None:
        form = f"{NAME} with a group"
        backends.choose(form, ("eager",), embeddings.device, dtype, backend)
        return specification(eager.linear_swapped_prediction_loss, *tensors, *options, group)
    chosen = backends.choose(NAME, LOSS.backends, embeddings.device, dtype, backend)
    if chosen == "eager":
        return specification(eager.linear_swapped_prediction_loss, *tensors, *options)
    return LOSS(chosen, tensors, options)


def _check_depth(whose: str, embeddings: Tensor, prototypes: Tensor) -> None:
    if embeddings.shape[-1] != prototypes.shape[-1]:
        raise ValueError(
            f"{NAME}: {whose}embeddings and prototypes must agree in their last dimension, got "
            f"{list(embeddings.shape)} and {list(prototypes.shape)}"
        )


def _teacher(teacher: Any, assigned: int, batch: int, count: int) -> tuple[Tensor | None, Tensor | None]:
    """Its embeddings and prototypes, checked, or twice None."""
    if teacher is None:
        return None, None
    if not isinstance(teacher, (tuple, list)) or len(teacher) != 2:
        kind = f"{len(teacher)} of them" if isinstance(teacher, (tuple, list)) else type(teacher).__name__
        raise TypeError(
            f"{NAME}: teacher must be its embeddings [A, B, E] and prototypes [K, E], two tensors, got {kind}"
        )
    embeddings = checks.floating(NAME, "teacher's embeddings", teacher[0], "[A, B, E]")
    prototypes = checks.floating(NAME, "teacher's prototypes", teacher[1], "[K, E]")
    if embeddings.shape[:2] != (assigned, batch) or prototypes.shape[0] != count:
        raise ValueError(
            f"{NAME}: teacher's embeddings [A, B, E] and prototypes [K, E] must have A = assigned = {assigned}, B = "
            f"{batch} and K = {count}, got {list(embeddings.shape)} and {list(prototypes.shape)}"
        )
    _check_depth("teacher's ", embeddings, prototypes)
    for name, tensor in (("embeddings", embeddings), ("prototypes", prototypes)):
        if tensor.requires_grad:
            raise ValueError(f"{NAME}: teacher's {name} are constants; pass them detached")
    return embeddings, prototypes


def _cpu(inputs: Sequence[Any], options: Sequence[Any], needs: Needs) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    embeddings, prototypes = inputs[0].contiguous(), inputs[1].contiguous()
    teacher_embeddings, teacher_prototypes, marginals, center, weights = (
        None if x is None else x.contiguous() for x in inputs[2:]
    )
    epsilon, temperature, assigned, iterations, normalize, every = options
    columns = None if center is None else (center / -epsilon).expand(assigned, -1).contiguous()
    loss = loss_buffer(embeddings)
    gradients = gradient_buffers((embeddings, prototypes), needs[:2])
    constants = (teacher_embeddings, teacher_prototypes, marginals, columns, weights)
    dim = embeddings.shape[-1] if teacher_embeddings is None else teacher_embeddings.shape[-1]
    given = (embeddings, prototypes, *constants, loss, *gradients)
    native.call("_cpu", NAME, *given, assigned, dim, epsilon, iterations, temperature, normalize, every)
    return loss, (*gradients, None, None, None, None, None)


LOSS = FusedLoss(
    NAME,
    {"triton": Kernel(of_triton(NAME), reads_half=True), "cpu": Kernel(_cpu, reads_half=True)},
    inputs=(
        "embeddings",
        "prototypes",
        "teacher_embeddings?",
        "teacher_prototypes?",
        "marginals?",
        "center?",
        "weights?",
    ),
    options={
        "epsilon": checks.POSITIVE,
        "temperature": checks.POSITIVE,
        "assigned": "int",
        "iterations": "int",
        "normalize_prototypes": "bool",
        "all_pairs": "bool",
    },
    constants=("teacher_embeddings", "teacher_prototypes", "marginals", "center", "weights"),
)
