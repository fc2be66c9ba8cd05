"""Entropic optimal transport: Sinkhorn-Knopp with everything that a field other than clustering asks of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from imc_kernels import backends, eager, native
from imc_kernels.ops import checks
from imc_kernels.ops.autograd import has_values, memory
from imc_kernels.ops.fused_operation import FusedOperation, Gradients, Inputs, Kernels
from imc_kernels.ops.operator import Needs
from imc_kernels.ops.precision import cast, half_as_single, specification
from imc_kernels.ops.sinkhorn import MOST_ITERATIONS

NAME = "transport_plan"
ORDERS = ("columns", "rows")
Given = tuple[float, int, float, float]  # epsilon, iterations, tolerance (-1: none), reach (infinity: none)


def transport_plan(
    scores: Tensor,
    *,
    epsilon: float = 0.05,
    iterations: int = 100,
    tolerance: float | None = None,
    row_marginals: Tensor | None = None,
    column_marginals: Tensor | None = None,
    order: str = "columns",
    mask: Tensor | None = None,
    dustbin: float | Tensor | None = None,
    reach: float | None = None,
    log: bool = False,
    potentials: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor, Tensor]:
    """How much of each row's mass goes to each column, by entropic optimal transport: the general form of `sinkhorn`.

    ``exp(scores / epsilon)`` is scaled so that each column sums to its mass, then each row to its own, in turn; minus
    the scores are the costs. All leading dimensions are independent problems. Differentiable through the iterations,
    with respect to the scores and the dustbin's. Source: Cuturi, arXiv 1306.0895.

    `sinkhorn` is the special case of SwAV, faster for few iterations: there rows sum to 1, here by default to 1/B.

    Args:
        scores: [..., B, K], float32, float64, bfloat16 or float16. Half precision is computed in float32.
        epsilon: entropy regularisation; divides the scores, above 0.
        iterations: 0 to 2^20 scalings of columns and rows. With 0 the whole has the mass that is asked for, no more.
        tolerance: where given, a problem stops before that where the next scaling would move at most this fraction of
            the mass, as routers of mixtures of experts do; of at least 0. On a GPU the host does not wait for it.
        row_marginals: [B] or [..., B] masses of the rows, of at least 0: a row without mass takes no part. Constants,
            floating, on the scores' device. Default: all the same, with the sum of the columns', 1 where neither is
            given. A row that the mask excludes has no mass then.
        column_marginals: [K] or [..., K], the same of the columns. Where both are given, their sums must agree.
        order: "columns" scales columns, then rows, whose masses are then exact; "rows" the other way round, as
            quantisers of recommenders' semantic IDs and Megatron's router do.
        mask: [B, K] or [..., B, K] of booleans: False excludes an entry, whose score is not read. Problems of unequal
            size are padded so: what is left of each is as if it were alone.
        dustbin: score of a further row and a further column, which take what has no counterpart, as in matching of
            keypoints (SuperGlue, arXiv 1911.11763): a number or a tensor [], such as a parameter. A row's or column's
            mass is then 1 by default, the dustbins' that of all columns and rows: each may stay alone.
        reach: where given, masses are not met but approached, at this price in the scores' units: unbalanced transport
            (arXiv 1607.05816). geomloss has its ``reach ** p`` there, POT ``reg_m``; above 0.
        log: return the plan's logarithm, -inf at excluded entries.
        potentials: return the dual potentials, too, in the scores' units.
        backend: see :mod:`imc_kernels.backends`.

    Returns:
        [..., B, K] of the scores' dtype, or that to which torch's arithmetic promotes scores, marginals and dustbin;
        with a dustbin [..., B + 1, K + 1]. With ``potentials`` a tuple (plan, rows, columns) of it, [..., B] and
        [..., K]: ``exp((scores + rows[..., None] + columns[..., None, :]) / epsilon)`` is the plan. An infinity or NaN
        among the scores gives NaN.

    Raises:
        TypeError: no tensor, not of a floating dtype, a mask not of booleans, or an option of another type.
        ValueError: wrong shape, an empty dimension, a negative mass, sums that do not agree, or a bad option.
        NotImplementedError: a kernel is asked for a derivative that only ``backend="eager"`` has.
    """
    scores = checks.floating(NAME, "scores", scores, "[..., B, K]")
    epsilon = checks.number(NAME, "epsilon", epsilon, checks.POSITIVE)
    iterations = checks.integer(NAME, "iterations", iterations, 0, MOST_ITERATIONS)
    tolerance = -1.0 if tolerance is None else checks.number(NAME, "tolerance", tolerance, checks.NOT_NEGATIVE)
    reach = math.inf if reach is None else checks.number(NAME, "reach", reach, checks.POSITIVE)
    log, potentials = checks.flag(NAME, "log", log), checks.flag(NAME, "potentials", potentials)
    if not isinstance(order, str) or order not in ORDERS:
        raise ValueError(f'{NAME}: order must be "columns" or "rows", got {order!r}')
    marginals = {
        "row_marginals": _checked_marginals("row_marginals", row_marginals, scores, -2),
        "column_marginals": _checked_marginals("column_marginals", column_marginals, scores, -1),
    }
    if mask is not None:
        _check_mask(mask, scores)
    if dustbin is not None:
        dustbin = _checked_dustbin(dustbin, scores)
    promoted = checks.together(NAME, scores=scores, **marginals, dustbin=dustbin)
    computed = half_as_single(promoted)
    chosen = backends.choose(NAME, OPERATION.backends, scores.device, computed, backend)
    rows, columns = (None if m is None else cast(m, computed) for m in marginals.values())
    if rows is not None and columns is not None and reach == math.inf:
        _check_sums(rows, columns, *(m.dtype for m in marginals.values() if m is not None))
    x = (_finite(cast(scores, computed), mask) / epsilon).contiguous()
    masses = _masses(x, rows, columns, mask, alone=dustbin is not None)
    if dustbin is not None:
        x = _with_dustbin(x, cast(dustbin, computed) / epsilon)
        masses = [_and_their_sum(own, other) for own, other in (masses, masses[::-1])]
    options = (epsilon, iterations, tolerance, reach)
    if order == "columns":
        plan, u, v = _solved(chosen, x, masses[0], masses[1], options)
    else:
        plan, v, u = _solved(chosen, x.mT, masses[1], masses[0], options)
        plan = plan.mT
    plan = cast(plan if log else plan.exp(), promoted)
    if not potentials:
        return plan
    return plan, cast(u * epsilon, promoted), cast(v * epsilon, promoted)


def _solved(backend: str, x: Tensor, rows: Tensor, columns: Tensor, options: Given) -> tuple[Tensor, Tensor, Tensor]:
    """The logarithms of the plan and of its scalings u [..., B] and v [..., K], from scores over epsilon and masses."""
    log_rows, log_columns = (m.log().expand(*x.shape[:-2], m.shape[-1]) for m in (rows, columns))
    if options[1] == 0:
        u, v = (torch.where(m > -torch.inf, 0.0, m) for m in (log_rows, log_columns))
        total = (x + u.unsqueeze(-1) + v.unsqueeze(-2)).logsumexp(dim=(-2, -1))
        u = u + (log_columns.logsumexp(dim=-1) - total).unsqueeze(-1)
    else:
        v = _column_scalings(backend, x, log_rows, log_columns, options)
        u = eager.row_scalings(x, v, log_rows, _damping(options))
    plan = x + u.unsqueeze(-1) + v.unsqueeze(-2)
    return plan.flatten().view(plan.shape), u, v  # on its way back a gradient of any layout becomes a contiguous one


def _column_scalings(backend: str, x: Tensor, log_rows: Tensor, log_columns: Tensor, options: Given) -> Tensor:
    if backend == "eager":
        _, iterations, tolerance, _ = options
        return specification(eager.column_scalings, x, log_rows, log_columns, iterations, tolerance, _damping(options))
    return OPERATION(backend, (x, log_rows, log_columns), options)[0]


def _damping(options: Sequence[Any]) -> float:
    """1 where masses are met, less where they are approached at a price."""
    epsilon, _, _, reach = options
    return 1 / (1 + epsilon / reach)


def _finite(scores: Tensor, mask: Tensor | None) -> Tensor:
    """The scores with -inf at excluded entries; a problem with an infinity or NaN at another is NaN throughout."""
    if mask is not None:
        scores = scores.masked_fill(~mask, 0)
    values = scores.detach()
    poison = 0 * values.amax(dim=(-2, -1), keepdim=True) + 0 * values.amin(dim=(-2, -1), keepdim=True)
    scores = scores + poison
    return scores if mask is None else scores.masked_fill(~mask, -torch.inf)


def _masses(x: Tensor, rows: Tensor | None, columns: Tensor | None, mask: Tensor | None, alone: bool) -> list[Tensor]:
    """Those of the rows and of the columns, where not given the same for all that the mask admits: 1 each where they
    may stay ``alone``, otherwise as much in sum as the others have, or 1."""
    masses = [rows, columns]
    for i, (given, other, length) in enumerate(((rows, columns, x.shape[-2]), (columns, rows, x.shape[-1]))):
        if given is None:
            admitted = x.new_ones(length) if mask is None else mask.any(dim=-1 - i).to(x.dtype)
            total = 1 if other is None else other.sum(dim=-1, keepdim=True)
            masses[i] = admitted if alone else admitted * (total / admitted.sum(dim=-1, keepdim=True).clamp_min(1))
    return masses  # type: ignore[return-value]


def _with_dustbin(x: Tensor, score: Tensor) -> Tensor:
    """[..., B, K] -> [..., B + 1, K + 1]."""
    bins = pad(x.new_zeros(x.shape[-2:]), (0, 1, 0, 1), value=1.0)
    return pad(x, (0, 1, 0, 1)) + score * bins


def _and_their_sum(masses: Tensor, others: Tensor) -> Tensor:
    """With the mass of a dustbin, which takes all of the others."""
    return pad(masses, (0, 1)) + pad(others.sum(dim=-1, keepdim=True), (masses.shape[-1], 0))


def _checked_marginals(name: str, marginals: Tensor | None, scores: Tensor, dim: int) -> Tensor | None:
    if marginals is None:
        return None
    letter, length = "BK"[dim], scores.shape[dim]
    checks.dense(NAME, name, marginals, f"[{letter}]")
    marginals = checks.floating(NAME, name, marginals, f"[..., {letter}]" if marginals.dim() > 1 else f"[{letter}]")
    if marginals.shape[-1] != length or marginals.shape[:-1] not in ((), scores.shape[:-2]):
        raise ValueError(
            f"{NAME}: {name} must be [{letter}] or [..., {letter}] of scores [..., B, K], got {list(marginals.shape)} "
            f"for {list(scores.shape)}"
        )
    if marginals.requires_grad:
        raise ValueError(f"{NAME}: {name} are constants; pass {name}.detach()")
    # Asked on the CPU only: elsewhere the answer would wait for the device.
    if marginals.is_cpu and has_values(marginals) and not bool(((marginals >= 0) & marginals.isfinite()).all()):
        raise ValueError(
            f"{NAME}: {name} must all be finite and at least 0, got a smallest value of {marginals.min().item():g} and "
            f"a largest of {marginals.max().item():g}"
        )
    return marginals


def _check_sums(rows: Tensor, columns: Tensor, *dtypes: torch.dtype) -> None:
    if not (rows.is_cpu and has_values(rows) and has_values(columns)):
        return
    row_sums, column_sums = torch.broadcast_tensors(rows.sum(dim=-1), columns.sum(dim=-1))
    rounding = max(1e-5, 16 * max(torch.finfo(dtype).eps for dtype in dtypes))
    apart = (row_sums - column_sums).abs() - rounding * row_sums
    if bool((apart > 0).any()):
        worst = apart.argmax()
        raise ValueError(
            f"{NAME}: row_marginals and column_marginals must have the same sum, got {row_sums.flatten()[worst]:g} and "
            f"{column_sums.flatten()[worst]:g}; divide each by its own, or give a reach"
        )


def _check_mask(mask: Any, scores: Tensor) -> None:
    checks.dense(NAME, "mask", mask, "[..., B, K]")
    if mask.dtype != torch.bool:
        raise TypeError(f"{NAME}: mask must be of torch.bool, True where an entry takes part, got {mask.dtype}")
    if mask.shape not in (scores.shape, scores.shape[-2:]):
        raise ValueError(
            f"{NAME}: mask must be [B, K] or [..., B, K], as the scores, got {list(mask.shape)} for "
            f"{list(scores.shape)}"
        )
    if mask.device != scores.device:
        raise ValueError(f"{NAME}: scores is on {scores.device} and mask on {mask.device}; move one")


def _checked_dustbin(dustbin: Any, scores: Tensor) -> Tensor:
    if not isinstance(dustbin, Tensor):
        return scores.new_tensor(checks.number(NAME, "dustbin", dustbin, checks.FINITE))
    checks.dense(NAME, "dustbin", dustbin, "[]")
    if dustbin.dim() or dustbin.dtype not in backends.FLOATING:
        raise TypeError(
            f"{NAME}: dustbin must be a finite number or a floating tensor [], got a tensor {list(dustbin.shape)} of "
            f"{dustbin.dtype}"
        )
    return dustbin


def _cpu(inputs: Inputs, options: Sequence[Any], needs: Needs) -> tuple[Tensor | None, ...]:
    """The logarithms of the columns' scalings and, for a gradient, those of all scalings after each iteration."""
    scores, *log_masses = inputs
    results = _empty("cpu", inputs, options, needs)
    log_masses = [m.double().contiguous().view(-1, m.shape[-1]) for m in log_masses]
    native.call("_cpu", NAME, scores.contiguous(), *log_masses, *results, *options[1:3], _damping(options))
    return results


