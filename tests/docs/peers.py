"""What docs/drop-in.md replaces: each peer's published formula, restated, under the names that it is imported by."""

from __future__ import annotations

import types
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, normalize


def balanced(x: Tensor, iterations: int) -> Tensor:
    """exp(x) [..., B, K], columns and then rows divided by their sums, in turn (SwAV, arXiv 2006.09882, appendix A)."""
    q = x.exp()
    for _ in range(iterations):
        q = q / q.sum(dim=-2, keepdim=True)
        q = q / q.sum(dim=-1, keepdim=True)
    return q


def cross_entropy(targets: Tensor, logits: Tensor) -> Tensor:
    return -(targets * log_softmax(logits, dim=-1)).sum(dim=-1).mean()


def every_pair(targets: Sequence[Tensor], scores: Sequence[Tensor], temperature: float) -> Tensor:
    """The mean cross-entropy of the pairs of a target and another view's scores."""
    losses = [cross_entropy(q, s / temperature) for a, q in enumerate(targets) for v, s in enumerate(scores) if v != a]
    return torch.stack(losses).mean()


class DinoHead:
    """The loss of DINOv2 (arXiv 2304.07193) on the class token: sums over all pairs; DINOv3's takes stacks instead."""

    def __init__(self, out_dim: int, student_temp: float) -> None:
        self.temperature = student_temp

    def sinkhorn_knopp_teacher(self, scores: Tensor, teacher_temp: float, n_iterations: int = 3) -> Tensor:
        return balanced(scores / teacher_temp, n_iterations)

    def __call__(self, students: Any, targets: Any, ignore_diagonal: bool = False) -> Tensor:
        if ignore_diagonal:
            return every_pair(targets, students, self.temperature)
        pairs = [cross_entropy(t, s / self.temperature) for s in students for t in targets]
        return torch.stack(pairs).sum()


def swav_of_lists(temperature: float, sinkhorn_iterations: int, sinkhorn_epsilon: float) -> Callable[..., Tensor]:
    def loss(high: list[Tensor], low: list[Tensor], queue: list[Tensor]) -> Tensor:
        everybody = [torch.cat([s.detach(), q]) / sinkhorn_epsilon for s, q in zip(high, queue, strict=True)]
        targets = [balanced(s, sinkhorn_iterations)[: len(high[0])] for s in everybody]
        return every_pair(targets, [*high, *low], temperature)

    return loss


def simclr(z: Tensor, indexes: Tensor, temperature: float) -> Tensor:
    """NT-Xent (arXiv 2002.05709, equation 1); indexes [N] say which rows are one image."""
    z = normalize(z, dim=-1)
    others = ~torch.eye(len(z), dtype=torch.bool)
    exponentials = (z @ z.T / temperature).exp() * others
    same = (indexes[:, None] == indexes) & others
    return -((exponentials * same).sum(dim=1) / exponentials.sum(dim=1)).log().mean()


def ntxent(temperature: float) -> Callable[..., Tensor]:
    return lambda z0, z1: simclr(torch.cat([z0, z1]), torch.arange(len(z0)).repeat(2), temperature)


