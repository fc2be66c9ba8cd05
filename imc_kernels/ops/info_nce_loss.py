"""InfoNCE loss between the embeddings of two views."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from imc_kernels import backends, eager, native
from imc_kernels.ops import checks
from imc_kernels.ops.fused_loss import FusedLoss, Kernel, Needs
from imc_kernels.ops.operator import of_triton
from imc_kernels.ops.precision import gradient_buffer, loss_buffer, specification

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

NAME = "info_nce_loss"


def info_nce_loss(
    embeddings: Tensor,
    *,
    temperature: float = 0.1,
    normalise: bool = False,
    group: ProcessGroup | None = None,
    backend: str | None = None,
) -> Tensor:
    """Contrast of each sample's two embeddings with those of all other samples, in both views.

    With Z the N = 2B rows of both views and ``S = Z Z^T / temperature``:

        ``mean_i [log sum_{j != i} exp S_ij - S_i,pair(i)]``

    in nats; the sum has N - 1 terms, the pair's among them. Dot products that overflow the dtype give a result
    that is not finite. Source: NT-Xent of SimCLR, arXiv 2002.05709, equation 1; in CRLC, arXiv 2107.11635, the loss of
    the representation head.

    Memory: linear in N. On ``cpu``, beside the gradient, one copy of the embeddings (two with a gradient), 4 N numbers
    and 1 MiB a thread.

    Args:
        embeddings: [2, B, D], float32, float64, bfloat16 or float16, taken as they are given: usually of norm 1.
        temperature: divides the dot products, above 0.
        normalise: divide each embedding by its norm first; the gradient goes through that.
        group: where given, the samples of all its processes are one batch and negatives of each other,
            and every process gets its loss; averaged over the processes, the gradients are those of the whole batch.
            A process may have B = 0.
        backend: see :mod:`imc_kernels.backends`.

    Returns:
        A scalar: float64 for float64 embeddings, float32 otherwise.

    Raises:
        TypeError: embeddings is no tensor, not of a floating dtype, or an option is of another type.
        ValueError: a wrong shape, an empty input, or a bad temperature.
        NotImplementedError: a kernel is asked for a derivative that only ``backend="eager"`` has.
    """
    embeddings = checks.floating(NAME, "embeddings", embeddings, "[2, B, D]", group)
    temperature = checks.number(NAME, "temperature", temperature, checks.POSITIVE)
    normalise = checks.flag(NAME, "normalise", normalise)
    if embeddings.shape[0] != 2:
        raise ValueError(f"{NAME}: embeddings [2, B, D] must hold 2 views, got {list(embeddings.shape)}")
    checks.group(NAME, group)
    if group is not None:
        from imc_kernels.ops import distributed  # which imports the compiler

        return distributed.info_nce_loss(embeddings, temperature, normalise, group, backend)
    chosen = backends.choose(NAME, LOSS.backends, embeddings.device, embeddings.dtype, backend)
    if chosen == "eager":
        return specification(eager.info_nce_loss, embeddings, temperature, normalise)
    return LOSS(chosen, (embeddings,), (temperature, normalise))


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
