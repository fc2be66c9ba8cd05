"""InfoNCE loss between the embeddings of two views."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from imc_kernels import backends, eager, native
from imc_kernels.ops import checks
from imc_kernels.ops.fused_loss import FusedLoss, Kernel, Needs
from imc_kernels.ops.operator import of_triton
from imc_kernels.ops.precision import at_least_single, gradient_buffer, half_as_single, loss_buffer, specification

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

NAME = "info_nce_loss"
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def info_nce_loss(
    embeddings: Tensor,
    *,
    temperature: float | Tensor = 0.1,
    normalise: bool = False,
    negatives: str = "all",
    labels: Tensor | None = None,
    bank: Tensor | None = None,
    group: ProcessGroup | None = None,
    backend: str | None = None,
) -> Tensor:
    """Contrast of each sample's embeddings with those of all other samples, in all views.

    With Z the N = 2B rows of two views and ``S = Z Z^T / temperature``:

        ``mean_i [log sum_{j != i} exp S_ij - S_i,pair(i)]``

    in nats; the sum has N - 1 terms, the pair's among them. Dot products that overflow the dtype give a result
    that is not finite. Source: NT-Xent of SimCLR, arXiv 2002.05709, equation 1; in CRLC, arXiv 2107.11635, the loss of
    the representation head.

    With more views or with labels, pair(i) is the mean over all positives, as in SupCon, arXiv 2004.11362, equation 2.

    Memory: linear in N. On ``cpu``, beside the gradient, one copy of the embeddings (two with a gradient), 4 N numbers
    and 1 MiB a thread. More views, other negatives, labels and a bank run on ``eager`` alone, which takes 1,024 rows of
    S at a time and computes them again in the backward.

    Args:
        embeddings: [V, B, D], float32, float64, bfloat16 or float16, taken as they are given: usually of norm 1. Two
            views or more.
        temperature: divides the dot products, above 0. A tensor [] that requires a gradient gets it, as CLIP learns its
            own; its value is not checked.
        normalise: divide each embedding by its norm first; the gradient goes through that.
        negatives: "all", or "other": of other views alone, as between images and texts (CLIP, arXiv 2103.00020).
        labels: [B] integers, for SupCon: samples of one label are positives of each other. Default: all differ.
        bank: [M, D] further negatives. Then, as in MoCo, arXiv 1911.05722, the rows of the first view alone are
            contrasted, each with its row of the second and with the bank; the gradient reaches all three. It goes with
            two views, and neither with labels nor with other negatives.
        group: where given, the samples of all its processes are one batch and negatives of each other,
            and every process gets its loss; averaged over the processes, the gradients are those of the whole batch.
            A process may have B = 0.
        backend: see :mod:`imc_kernels.backends`.

    Returns:
        A scalar: float64 for float64 embeddings, float32 otherwise.

    Raises:
        TypeError: embeddings or bank is no tensor, not of a floating dtype, or an option is of another type.
        ValueError: a wrong shape, an empty input, or a bad temperature.
        NotImplementedError: a kernel is asked for a derivative that only ``backend="eager"`` has.
    """
    embeddings = checks.floating(NAME, "embeddings", embeddings, "[V, B, D]", group)
    learned = isinstance(temperature, Tensor) and temperature.requires_grad and temperature.dim() == 0
    if not learned:
        temperature = checks.number(NAME, "temperature", temperature, checks.POSITIVE)
    normalise = checks.flag(NAME, "normalise", normalise)
    if embeddings.shape[0] < 2:
        raise ValueError(f"{NAME}: embeddings [V, B, D] must hold at least 2 views, got {list(embeddings.shape)}")
    if negatives not in ("all", "other"):
        raise ValueError(f'{NAME}: negatives must be "all" or "other", got {negatives!r}')
    checks.group(NAME, group)
    if bank is not None:
        bank = checks.floating(NAME, "bank", bank, "[M, D]")
    if learned:  # <z_i, z_j> / temperature is the product of rows that are both divided by its root
        root = temperature.to(embeddings.device, half_as_single(embeddings.dtype)).rsqrt()  # type: ignore[union-attr]
        embeddings = (_normalised(embeddings) if normalise else embeddings) * root
        if bank is not None:
            bank = (_normalised(bank) if normalise else bank) * root
        temperature, normalise = 1.0, False
    further = {"bank": bank, "labels": labels, "negatives": None if negatives == "all" else negatives}
    named = [name for name, value in further.items() if value is not None]
    named += ["more than two views"] if len(embeddings) > 2 else []
    if named:
        if group is not None:
            raise ValueError(f"{NAME}: a group goes with two views and negatives of both, not with {named[0]}")
        return _general(embeddings, temperature, normalise, negatives, labels, bank, backend, named)
    if group is not None:
        from imc_kernels.ops import distributed  # which imports the compiler

        return distributed.info_nce_loss(embeddings, temperature, normalise, group, backend)
    chosen = backends.choose(NAME, LOSS.backends, embeddings.device, embeddings.dtype, backend)
    if chosen == "eager":
        return specification(eager.info_nce_loss, embeddings, temperature, normalise)
    return LOSS(chosen, (embeddings,), (temperature, normalise))


def _general(
    embeddings: Tensor,
    temperature: float | Tensor,
    normalise: bool,
    negatives: str,
    labels: Tensor | None,
    bank: Tensor | None,
    backend: str | None,
    named: list[str],
) -> Tensor:
    """With what ``named`` says, checked here."""
    views, batch, depth = embeddings.shape
    if labels is not None:
        checks.dense(NAME, "labels", labels, "[B]")
        if labels.shape != (batch,) or labels.dtype not in INTEGERS:
            raise ValueError(f"{NAME}: labels must be {batch} integers, got {list(labels.shape)} of {labels.dtype}")
    promoted = embeddings.dtype
    if bank is not None:
        if bank.shape[1] != depth or len(named) > 1:
            given = f"a bank of {list(bank.shape)}" if bank.shape[1] != depth else f"a bank with {named[1]}"
            raise ValueError(f"{NAME}: a bank [M, D] goes with embeddings [2, B, D] of the same D alone, got {given}")
        promoted = checks.together(NAME, embeddings=embeddings, bank=bank)
    device = embeddings.device
    backends.choose(f"{NAME} with {named[0]}", ("eager",), device, promoted, backend)
    embeddings = embeddings.to(promoted)
    if normalise:
        embeddings, bank = (None if x is None else _normalised(x) for x in (embeddings, bank))  # type: ignore[assignment]
    if bank is not None:
        return specification(eager.bank_info_nce_loss, embeddings, bank.to(promoted), temperature)
    labels = torch.arange(batch, device=device) if labels is None else labels.to(device)
    return specification(
        eager.labelled_info_nce_loss, embeddings, labels.repeat(views), temperature, negatives == "other"
    )


def _normalised(embeddings: Tensor) -> Tensor:
    return normalize(at_least_single(embeddings), dim=-1)


def _cpu(inputs: Sequence[Tensor], options: Sequence[Any], needs: Needs) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    embeddings = inputs[0].contiguous()
    loss = loss_buffer(embeddings)
    gradient = gradient_buffer(embeddings) if needs[0] else None
    native.call("_cpu", NAME, embeddings, loss, gradient, *options)
    return loss, (gradient,)


LOSS = FusedLoss(
    NAME,
    {"triton": Kernel(of_triton(NAME), reads_half=True), "cpu": Kernel(_cpu, reads_half=True)},
    inputs=("embeddings",),
    options={"temperature": checks.POSITIVE, "normalise": "bool"},
)