def _cpu_backward(
    inputs: Inputs, saved: Sequence[Tensor], grad_output: Tensor, options: Sequence[Any], needs: Needs
) -> Gradients:
    scores, *log_masses = inputs
    scores = scores.contiguous()
    gradient = torch.empty_like(scores)
    log_masses = [m.double().contiguous().view(-1, m.shape[-1]) for m in log_masses]
    damping = _damping(options)
    native.call("_cpu", f"{NAME}_backward", scores, *log_masses, *saved, memory(grad_output), gradient, damping)
    return gradient, None, None


def _empty(backend: str, inputs: Inputs, options: Sequence[Any], needs: Needs) -> tuple[Tensor | None, ...]:
    scores, iterations = inputs[0], options[1]
    batch, columns = scores.shape[-2:]
    scalings = scores.new_empty((*scores.shape[:-2], columns))
    if not needs[0]:
        return scalings, None, None, None
    problems = math.prod(scores.shape[:-2])
    rows, every = (scores.new_empty((problems, iterations, n), dtype=torch.float64) for n in (batch, columns))
    return scalings, rows, every, scores.new_empty(problems, dtype=torch.int64)


OPERATION = FusedOperation(
    NAME,
    {"cpu": Kernels(_cpu, _cpu_backward)},
    inputs=("scores", "log_rows", "log_columns"),
    options={
        "epsilon": checks.POSITIVE,
        "iterations": "int",
        "tolerance": checks.NOT_NEGATIVE,
        "reach": checks.POSITIVE,
    },
    constants=("log_rows", "log_columns"),
    empty=_empty,
    kept=3,
)
