"""TEMI's objective: self-distillation of clustering heads on pairs of neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from imc_kernels import backends, eager, native
from imc_kernels.ops import checks
from imc_kernels.ops.fused_loss import FusedLoss, Kernel, Needs
from imc_kernels.ops.precision import at_least_single, cast, gradient_buffer, loss_buffer, specification

NAME = "self_distillation_loss"
AGREEMENT = "agreement"


def self_distillation_loss(
    students: Tensor,
    teachers: Tensor,
    *,
    beta: float = 0.6,
    prior: Tensor | None = None,
    weights: Tensor | str | None = AGREEMENT,
    student_temperature: float = 0.1,
    teacher_temperature: float = 0.1,
    entropy_weight: float = 0.0,
    backend: str | None = None,
) -> Tensor:
    """Minus the weighted pointwise mutual information of students and teachers on pairs of samples, for each head.

    The two views are a pair (x, x'): a sample and one of its nearest neighbours, or two views of one sample. With
    ``s = softmax(students / student_temperature)``, ``t = softmax(teachers / teacher_temperature)``, both of one head,
    and the prior q(c) of its clusters

        ``pmi(x, x') = log sum_c (s(c|x) t(c|x'))^beta / q(c)``
        ``loss = -mean_b w_b (pmi(x_b, x'_b) + pmi(x'_b, x_b)) / 2  -  entropy_weight mean_v H(mean_b s_vb)``

    in nats. ``weights="agreement"`` is TEMI's ``w_b = mean_h sum_c t_h(c|x_b) t_h(c|x'_b)``: pairs on whose cluster the
    teachers of all heads do not agree, likely false ones, count less. The mean over the batch is not divided by the
    weights' sum. A beta below 1 keeps clusters from collapsing. Computed by logarithms: predictions that share no
    cluster give a large loss and a gradient, where the powers themselves would be 0. Source: TEMI, arXiv 2303.17896,
    and its authors' code.

    The prior is TEMI's moving average of the teachers' mean prediction, brought up to date before each step:

        ``prior.lerp_(torch.softmax(teachers / 0.1, dim=-1).mean(dim=(1, 2)), 0.1)``    # from 1 / C on

    SCAN's loss (arXiv 2005.12320) without teachers, consistency of neighbours minus the weighted entropy of the mean,
    is ``self_distillation_loss(logits, logits.detach(), beta=1, prior=torch.ones(H, C), weights=None,
    student_temperature=1, teacher_temperature=1, entropy_weight=5)`` in value. Its gradient reaches both predictions of
    a pair: it is that of twice the loss at half the entropy weight.

    Memory: on ``cpu``, beside result and gradient, 5 numbers a pair and head and 64 C a thread; without a prior or with
    an entropy weight also 24 C bytes for every 32 pairs of a head.

    Args:
        students: [H, 2, B, C] logits of H heads for B pairs, float32, float64, bfloat16 or float16. The gradient
            reaches them.
        teachers: [H, 2, B, C], those of their teachers, moving averages of the heads, say. Constants, on the same
            device: they must not require a gradient.
        beta: exponent of the joint probabilities, above 0; 1 is the pointwise mutual information.
        prior: [H, C] probabilities of the clusters, constants; below the smallest normal number they count as that.
            Ones leave them out. Default: the teachers' mean over both views of this batch.
        weights: [B] of the pairs, constants; "agreement"; or None for 1.
        student_temperature: divides the students' logits, above 0.
        teacher_temperature: divides the teachers'.
        entropy_weight: of the entropy of the students' mean prediction, averaged over the views.
        backend: see :mod:`imc_kernels.backends`.

    Returns:
        [H], one loss for each head: float64 where an input is, float32 otherwise. Inputs of several dtypes are promoted
        as in torch's arithmetic.

    Raises:
        TypeError: an input is no tensor, not of a floating dtype, or an option is of another type.
        ValueError: shapes or devices that do not fit, an empty input, a constant that requires a gradient, or a bad
            option.
        NotImplementedError: a kernel is asked for a derivative that only ``backend="eager"`` has.
    """
    students = checks.floating(NAME, "students", students, "[H, 2, B, C]")
    teachers = checks.floating(NAME, "teachers", teachers, "[H, 2, B, C]")
    if students.shape[1] != 2:
        raise ValueError(f"{NAME}: students [H, 2, B, C] must hold 2 views, got {list(students.shape)}")
    heads, _, batch, clusters = students.shape
    _check_shape("teachers", teachers, "[H, 2, B, C]", students, students.shape)
    if prior is not None:
        prior = checks.floating(NAME, "prior", prior, "[H, C]")
        _check_shape("prior", prior, "[H, C]", students, (heads, clusters))
    agreement = isinstance(weights, str)
    if agreement and weights != AGREEMENT:
        raise ValueError(f'{NAME}: weights must be a tensor [B], "{AGREEMENT}" or None, got {weights!r}')
    given = None if isinstance(weights, str) else weights
    if given is not None:
        given = checks.floating(NAME, "weights", given, "[B]")
        _check_shape("weights", given, "[B]", students, (batch,))
    dtype = checks.together(NAME, students=students, teachers=teachers, prior=prior, weights=given)
    constants = (("teachers are constants", teachers), ("prior is a constant", prior), ("weights are constants", given))
    for name, constant in constants:
        if constant is not None and constant.requires_grad:
            raise ValueError(f"{NAME}: {name}; pass {name.split()[0]}.detach()")
    numbers = (
        checks.number(NAME, "student_temperature", student_temperature, checks.POSITIVE),
        checks.number(NAME, "teacher_temperature", teacher_temperature, checks.POSITIVE),
        checks.number(NAME, "beta", beta, checks.POSITIVE),
        checks.number(NAME, "entropy_weight", entropy_weight, checks.FINITE),
    )
    tensors = [None if x is None else cast(x, dtype) for x in (students, teachers, prior, given)]
    chosen = backends.choose(NAME, LOSS.backends, students.device, dtype, backend)
    if chosen == "eager":
        return specification(eager.self_distillation_loss, *tensors, *numbers, agreement)
    return LOSS(chosen, tensors, (*numbers, agreement))


def _check_shape(name: str, tensor: Tensor, layout: str, students: Tensor, shape: Sequence[int]) -> None:
    if tuple(tensor.shape) != tuple(shape):
        raise ValueError(
            f"{NAME}: {name} {layout} must match students [H, 2, B, C], got {list(tensor.shape)} for "
            f"{list(students.shape)}"
        )


def _cpu(inputs: Sequence[Any], options: Sequence[Any], needs: Needs) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    students = inputs[0].contiguous()
    teachers = inputs[1].contiguous()
    constants = [None if x is None else at_least_single(x).contiguous() for x in inputs[2:]]
    loss = loss_buffer(students, students.shape[0])
    gradient = gradient_buffer(students) if needs[0] else None
    native.call("_cpu", NAME, students, teachers, *constants, loss, gradient, *options)
    return loss, (gradient, None, None, None)


def _triton(inputs: Sequence[Any], options: Sequence[Any], needs: Needs) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    from imc_kernels.triton.self_distillation_loss import self_distillation_loss as kernel

    return kernel(inputs, options, needs)


LOSS = FusedLoss(
    NAME,
    {"triton": Kernel(_triton, reads_half=True), "cpu": Kernel(_cpu, reads_half=True)},
    inputs=("students", "teachers", "prior?", "weights?"),
    options={
        "student_temperature": checks.POSITIVE,
        "teacher_temperature": checks.POSITIVE,
        "beta": checks.POSITIVE,
        "entropy_weight": checks.FINITE,
        "agreement": "bool",
    },
    constants=("teachers", "prior", "weights"),
    loss_shape=lambda inputs: inputs[0].shape[:1],
)
