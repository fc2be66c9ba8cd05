"""InfoNCE on a batch over processes: the embeddings are gathered, the rows of the N x N products stay where they are.

A process multiplies its own rows with all columns, and its gradient needs of the other rows only their two statistics.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from imc_kernels import backends, eager, native
from imc_kernels.ops.autograd import refuse_recording
from imc_kernels.ops.distributed.collectives import gather_samples, gather_sizes, not_compiled, sum_over
from imc_kernels.ops.distributed.loss import distributed_loss
from imc_kernels.ops.fused_loss import Needs
from imc_kernels.ops.operator import of_triton
from imc_kernels.ops.precision import at_least_single, gradient_buffer, half_as_single, specification

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class Phases(NamedTuple):
    """A backend's form for the embeddings of all processes [2, N / 2, D], of which this one's ``samples`` are its own,
    one at least.

    Attributes:
        rows: n, what the backward pass needs to know of each row: so many floats of the backend's choice.
        forward: (embeddings, samples, temperature, normalise) -> float64 [], the sum of the losses of its rows, and
            [n, 2, samples].
        backward: (embeddings, statistics, samples, temperature, normalise) -> the gradient [2, samples, D] of the mean
            over all rows, a :func:`imc_kernels.ops.precision.gradient_buffer`. The statistics are those of all rows,
            [n, 2, N / 2].
        reads_half: whether it reads half precision itself.
    """

    rows: int
    forward: Callable[[Tensor, range, float, bool], tuple[Tensor, Tensor]]
    backward: Callable[[Tensor, Tensor, range, float, bool], Tensor]
    reads_half: bool = False


@not_compiled
def info_nce_loss(
    embeddings: Tensor, temperature: float, normalise: bool, group: ProcessGroup, backend: str | None
) -> Tensor:
    """:func:`imc_kernels.info_nce_loss` with a group, its arguments checked."""
    form = "info_nce_loss with a group"
    chosen = backends.choose(form, (*PHASES, "eager"), embeddings.device, embeddings.dtype, backend)
    if chosen == "eager":
        return specification(eager.info_nce_loss, embeddings, temperature, normalise, group)
    refuse_recording("info_nce_loss", chosen, embeddings)
    phases = PHASES[chosen]

    def run(inputs: Sequence[Tensor], needs: Needs) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        own = inputs[0]
        sizes = gather_sizes(own.shape[1], group)
        first = sum(sizes[: group.rank()])
        samples = range(first, first + own.shape[1])
        everybody = gather_samples(own, 1, sizes, group)
        if samples:
            total, statistics = phases.forward(everybody, samples, temperature, normalise)
        else:  # of the others alone
            total = own.new_zeros((), dtype=torch.float64)
            statistics = own.new_empty(phases.rows, 2, 0, dtype=half_as_single(own.dtype))
        loss = (sum_over(total, group) / (2 * sum(sizes))).to(half_as_single(own.dtype))
        if not needs[0]:
            return loss, (None,)
        statistics = gather_samples(statistics, 2, sizes, group)
        if not samples:
            return loss, (gradient_buffer(own),)
        return loss, (phases.backward(everybody, statistics, samples, temperature, normalise),)

    given = embeddings if phases.reads_half else at_least_single(embeddings)
    return distributed_loss("info_nce_loss", run, group, given)


def _cpu_forward(embeddings: Tensor, samples: range, temperature: float, normalise: bool) -> tuple[Tensor, Tensor]:
    views = embeddings.shape[0]
    total = embeddings.new_empty((), dtype=torch.float64)
    statistics = embeddings.new_empty(2, views, len(samples))
    native.call("_cpu", "info_nce_loss_rows", embeddings, total, statistics, samples.start, temperature, normalise)
    return total, statistics


def _cpu_backward(
    embeddings: Tensor, statistics: Tensor, samples: range, temperature: float, normalise: bool
) -> Tensor:
    views, _, dim = embeddings.shape
    gradient = embeddings.new_empty(views, len(samples), dim)
    given = (embeddings, statistics, gradient)
    native.call("_cpu", "info_nce_loss_gradient", *given, samples.start, temperature, normalise)
    return gradient


PHASES = {
    "triton": Phases(
        1, of_triton("info_nce_loss", "group_forward"), of_triton("info_nce_loss", "group_backward"), reads_half=True
    ),
    "cpu": Phases(2, _cpu_forward, _cpu_backward),
}
