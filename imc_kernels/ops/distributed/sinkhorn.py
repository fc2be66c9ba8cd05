"""Sinkhorn-Knopp on a batch over processes: K numbers an iteration, each way."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from imc_kernels import backends, eager, native
from imc_kernels.ops.autograd import memory, only_first_derivative, refuse_recording
from imc_kernels.ops.distributed.collectives import gather, not_compiled, sum_over
from imc_kernels.ops.precision import at_least_single, specification

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class Phases(NamedTuple):
    """A backend's sweeps over this process's scores [..., B, K], of P problems.

    ``extremes`` [3, P] are the largest score of the whole batch, minus the smallest, and the number of samples:
    exponentials are taken of (scores - largest) / epsilon, rows are scaled to 1 / samples, and every process knows
    alike whether the range of the scores needs logarithms.

    Attributes:
        sweep: (scores, extremes, assignments, columns, epsilon, iteration, last) -> rows, log_sums. Sweep 0 starts;
            sweeps 1, 2, ... apply the column scalings, whose logarithms are ``columns`` float64 [P, K], then scale the
            rows. ``rows`` float64 [P, B] are the logarithms of that, ``log_sums`` float64 [P, K] those of the column
            sums then. ``assignments`` is the sweeps' memory, and holds the assignments after the last.
        backward_sweep: (scores, extremes, marginals, assignments, grad_output, columns, earlier, columns_gradient,
            gradient, epsilon) -> sums [P, K]. From the gradient of an iteration's column scalings (None: from
            grad_output) to this process's part of that of the iteration before, whose (rows, columns) are ``earlier``;
            None: there is none before, and ``gradient``, which the sweeps go on with, is complete.
    """

    sweep: Callable[[Tensor, Tensor, Tensor, Tensor, float, int, bool], tuple[Tensor, Tensor]]
    backward_sweep: Callable[..., Tensor]


@not_compiled
def sinkhorn(
    scores: Tensor,
    epsilon: float,
    iterations: int,
    marginals: Tensor | None,
    group: ProcessGroup,
    backend: str | None,
) -> Tensor:
    """:func:`imc_kernels.sinkhorn` with a group, its arguments checked, the marginals divided by their sum."""
    form = "sinkhorn with a group"
    chosen = backends.choose(form, (*PHASES, "eager"), scores.device, scores.dtype, backend)
    if chosen == "eager":
        return specification(eager.sinkhorn, scores, epsilon, iterations, marginals, group).to(scores.dtype)
    refuse_recording("sinkhorn", chosen, scores, marginals)
    if chosen == "cuda":
        native.check_cuda_sizes("sinkhorn", scores.shape[:-2].numel(), *scores.shape[-2:])
    x = at_least_single(scores)
    return _Sinkhorn.apply(PHASES[chosen], x, epsilon, iterations, marginals, group).to(scores.dtype)


class _Sinkhorn(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        phases: Phases,
        scores: Tensor,
        epsilon: float,
        iterations: int,
        marginals: Tensor | None,
        group: ProcessGroup,
    ) -> Tensor:
        scores = scores.contiguous()
        assignments = torch.empty_like(scores)
        own = torch.stack([scores.amax(dim=(-2, -1)).flatten(), -scores.amin(dim=(-2, -1)).flatten()])
        samples = torch.full_like(own[:1], scores.shape[-2])
        everybody = gather(torch.cat([own, samples]), group)
        extremes = torch.cat([everybody[:, :2].amax(dim=0), everybody[:, 2:].sum(dim=0)])
        log_share = -math.log(scores.shape[-1]) if marginals is None else marginals.double().log()
        problems, prototypes = own.shape[1], scores.shape[-1]
        rows, columns = [], []
        column = scores.new_zeros(problems, prototypes, dtype=torch.float64)
        for iteration in range(iterations + 1):
            last = iteration == iterations
            row, log_sums = phases.sweep(scores, extremes, assignments, column, epsilon, iteration, last)
            if iteration > 0:
                rows.append(row)
                columns.append(column)
            if not last:
                column = log_share - gather(log_sums, group).logsumexp(dim=0)
        ctx.save_for_backward(scores, extremes, marginals, assignments, *rows, *columns)
        ctx.operation, ctx.phases, ctx.epsilon, ctx.group = "sinkhorn", phases, epsilon, group
        return assignments

    @staticmethod
    @only_first_derivative
    def backward(ctx: Any, saved: tuple[Tensor, ...], grad_output: Tensor) -> tuple[Tensor | None, ...]:
        scores, extremes, marginals, assignments, *potentials = saved
        iterations = len(potentials) // 2
        earlier = list(zip(potentials[:iterations], potentials[iterations:], strict=True))
        gradient = torch.empty_like(scores)
        given = (scores, extremes, marginals, assignments, memory(grad_output))
        sweep = ctx.phases.backward_sweep
        sums = sweep(*given, earlier[-1][1], earlier[-1], None, gradient, ctx.epsilon)
        for t in range(iterations - 1, -1, -1):
            before = earlier[t - 1] if t > 0 else None
            sums = sweep(*given, earlier[t][1], before, sum_over(sums, ctx.group), gradient, ctx.epsilon)
        return None, gradient, None, None, None, None


def _sweep(
    module: str,
    scores: Tensor,
    extremes: Tensor,
    assignments: Tensor,
    columns: Tensor,
    epsilon: float,
    iteration: int,
    last: bool,
) -> tuple[Tensor, Tensor]:
    rows, log_sums = columns.new_empty(extremes.shape[1], scores.shape[-2]), torch.empty_like(columns)
    given = (scores, extremes, assignments, columns)
    native.call(module, "sinkhorn_sweep", *given, rows, log_sums, epsilon, iteration, last)
    return rows, log_sums


def _backward_sweep(
    module: str,
    scores: Tensor,
    extremes: Tensor,
    marginals: Tensor | None,
    assignments: Tensor,
    grad_output: Tensor,
    columns: Tensor,
    earlier: tuple[Tensor, Tensor] | None,
    columns_gradient: Tensor | None,
    gradient: Tensor,
    epsilon: float,
) -> Tensor:
    sums = torch.empty_like(columns, dtype=scores.dtype)
    given = (scores, extremes, marginals, assignments, grad_output, columns, *(earlier or (None, None)))
    native.call(module, "sinkhorn_backward_sweep", *given, columns_gradient, gradient, sums, epsilon)
    return sums


PHASES = {
    name: Phases(functools.partial(_sweep, module), functools.partial(_backward_sweep, module))
    for name, module in (("cuda", "_cuda"), ("cpu", "_cpu"))
}
