"""What the kernels are compared with, beside the eager specification.

``released_*`` restates the structure of the authors' code, without its logging: a loop over pairs of views, each of
which computes its softmaxes, marginals and guard again; in CRLC a loop over sub-heads, each with its N x N critic; in
TEMI two loops over heads, the first for the weights. The losses of an IMC-SwAV step and their gradients are 2,310
operator calls that launch a kernel (``tests/benchmarks/test_rivals.py`` counts them); the authors' own were counted at
2,307.

``batched_*`` is the best form we know in PyTorch: all pairs at once, the joint entropies as one matrix product. It is
written for speed, with every shortcut that is exact, and is what ``torch.compile`` is given.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

EPSILON, ITERATIONS, TEMPERATURE, ENTROPY_WEIGHT, LOGIT_LIMIT = 0.05, 3, 0.1, 4.0, 5.0
SMOOTHING, HEAD_ENTROPY_WEIGHT, HEAD_LOGIT_LIMIT = 0.01, 2.0, 25.0  # CRLC
TRANSPORT_ITERATIONS = 10
BETA = 0.6  # TEMI, at the same temperature

Form = Callable[..., Tensor]


def without_infinities(x: Tensor) -> Tensor:
    """The authors' repair of overflow, at every Sinkhorn iteration; on a GPU its question waits for the device."""
    infinite = x.isinf()
    if infinite.sum() > 0:
        x = x.masked_fill(infinite, float(x[~infinite].max()))
    return x


@torch.no_grad()
def released_sinkhorn(scores: Tensor) -> Tensor:
    """One view [B, K]: the whole matrix is rescaled at every half iteration."""
    q = without_infinities(torch.exp(scores / EPSILON).T)
    q /= q.sum()
    prototypes = torch.ones(len(q), device=q.device) / len(q)
    samples = torch.ones(q.shape[1], device=q.device) / q.shape[1]
    for _ in range(ITERATIONS):
        q *= without_infinities(prototypes / q.sum(dim=1))[:, None]
        q *= (samples / q.sum(dim=0))[None]
    return (q / q.sum(dim=0, keepdim=True)).T


def released_cross_entropy(scores: Tensor, assignments: Tensor) -> Tensor:
    """One pair of views, [B, K] each: the logarithm of a clamped softmax."""
    log_p = torch.softmax(scores / TEMPERATURE, dim=-1).clamp(1e-17, 1).log()
    return -(assignments * log_p).sum(dim=-1).mean()