def clip(image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
    """CLIP (arXiv 2103.00020, figure 3)."""
    logits = scale * image @ text.T
    return -(log_softmax(logits, dim=0).diagonal() + log_softmax(logits, dim=1).diagonal()).mean() / 2


def supcon(temperature: float, base_temperature: float) -> Callable[..., Tensor]:
    """SupCon (arXiv 2004.11362, equation 2)."""

    def loss(features: Tensor, labels: Tensor) -> Tensor:
        z, same = features.transpose(0, 1).flatten(0, 1), labels.repeat(features.shape[1])
        others = ~torch.eye(len(z), dtype=torch.bool)
        logits = (z @ z.T / temperature).masked_fill(~others, -torch.inf)
        positive = (same[:, None] == same) & others
        log_p = log_softmax(logits, dim=1).masked_fill(~positive, 0)
        return -(temperature / base_temperature) * (log_p.sum(dim=1) / positive.sum(dim=1)).mean()

    return loss


def iid(p: Tensor, p_tf: Tensor, lamb: float) -> tuple[Tensor, Tensor]:
    """IIC (arXiv 1807.06653, equation 3) on probabilities [B, C]; with lamb 1 as well."""
    joint = p.T @ p_tf
    joint = (joint + joint.T) / (2 * joint.sum())
    rows, columns = joint.sum(dim=1, keepdim=True), joint.sum(dim=0, keepdim=True)

    def loss(weight: float) -> Tensor:
        return -(joint * (joint.log() - weight * rows.log() - weight * columns.log())).sum()

    return loss(lamb), loss(1.0)


def of_rows_first(distances: Tensor, epsilon: float, sinkhorn_iterations: int) -> Tensor:
    """LC-Rec's quantiser (arXiv 2311.09049): as many shares as items, rows scaled before columns."""
    q = (-distances / epsilon).exp()
    for _ in range(sinkhorn_iterations):
        q = q / q.sum(dim=1, keepdim=True)
        q = q / q.sum(dim=0, keepdim=True) / q.shape[1]
    return q * len(q)


def router(logits: Tensor, tol: float) -> Tensor:
    """Megatron-Core's: factors of rows and columns, until those of the columns change by less than tol on average."""
    kernel, rows, columns, change = logits.exp(), 0.0, torch.ones(logits.shape[1], dtype=logits.dtype), 1.0
    while change > tol:
        rows = 1 / ((kernel * columns).sum(dim=1, keepdim=True) * kernel.shape[0])
        new = 1 / ((kernel * rows).sum(dim=0) * kernel.shape[1])
        change, columns = float((new - columns).abs().mean()), new
    return rows * kernel * columns


def with_dustbins(scores: Tensor, bin_score: Tensor, iters: int) -> Tensor:
    """SuperGlue's (arXiv 1911.11763, section 3.2): log-domain Sinkhorn of scores with a further row and column."""
    problems, m, n = scores.shape
    last_row = bin_score.expand(problems, 1, n + 1)
    x = torch.cat([torch.cat([scores, bin_score.expand(problems, m, 1)], dim=2), last_row], dim=1)
    rows, columns = torch.ones(m + 1), torch.ones(n + 1)
    rows[-1], columns[-1] = n, m
    rows, columns = (masses.to(scores).log() for masses in (rows, columns))
    u, v = torch.zeros_like(x[:, :, 0]), torch.zeros_like(x[:, 0])
    for _ in range(iters):
        u = rows - (x + v[:, None]).logsumexp(dim=2)
        v = columns - (x + u[:, :, None]).logsumexp(dim=1)
    return x + u[:, :, None] + v[:, None]


def scaled(a: Tensor, b: Tensor, cost: Tensor, reg: float, power: float = 1.0) -> Tensor:
    """Scaling of exp(-cost / reg) a b, each factor to the given power (arXiv 1607.05816, algorithm 1)."""
    kernel, v = (-cost / reg).exp() * a[:, None] * b, torch.ones_like(b)
    for _ in range(1000):
        u = (a / (kernel @ v)) ** power
        v = (b / (u @ kernel)) ** power
    return u[:, None] * kernel * v


MODULES: dict[str, dict[str, Any]] = {
    "main_swav": {"distributed_sinkhorn": lambda scores: balanced(scores / 0.05, 3)},
    "dinov2.loss": {"DINOLoss": DinoHead},
    "dinov3.loss": {"DINOLoss": DinoHead},
    "model": {"sinkhorn_knopp": lambda x, n_iterations: balanced(x, n_iterations)},
    "lightly.loss": {"SwaVLoss": swav_of_lists, "NTXentLoss": ntxent},
    "solo.losses.simclr": {"simclr_loss_func": simclr},
    "solo.losses.swav": {"swav_loss_func": lambda preds, targets, temperature: every_pair(targets, preds, temperature)},
    "solo.utils.sinkhorn_knopp": {
        "SinkhornKnopp": lambda num_iters, epsilon, world_size: lambda s: balanced(s.detach() / epsilon, num_iters)
    },
    "open_clip.loss": {"ClipLoss": lambda: clip},
    "losses": {"SupConLoss": supcon},
    "IID_losses": {"IID_loss": iid},
    "models.layers": {"sinkhorn_algorithm": of_rows_first},
    "megatron.core.transformer.moe.moe_utils": {"sinkhorn": router},
    "models.superglue": {"log_optimal_transport": with_dustbins},
    "ot": {
        "sinkhorn": lambda a, b, cost, reg, **_: scaled(a, b, cost, reg),
        "unbalanced": types.SimpleNamespace(
            sinkhorn_unbalanced=lambda a, b, cost, reg, reg_m, **_: scaled(a, b, cost, reg, reg_m / (reg_m + reg))
        ),
    },
}


def modules() -> dict[str, types.ModuleType]:
    """By the names of imports, with the packages around them."""
    made: dict[str, types.ModuleType] = {}
    for path, members in MODULES.items():
        parts = path.split(".")
        for depth in range(1, len(parts) + 1):
            made.setdefault(".".join(parts[:depth]), types.ModuleType(".".join(parts[:depth])))
        vars(made[path]).update(members)
    return made
