"""Mutual-information loss on a batch over processes: the joint distributions are added up, once."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from imc_kernels import backends, eager, native
from imc_kernels.ops import mutual_information_cuda as cuda
from imc_kernels.ops.autograd import refuse_recording
from imc_kernels.ops.distributed.collectives import not_compiled, sum_over
from imc_kernels.ops.distributed.loss import distributed_loss
from imc_kernels.ops.fused_loss import Needs
from imc_kernels.ops.operator import of_triton
from imc_kernels.ops.precision import at_least_single, gradient_buffers, loss_buffer, specification

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class Phases(NamedTuple):
    """A backend's form for this process's logits [V, B, C] and scores [V, B, K], of one sample at least.

    Attributes:
        sums: (logits, scores, temperature, logit_limit, symmetric) -> what is added up over the processes, one tensor:
            the V C x V K products y.T u, the V C sums of y, the logits' excess over the limit and the number of
            samples. And what ``finish`` is given, which holds that tensor.
        finish: (logits, scores, the same, temperature, entropy_weight, logit_limit, symmetric, needs) -> the loss and
            the gradients of this process's inputs. It may overwrite the sums.
        reads_half: whether it reads half precision itself.
    """

    sums: Callable[[Tensor, Tensor, float, float, bool], tuple[Tensor, Any]]
    finish: Callable[..., tuple[Tensor, tuple[Tensor | None, ...]]]
    reads_half: bool = False


@not_compiled
def mutual_information_loss(
    logits: Tensor,
    scores: Tensor,
    temperature: float,
    entropy_weight: float,
    logit_limit: float | None,
    symmetric: bool,
    group: ProcessGroup,
    backend: str | None,
) -> Tensor:
    """:func:`imc_kernels.mutual_information_loss` with a group, its arguments checked."""
    form = "mutual_information_loss with a group"
    chosen = backends.choose(form, (*PHASES, "eager"), logits.device, logits.dtype, backend)
    if chosen == "eager":
        everything = (logits, scores, temperature, entropy_weight, logit_limit, symmetric, group)
        return specification(eager.mutual_information_loss, *everything)
    refuse_recording("mutual_information_loss", chosen, logits, scores)
    if chosen == "cuda":
        cuda.check_sizes(logits, scores)
    phases, limit = PHASES[chosen], math.inf if logit_limit is None else logit_limit

    def run(inputs: Sequence[Tensor], needs: Needs) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        y, u = (x.contiguous() for x in inputs)
        if held := y.shape[1] > 0:
            sums, kept = phases.sums(y, u, temperature, limit, symmetric)
        else:  # a sample that counts for nothing: the loss is that of the others' sums
            y, u = (x.new_zeros(x.shape[0], 1, x.shape[2]) for x in (y, u))
            sums, kept = phases.sums(y, u, temperature, limit, symmetric)
            sums.zero_()
        sum_over(sums, group)
        wanted = needs if held else (False, False)
        loss, gradients = phases.finish(y, u, kept, temperature, entropy_weight, limit, symmetric, wanted)
        return loss, gradients if held else gradient_buffers(inputs, needs)

    given = (logits, scores) if phases.reads_half else (at_least_single(logits), at_least_single(scores))
    return distributed_loss("mutual_information_loss", run, group, *given)


def _cpu_sums(
    logits: Tensor, scores: Tensor, temperature: float, logit_limit: float, symmetric: bool
) -> tuple[Tensor, Tensor]:
    all_clusters, all_prototypes = (x.shape[0] * x.shape[2] for x in (logits, scores))
    sums = logits.new_empty(all_clusters * all_prototypes + all_clusters + 2)
    native.call("_cpu", "mutual_information_loss_sums", logits, scores, sums, temperature, logit_limit)
    return sums, sums


def _cpu_finish(
    logits: Tensor,
    scores: Tensor,
    sums: Tensor,
    temperature: float,
    entropy_weight: float,
    logit_limit: float,
    symmetric: bool,
    needs: Needs,
) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    loss = loss_buffer(logits)
    gradients = gradient_buffers((logits, scores), needs)
    given, options = (logits, scores, sums), (temperature, entropy_weight, logit_limit, symmetric)
    native.call("_cpu", "mutual_information_loss_finish", *given, loss, *gradients, *options)
    return loss, gradients


PHASES = {
    "cuda": Phases(functools.partial(cuda.sums, grouped=True), cuda.finish),
    "triton": Phases(
        of_triton("mutual_information_loss", "group_sums"),
        of_triton("mutual_information_loss", "group_finish"),
        reads_half=True,
    ),
    "cpu": Phases(_cpu_sums, _cpu_finish),
}
