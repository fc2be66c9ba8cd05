"""CRLC's cluster loss on a batch over processes: two exchanges of a few floats a head and cluster."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from imc_kernels import backends, eager, native
from imc_kernels.ops.autograd import refuse_recording
from imc_kernels.ops.distributed.collectives import gather, not_compiled
from imc_kernels.ops.distributed.loss import distributed_loss
from imc_kernels.ops.fused_loss import Needs
from imc_kernels.ops.operator import of_triton
from imc_kernels.ops.precision import at_least_single, gradient_buffer, half_as_single, specification

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class Phases(NamedTuple):
    """A backend's sweeps over this process's logits [H, 2, B, C], of one sample at least.

    A sum over samples is a pair (peak, rest) whose sum it is: its largest term and the sum of the others. So the sum
    without a sample's own term, which may dwarf the others, loses no digits. A backend may leave the peak 0.

    Attributes:
        sums: (logits, smoothing) -> float64 [H, C, 4]: the pair of the sum of q, and per view the sum of p.
        compare: (logits, sums, samples, smoothing, entropy_weight, logit_limit) -> float64 [H] and [H, C, 2]: this
            process's part of the losses, and the pair of its sum of q / (N d). ``sums`` and ``samples``, float64 [],
            are those of the whole batch; N is 2 ``samples``.
        differentiate: (logits, sums, samples, quotients, smoothing, entropy_weight, logit_limit) -> the gradient.
        reads_half: whether they read half precision themselves.
    """

    sums: Callable[[Tensor, float], Tensor]
    compare: Callable[..., tuple[Tensor, Tensor]]
    differentiate: Callable[..., Tensor]
    reads_half: bool = False


@not_compiled
def log_dot_product_loss(
    logits: Tensor,
    smoothing: float,
    entropy_weight: float,
    logit_limit: float | None,
    critic: str,
    group: ProcessGroup,
    backend: str | None,
) -> Tensor:
    """:func:`imc_kernels.log_dot_product_loss` with a group, its arguments checked."""
    form, offered = "log_dot_product_loss with a group", (*PHASES, "eager")
    if critic != "log-dot":
        form, offered = f"log_dot_product_loss with critic={critic!r}", ("eager",)
    chosen = backends.choose(form, offered, logits.device, logits.dtype, backend)
    if chosen == "eager":
        everything = (logits, smoothing, entropy_weight, logit_limit, critic, group)
        return specification(eager.log_dot_product_loss, *everything)
    refuse_recording("log_dot_product_loss", chosen, logits)
    if chosen == "cuda":
        native.check_cuda_sizes("log_dot_product_loss", *logits.shape)
    phases = PHASES[chosen]
    options = (smoothing, entropy_weight, math.inf if logit_limit is None else logit_limit)

    def run(inputs: Sequence[Tensor], needs: Needs) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        x = inputs[0].contiguous()
        heads, _, batch, clusters = x.shape
        own = phases.sums(x, smoothing) if batch else x.new_zeros(heads, clusters, 4, dtype=torch.float64)
        everybody = gather(torch.cat([own.flatten(), own.new_full((1,), batch)]), group)
        parts, samples = everybody[:, :-1].unflatten(1, own.shape), everybody[:, -1].sum()
        sums = torch.cat([_add_pairs(parts[..., :2]), parts[..., 2:].sum(dim=0)], dim=-1)
        if batch:
            losses, quotients = phases.compare(x, sums, samples, *options)
        else:
            losses, quotients = sums.new_zeros(heads), sums.new_zeros(heads, clusters, 2)
        everybody = gather(torch.cat([losses, quotients.flatten()]), group)
        loss = everybody[:, :heads].sum(dim=0).to(half_as_single(x.dtype))
        if not needs[0]:
            return loss, (None,)
        quotients = _add_pairs(everybody[:, heads:].unflatten(1, (heads, clusters, 2)))
        if not batch:
            return loss, (gradient_buffer(x),)
        return loss, (phases.differentiate(x, sums, samples, quotients, *options),)

    given = logits if phases.reads_half else at_least_single(logits)
    return distributed_loss("log_dot_product_loss", run, group, given)


def _add_pairs(parts: Tensor) -> Tensor:
    """Pairs (peak, rest) of all processes [processes, H, C, 2] -> those of the whole batch [H, C, 2]."""
    peaks = parts[..., 0].sort(dim=0, descending=True).values
    return torch.stack([peaks[0], peaks[1:].sum(dim=0) + parts[..., 1].sum(dim=0)], dim=-1)


def _sums(module: str, logits: Tensor, smoothing: float) -> Tensor:
    heads, _, _, clusters = logits.shape
    sums = logits.new_empty(heads, clusters, 4, dtype=torch.float64)
    native.call(module, "log_dot_product_loss_sums", logits, sums, smoothing)
    return sums


def _parts(
    module: str, logits: Tensor, sums: Tensor, samples: Tensor, quotients: Tensor | None, options: Sequence[Any]
) -> tuple[Tensor, Tensor, Tensor | None]:
    heads, _, _, clusters = logits.shape
    losses, own_quotients = sums.new_empty(heads), sums.new_empty(heads, clusters, 2)
    gradient = None if quotients is None else torch.empty_like(logits)
    results = (losses, own_quotients, gradient)
    native.call(module, "log_dot_product_loss_parts", logits, sums, samples, quotients, *results, *options)
    return losses, own_quotients, gradient


def _compare(module: str, logits: Tensor, sums: Tensor, samples: Tensor, *options: float) -> tuple[Tensor, Tensor]:
    return _parts(module, logits, sums, samples, None, options)[:2]


def _differentiate(
    module: str, logits: Tensor, sums: Tensor, samples: Tensor, quotients: Tensor, *options: float
) -> Tensor:
    gradient = _parts(module, logits, sums, samples, quotients, options)[2]
    assert gradient is not None
    return gradient


def _phases(module: str) -> Phases:
    """Those of a compiled module."""
    partial = functools.partial
    return Phases(partial(_sums, module), partial(_compare, module), partial(_differentiate, module))


PHASES = {
    "cuda": _phases("_cuda"),
    "triton": Phases(
        of_triton("log_dot_product_loss", "group_sums"),
        of_triton("log_dot_product_loss", "group_compare"),
        of_triton("log_dot_product_loss", "group_differentiate"),
        reads_half=True,
    ),
    "cpu": _phases("_cpu"),
}
