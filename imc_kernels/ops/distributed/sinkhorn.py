"""Sinkhorn-Knopp on a batch over processes: K numbers an iteration, on Triton 3 K on the way back."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from imc_kernels import backends, eager, native
from imc_kernels.ops.autograd import memory, only_first_derivative, refuse_recording
from imc_kernels.ops.distributed.collectives import gather, not_compiled, sum_over
from imc_kernels.ops.operator import of_triton
from imc_kernels.ops.precision import at_least_single, cast, specification

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class Phases(NamedTuple):
    """A backend's form for this process's scores [..., B, K], where B may be 0.

    Attributes:
        forward: (scores, epsilon, iterations, marginals, group) -> the assignments, and what the backward pass needs.
        backward: (scores, marginals, assignments, that, grad_output, epsilon, group) -> the gradient.
        reads_half: whether it reads half precision itself.
    """

    forward: Callable[..., tuple[Tensor, Sequence[Tensor]]]
    backward: Callable[..., Tensor]
    reads_half: bool = False


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
    phases = PHASES[chosen]
    x = scores if phases.reads_half else at_least_single(scores)
    return cast(_Sinkhorn.apply(phases, x, epsilon, iterations, marginals, group), scores.dtype)


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
        assignments, kept = phases.forward(scores, epsilon, iterations, marginals, group)
        ctx.save_for_backward(scores, marginals, assignments, *kept)
        ctx.operation, ctx.phases, ctx.epsilon, ctx.group = "sinkhorn", phases, epsilon, group
        return assignments

    @staticmethod
    @only_first_derivative
    def backward(ctx: Any, saved: tuple[Tensor, ...], grad_output: Tensor) -> tuple[Tensor | None, ...]:
        scores, marginals, assignments, *kept = saved
        given = (scores, marginals, assignments, kept, memory(grad_output))
        return None, ctx.phases.backward(*given, ctx.epsilon, ctx.group), None, None, None, None


class Sweeps:
    """The forms of the compiled modules, for scores of P problems.

    ``extremes`` [3, P] are the largest score of the whole batch, minus the smallest, and the number of samples:
    exponentials are taken of (scores - largest) / epsilon, rows are scaled to 1 / samples, and every process knows
    alike whether the range of the scores needs logarithms.
    """

    def __init__(self, module: str) -> None:
        self.module = module

    def forward(
        self, scores: Tensor, epsilon: float, iterations: int, marginals: Tensor | None, group: ProcessGroup
    ) -> tuple[Tensor, Sequence[Tensor]]:
        assignments = torch.empty_like(scores)
        batch, prototypes = scores.shape[-2:]
        problems = scores.shape[:-2].numel()
        own = scores.new_full((3, problems), -math.inf)
        if batch:
            torch.stack([scores.amax(dim=(-2, -1)).flatten(), -scores.amin(dim=(-2, -1)).flatten()], out=own[:2])
        own[2].fill_(batch)
        everybody = gather(own, group)
        extremes = torch.cat([everybody[:, :2].amax(dim=0), everybody[:, 2:].sum(dim=0)])
        log_share = -math.log(prototypes) if marginals is None else marginals.double().log()
        rows, columns = [], []
        column = scores.new_zeros(problems, prototypes, dtype=torch.float64)
        for iteration in range(iterations + 1):
            last = iteration == iterations
            row, log_sums = self.sweep(scores, extremes, assignments, column, epsilon, iteration, last)
            if iteration > 0:
                rows.append(row)
                columns.append(column)
            if not last:
                column = log_share - gather(log_sums, group).logsumexp(dim=0)
        return assignments, (extremes, *rows, *columns)

    def sweep(
        self,
        scores: Tensor,
        extremes: Tensor,
        assignments: Tensor,
        columns: Tensor,
        epsilon: float,
        iteration: int,
        last: bool,
    ) -> tuple[Tensor, Tensor]:
        """Sweep 0 starts; sweeps 1, 2, ... apply the column scalings, whose logarithms are ``columns`` float64 [P, K],
        then scale the rows. ``assignments`` is the sweeps' memory, and holds the assignments after the last.

        Returns:
            float64 [P, B], the logarithms of the rows' scalings, and float64 [P, K], those of the column sums then.
        """
        rows = columns.new_empty(extremes.shape[1], scores.shape[-2])
        if not rows.shape[1]:
            return rows, torch.full_like(columns, -math.inf)
        log_sums = torch.empty_like(columns)
        given = (scores, extremes, assignments, columns)
        native.call(self.module, "sinkhorn_sweep", *given, rows, log_sums, epsilon, iteration, last)
        return rows, log_sums

    def backward(
        self,
        scores: Tensor,
        marginals: Tensor | None,
        assignments: Tensor,
        kept: Sequence[Tensor],
        grad_output: Tensor,
        epsilon: float,
        group: ProcessGroup,
    ) -> Tensor:
        extremes, *potentials = kept
        iterations = len(potentials) // 2
        earlier = list(zip(potentials[:iterations], potentials[iterations:], strict=True))
        gradient = torch.empty_like(scores)
        given = (scores, extremes, marginals, assignments, grad_output)
        sums = self.backward_sweep(*given, earlier[-1][1], earlier[-1], None, gradient, epsilon)
        for t in range(iterations - 1, -1, -1):
            before = earlier[t - 1] if t > 0 else None
            sums = self.backward_sweep(*given, earlier[t][1], before, sum_over(sums, group), gradient, epsilon)
        return gradient

    def backward_sweep(
        self,
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
        """From the gradient of an iteration's column scalings (None: from grad_output) to this process's part of that
        of the iteration before, [P, K], whose (rows, columns) are ``earlier``; None: there is none before, and
        ``gradient``, which the sweeps go on with, is complete."""
        if not scores.shape[-2]:
            return torch.zeros_like(columns, dtype=scores.dtype)
        sums = torch.empty_like(columns, dtype=scores.dtype)
        given = (scores, extremes, marginals, assignments, grad_output, columns, *(earlier or (None, None)))
        native.call(self.module, "sinkhorn_backward_sweep", *given, columns_gradient, gradient, sums, epsilon)
        return sums


_sweeps_of_triton = of_triton("sinkhorn_group", "group_forward")
_gradient_of_triton = of_triton("sinkhorn_backward", "gradient_of")


def _triton_forward(
    scores: Tensor, epsilon: float, iterations: int, marginals: Tensor | None, group: ProcessGroup
) -> tuple[Tensor, Sequence[Tensor]]:
    exchange = functools.partial(gather, group=group)
    assignments, *kept = _sweeps_of_triton(scores, epsilon, iterations, marginals, exchange)
    return assignments, kept


def _triton_backward(
    scores: Tensor,
    marginals: Tensor | None,
    assignments: Tensor,
    kept: Sequence[Tensor],
    grad_output: Tensor,
    epsilon: float,
    group: ProcessGroup,
) -> Tensor:
    """From neither the marginals nor the assignments, as without a group."""
    exchange = functools.partial(gather, group=group)
    return _gradient_of_triton(scores, *kept, grad_output, epsilon, exchange)


PHASES = {
    "cuda": Phases(Sweeps("_cuda").forward, Sweeps("_cuda").backward),
    "triton": Phases(_triton_forward, _triton_backward, reads_half=True),
    "cpu": Phases(Sweeps("_cpu").forward, Sweeps("_cpu").backward),
}