def released_pair(logits: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """H(Y|U) - b H(Y) of one pair of views, both softmaxes and the guard computed again for each."""
    guard = 0.01 * torch.relu(logits.abs() - LOGIT_LIMIT).sum(dim=-1).mean()
    y, u = torch.softmax(logits, dim=-1), torch.softmax(scores / TEMPERATURE, dim=-1)
    joint = y.T @ u
    joint /= joint.sum()
    p_y, p_u = joint.sum(dim=1, keepdim=True), joint.sum(dim=0, keepdim=True)
    conditional = (joint * (p_u.log() - joint.log())).sum()
    return conditional + ENTROPY_WEIGHT * (joint * p_y.log()).sum(), guard


def released_swapped_prediction(scores: Tensor, assignments: Tensor) -> Tensor:
    """Scores [V, B, K] against assignments [2, B, K], a loop over pairs."""
    views = scores.unbind()
    pairs = [released_cross_entropy(s, q) for a, q in enumerate(assignments) for v, s in enumerate(views) if v != a]
    return torch.stack(pairs).sum() / len(pairs)


def released_mutual_information(logits: Tensor, scores: Tensor) -> Tensor:
    """Logits [V, B, C] and scores [V, B, K], a loop over the V x V pairs, with the guard."""
    with torch.no_grad():  # the bank of STL-10, through which the other data sets' scores pass too
        bank = torch.cat([torch.cat([s[:, None] for s in scores], dim=1)]).unbind(1)
    pairs = [released_pair(y, u) for y in logits.unbind() for u in bank]
    information, guards = zip(*pairs, strict=True)
    return torch.stack(information).mean() + torch.stack(guards).mean()


def released_losses(scores: Tensor, logits: Tensor) -> Tensor:
    """All losses of one IMC-SwAV step: scores [V, B, K], logits [V, B, C]."""
    assignments = torch.stack([released_sinkhorn(s) for s in scores.detach()[:2]])
    return released_swapped_prediction(scores, assignments) + released_mutual_information(logits, scores.detach())


def released_prototype_scores(embeddings: Tensor, prototypes: Tensor) -> Tensor:
    """Embeddings [V, B, D], a view at a time, against prototypes [K, D] normalised beforehand."""
    unit = normalize(prototypes, dim=1)
    return torch.stack([normalize(z, dim=1) @ unit.T for z in embeddings])


def _in_pairs(matrix: Tensor) -> Tensor:
    """The entries of [N, N] at (i, i +- N/2), [N]."""
    half = len(matrix) // 2
    return torch.cat([matrix.diagonal(half), matrix.diagonal(-half)])


def released_info_nce(embeddings: Tensor) -> Tensor:
    """Embeddings [2, B, D]: the N x N matrix, shifted by each row's maximum, masked by a product."""
    z = torch.cat(embeddings.unbind())
    similarities = z @ z.T / TEMPERATURE
    shifted = similarities - similarities.amax(dim=1, keepdim=True).detach()
    others = ~torch.eye(len(z), dtype=torch.bool, device=z.device)
    return ((shifted.exp() * others).sum(dim=1).log() - _in_pairs(shifted)).mean()


def released_head(logits: Tensor) -> Tensor:
    """CRLC's cluster loss of one sub-head [2, B, C]: the N x N critic, its positives and negatives picked apart."""
    p = [torch.softmax(view, dim=-1) for view in logits.unbind()]
    q = torch.cat([(1 - SMOOTHING) * view + SMOOTHING / view.shape[1] for view in p])
    critic = (q @ q.T).log()
    own = torch.arange(len(q), device=q.device)
    negative = torch.ones_like(critic, dtype=torch.bool)
    negative[own, own] = negative[own, own.roll(len(q) // 2)] = False
    candidates = torch.cat([_in_pairs(critic)[:, None], critic[negative].reshape(len(q), -1)], dim=1)
    contrast = torch.nn.functional.cross_entropy(candidates, torch.zeros_like(own))
    means = [view.mean(dim=0) for view in p]
    h = -0.5 * torch.stack([(mean * mean.log()).sum() for mean in means]).sum()
    return contrast - HEAD_ENTROPY_WEIGHT * h + 0.01 * torch.stack([_guard(view) for view in logits]).sum() / 2


def _guard(logits: Tensor) -> Tensor:
    """One whose gradient, not whose value, is that of the loss: the excess multiplies the logits as a constant."""
    zero = logits.new_zeros(())
    below = torch.minimum(logits.detach() + HEAD_LOGIT_LIMIT, zero)
    above = torch.maximum(logits.detach() - HEAD_LOGIT_LIMIT, zero)
    return (logits * below).sum(dim=1).mean() + (logits * above).sum(dim=1).mean()


def released_log_dot_product(logits: Tensor) -> Tensor:
    """Logits [H, 2, B, C] -> [H], a loop over sub-heads."""
    return torch.stack([released_head(head) for head in logits])


def released_self_distillation(students: Tensor, teachers: Tensor, prior: Tensor) -> Tensor:
    """Logits [H, 2, B, C] and a prior [H, C] -> [H]: the teachers' softmax is taken for the weights and again."""
    with torch.no_grad():
        agreements = [
            (t[0] * t[1]).sum(dim=-1) for t in (torch.softmax(head / TEMPERATURE, dim=-1) for head in teachers)
        ]
        weights = sum(agreements) / len(agreements)
    losses = []
    for student, teacher, mass in zip(students, teachers, prior, strict=True):
        s = torch.softmax(student / TEMPERATURE, dim=-1)
        with torch.no_grad():
            t = torch.softmax(teacher / TEMPERATURE, dim=-1)
        pairs = [-(weights * ((s[v] * t[w]) ** BETA / mass).sum(dim=-1).log()).mean() for w, v in ((0, 1), (1, 0))]
        losses.append((pairs[0] + pairs[1]) / 2)
    return torch.stack(losses)


def batched_sinkhorn(scores: Tensor) -> Tensor:
    """All views [V, B, K]: scaling vectors only, each half iteration one matrix-vector product."""
    e = torch.exp((scores - scores.amax(dim=(-2, -1), keepdim=True)) / EPSILON)
    batch, prototypes = e.shape[-2:]
    u = torch.ones_like(e[..., :1])
    v = torch.empty_like(e[..., :1, :])
    for _ in range(ITERATIONS):
        v = 1 / (prototypes * (u.transpose(-1, -2) @ e))
        u = 1 / (batch * (e @ v.transpose(-1, -2)))
    return e * (u * batch) * v


def _swapped(log_p: Tensor, q: Tensor) -> Tensor:
    """Cross-entropy of q [2, B, K] against log_p [V, B, K] of the other views; the sum over pairs is split."""
    views, batch, _ = log_p.shape
    same = (q * log_p[:2]).sum()
    return (same - (q.sum(dim=0) * log_p.sum(dim=0)).sum()) / (2 * (views - 1) * batch)


def _information(u: Tensor, logits: Tensor) -> Tensor:
    """H(Y|U) - b H(Y) over all pairs of views, with the guard, from probabilities u [V, B, K] and logits [V, B, C]."""
    (views, batch, prototypes), clusters = u.shape, logits.shape[-1]
    y = torch.softmax(logits, dim=-1)
    flat_y = y.transpose(0, 1).reshape(batch, views * clusters)
    joint = flat_y.T @ u.transpose(0, 1).reshape(batch, views * prototypes) / batch
    tiny = torch.finfo(joint.dtype).tiny
    p_y, p_u = y.mean(dim=1), u.mean(dim=1)
    h_joint = -(joint * joint.clamp_min(tiny).log()).sum() / views**2
    h_u = -(p_u * p_u.clamp_min(tiny).log()).sum() / views
    h_y = -(p_y * p_y.clamp_min(tiny).log()).sum() / views
    guard = 0.01 * torch.relu(logits.abs() - LOGIT_LIMIT).sum() / (views * batch)
    return h_joint - h_u - ENTROPY_WEIGHT * h_y + guard


def batched_swapped_prediction(scores: Tensor, assignments: Tensor) -> Tensor:
    """Scores [V, B, K] against assignments [2, B, K]."""
    return _swapped(torch.log_softmax(scores / TEMPERATURE, dim=-1), assignments)


def batched_mutual_information(logits: Tensor, scores: Tensor) -> Tensor:
    """Logits [V, B, C] and scores [V, B, K]."""
    return _information(torch.softmax(scores / TEMPERATURE, dim=-1), logits)


def batched_losses(scores: Tensor, logits: Tensor) -> Tensor:
    """All losses of one IMC-SwAV step; the log-probabilities are shared by both terms."""
    log_p = torch.log_softmax(scores / TEMPERATURE, dim=-1)
    return _swapped(log_p, batched_sinkhorn(scores[:2].detach())) + _information(log_p.detach().exp(), logits)


def batched_log_dot_product(logits: Tensor) -> Tensor:
    """CRLC's cluster loss [H] of logits [H, 2, B, C] with entropy term and guard, by the linear form."""
    p = torch.softmax(logits, dim=-1)
    q = (1 - SMOOTHING) * p + SMOOTHING / logits.shape[-1]
    rest = q.sum(dim=(1, 2), keepdim=True) - q
    contrast = (q * rest).sum(dim=-1).log().mean(dim=(1, 2)) - (q[:, 0] * q[:, 1]).sum(dim=-1).log().mean(dim=1)
    return contrast + _unpaired(p, logits)


def _unpaired(p: Tensor, logits: Tensor) -> Tensor:
    """What CRLC's cluster loss has beside the contrast of pairs, [H]: the entropy term and the guard."""
    mean = p.mean(dim=2)
    h = -(mean * mean.clamp_min(torch.finfo(mean.dtype).tiny).log()).sum(dim=-1).mean(dim=1)
    guard = torch.relu(logits.abs() - HEAD_LOGIT_LIMIT).square().sum(dim=(1, 3)).mean(dim=1) * (0.01 / 4)
    return guard - HEAD_ENTROPY_WEIGHT * h


def batched_self_distillation(students: Tensor, teachers: Tensor, prior: Tensor) -> Tensor:
    """All heads at once, by logarithms instead of powers."""
    log_s, log_t = (torch.log_softmax(x / TEMPERATURE, dim=-1) for x in (students, teachers))
    weights = (log_t[:, 0] + log_t[:, 1]).exp().sum(dim=-1).mean(dim=0)
    joint = BETA * (log_s + log_t.flip(1)) - prior.log()[:, None, None]
    return -(weights * torch.logsumexp(joint, dim=-1)).mean(dim=(1, 2))


def batched_info_nce(embeddings: Tensor) -> Tensor:
    """Embeddings [2, B, D]: the N x N form that contrastive codes use."""
    z = embeddings.flatten(0, 1)
    similarities = z @ z.T / TEMPERATURE
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    pairs = torch.arange(len(z), device=z.device).roll(len(z) // 2)
    wide = similarities.to(torch.promote_types(similarities.dtype, torch.float32))
    return torch.nn.functional.cross_entropy(wide.masked_fill(itself, -torch.inf), pairs)


def batched_prototype_scores(embeddings: Tensor, prototypes: Tensor) -> Tensor:
    """Embeddings [..., D] against prototypes [K, D]. Norms applied to the product instead cost more: it is larger."""
    return normalize(embeddings, dim=-1) @ normalize(prototypes, dim=-1).T


def released_batch_norm(maps: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Maps of two views, [2 B, C, H, W], each of which passes the layer and its ReLU by itself."""
    passes = [torch.nn.functional.batch_norm(view, None, None, weight, bias, training=True) for view in maps.chunk(2)]
    return torch.cat([torch.relu(view) for view in passes])


def batched_batch_norm(maps: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The same with the views along a dimension of their own."""
    views = maps.unflatten(0, (2, -1))
    variance, mean = torch.var_mean(views, dim=(1, 3, 4), correction=0, keepdim=True)
    factor = (variance + 1e-5).rsqrt() * weight[:, None, None]
    return torch.relu((views - mean) * factor + bias[:, None, None]).flatten(0, 1)


def scaled_transport(scores: Tensor) -> Tensor:
    """Scores [..., B, K] to a plan of equal masses: POT's plain solver, two products with exp(scores / epsilon)."""
    kernel = (scores / EPSILON).exp()
    (batch, prototypes), u = scores.shape[-2:], torch.ones_like(scores[..., :1])
    for _ in range(TRANSPORT_ITERATIONS):
        v = 1 / (prototypes * (kernel.mT @ u))
        u = 1 / (batch * (kernel @ v))
    return u * kernel * v.mT


def log_iteration(x: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """One of scalings by logarithms, u [..., B, 1] and v [..., 1, K], of scores over epsilon."""
    v = -math.log(x.shape[-1]) - (x + u).logsumexp(dim=-2, keepdim=True)
    return -math.log(x.shape[-2]) - (x + v).logsumexp(dim=-1, keepdim=True), v


def batched_transport(scores: Tensor) -> Tensor:
    """The same by logarithms, for any epsilon."""
    x = scores / EPSILON
    u, v = torch.zeros_like(x[..., :1]), torch.zeros_like(x[..., :1, :])
    for _ in range(TRANSPORT_ITERATIONS):
        u, v = log_iteration(x, u, v)
    return (x + u + v).exp()


def quadratic_log_dot_product(logits: Tensor) -> Tensor:
    """The N x N form of CRLC's cluster loss [H], batched over the sub-heads of logits [H, 2, B, C]."""
    p = torch.softmax(logits, dim=-1)
    q = ((1 - SMOOTHING) * p + SMOOTHING / logits.shape[-1]).flatten(1, 2)
    dots, rows = q @ q.transpose(1, 2), torch.arange(q.shape[1], device=q.device)
    contrast = (dots.sum(dim=-1) - dots[:, rows, rows]).log() - dots[:, rows, rows.roll(len(rows) // 2)].log()
    return contrast.mean(dim=-1) + _unpaired(p, logits)


def batched_linear_swapped_prediction(embeddings: Tensor, prototypes: Tensor) -> Tensor:
    """Embeddings [V, B, D] and prototypes [K, D]: the three steps, on a matrix of scores."""
    scores = batched_prototype_scores(embeddings, prototypes)
    return batched_swapped_prediction(scores, batched_sinkhorn(scores[:2].detach()))


# Of each operation at the options of the papers' steps (OPTIONS): its forms by name. "batched" is compiled, too.
RIVALS: dict[str, dict[str, Form]] = {
    "sinkhorn": {
        "released": lambda scores: torch.stack([released_sinkhorn(view) for view in scores]),
        "batched": batched_sinkhorn,
    },
    "transport_plan": {"released": scaled_transport, "batched": batched_transport},
    "prototype_scores": {"released": released_prototype_scores, "batched": batched_prototype_scores},
    "per_view_batch_norm": {"released": released_batch_norm, "batched": batched_batch_norm},
    "swapped_prediction_loss": {"released": released_swapped_prediction, "batched": batched_swapped_prediction},
    "linear_swapped_prediction_loss": {"batched": batched_linear_swapped_prediction},
    "mutual_information_loss": {"released": released_mutual_information, "batched": batched_mutual_information},
    "log_dot_product_loss": {
        "released": released_log_dot_product,
        "N x N": quadratic_log_dot_product,
        "batched": batched_log_dot_product,
    },
    "self_distillation_loss": {"released": released_self_distillation, "batched": batched_self_distillation},
    "info_nce_loss": {"released": released_info_nce, "batched": batched_info_nce},
}
OPTIONS: dict[str, dict[str, Any]] = {
    "transport_plan": {"iterations": TRANSPORT_ITERATIONS},
    "per_view_batch_norm": {"views": 2, "relu": True},
    "mutual_information_loss": {"entropy_weight": ENTROPY_WEIGHT, "logit_limit": LOGIT_LIMIT},
    "log_dot_product_loss": {"entropy_weight": HEAD_ENTROPY_WEIGHT, "logit_limit": HEAD_LOGIT_LIMIT},
}
