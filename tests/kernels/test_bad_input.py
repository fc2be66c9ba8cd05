"""A user's mistake is one sentence that names the operation, what was wrong and what is accepted."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch

import imc_kernels as k
from imc_kernels import backends

S = torch.rand(2, 3, 4)
MISTAKES: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "rank": (lambda: k.sinkhorn(torch.rand(3)), ValueError, r"sinkhorn: scores must have the shape \[..., B, K\]"),
    "list": (lambda: k.sinkhorn([[1.0]]), TypeError, r"sinkhorn: scores must be a torch.Tensor .* got list"),  # type: ignore[arg-type]
    "integers": (lambda: k.sinkhorn(torch.ones(2, 2).long()), TypeError, r"float32, bfloat16, .* got torch.int64"),
    "empty batch": (
        lambda: k.sinkhorn(torch.rand(2, 0, 4)),
        ValueError,
        r"scores .* is empty: its shape is \[2, 0, 4\]",
    ),
    "epsilon": (lambda: k.sinkhorn(S, epsilon=0), ValueError, r"epsilon must be a finite number above 0, got 0"),
    "epsilon nan": (lambda: k.sinkhorn(S, epsilon=float("nan")), ValueError, r"epsilon must be a finite number"),
    "iterations": (
        lambda: k.sinkhorn(S, iterations=0),
        ValueError,
        r"iterations must be an integer from 1 to 1048576, got 0",
    ),
    "marginals": (
        lambda: k.sinkhorn(S, marginals=torch.ones(5)),
        ValueError,
        r"marginals \[K\] and scores \[..., B, K\] must agree in K, got \[5\] and \[2, 3, 4\]",
    ),
    "marginal of zero": (
        lambda: k.sinkhorn(S, marginals=torch.tensor([1.0, 0, 1, 1])),
        ValueError,
        r"marginals must all be above 0, got a smallest value of 0",
    ),
    "queue": (
        lambda: k.sinkhorn(S, queue=torch.rand(3, 3, 4)),
        ValueError,
        r"queue \[..., Q, K\] must match scores .* got \[3, 3, 4\] for \[2, 3, 4\]",
    ),
    "order": (
        lambda: k.transport_plan(S, order="both"),
        ValueError,
        r'order must be "columns" or "rows", got \'both\'',
    ),
    "masses by dimension": (
        lambda: k.transport_plan(S, row_marginals=torch.ones(2, 4)),
        ValueError,
        r"row_marginals must be \[B\] or \[..., B\] of scores \[..., B, K\], got \[2, 4\] for \[2, 3, 4\]",
    ),
    "masses that are constants": (
        lambda: k.transport_plan(S, column_marginals=torch.ones(4, requires_grad=True)),
        ValueError,
        r"column_marginals are constants; pass column_marginals.detach\(\)",
    ),
    "negative mass": (
        lambda: k.transport_plan(S, row_marginals=torch.tensor([1.0, -1, 1])),
        ValueError,
        r"row_marginals must all be finite and at least 0, got a smallest value of -1 and a largest of 1",
    ),
    "unequal sums": (
        lambda: k.transport_plan(S, row_marginals=torch.ones(3), column_marginals=torch.ones(4)),
        ValueError,
        r"row_marginals and column_marginals must have the same sum, got 3 and 4; divide each .* or give a reach",
    ),
    "mask of numbers": (
        lambda: k.transport_plan(S, mask=torch.ones(3, 4)),
        TypeError,
        r"mask must be of torch.bool, True where an entry takes part, got torch.float32",
    ),
    "mask of lengths": (
        lambda: k.transport_plan(S, mask=torch.ones(2, 3, dtype=torch.bool)),
        ValueError,
        r"mask must be \[B, K\] or \[..., B, K\], as the scores, got \[2, 3\] for \[2, 3, 4\]",
    ),
    "dustbins": (
        lambda: k.transport_plan(S, dustbin=torch.ones(2)),
        TypeError,
        r"dustbin must be a finite number or a floating tensor \[\], got a tensor \[2\] of torch.float32",
    ),
    "dustbin nan": (
        lambda: k.transport_plan(S, dustbin=float("nan")),
        ValueError,
        r"dustbin must be a finite number, got nan",
    ),
    "a backend without plans": (
        lambda: k.transport_plan(S, backend="triton"),
        ValueError,
        r"backend 'triton' cannot run transport_plan: it has no transport_plan; cpu, eager have",
    ),
    "negatives": (lambda: k.info_nce_loss(S, negatives="none"), ValueError, r'negatives must be "all" or "other"'),
    "labels by number": (
        lambda: k.info_nce_loss(S, labels=torch.ones(3)),
        ValueError,
        r"labels must be 3 integers, got \[3\] of torch.float32",
    ),
    "bank": (
        lambda: k.info_nce_loss(S, bank=torch.rand(5, 3)),
        ValueError,
        r"a bank \[M, D\] goes with embeddings \[2, B, D\] of the same D alone, got a bank of \[5, 3\]",
    ),
    "bank and labels": (
        lambda: k.info_nce_loss(S, bank=torch.rand(5, 4), labels=torch.arange(3)),
        ValueError,
        r"a bank .* of the same D alone, got a bank with labels",
    ),
    "a backend without banks": (
        lambda: k.info_nce_loss(S, bank=torch.rand(5, 4), backend="cpu"),
        ValueError,
        r"backend 'cpu' cannot run info_nce_loss with bank: it has no info_nce_loss with bank; eager have",
    ),
    "dimension": (
        lambda: k.prototype_scores(torch.rand(3, 4), torch.rand(5, 6)),
        ValueError,
        r"embeddings \[..., D\] and prototypes \[K, D\] must agree in D, got \[3, 4\] and \[5, 6\]",
    ),
    "devices differ": (
        lambda: k.prototype_scores(torch.rand(3, 4), torch.rand(5, 4, device="meta")),
        ValueError,
        r"embeddings is on cpu and prototypes on meta; move one",
    ),
    "one view": (
        lambda: k.swapped_prediction_loss(S[:1], S[:1]),
        ValueError,
        r"at least 2 views unless .* got \[1, 3, 4\]",
    ),
    "weights of scores": (
        lambda: k.swapped_prediction_loss(S, S, weights=torch.ones(3)),
        ValueError,
        r"weights must have the shape \[V, B\], got \[3\]",
    ),
    "targets": (
        lambda: k.swapped_prediction_loss(S, torch.rand(3, 3, 4)),
        ValueError,
        r"assignments \[A, B, K\] must match scores .* A <= V, got \[3, 3, 4\] for \[2, 3, 4\]",
    ),
    "targets with gradient": (
        lambda: k.swapped_prediction_loss(S, S.clone().requires_grad_()),
        ValueError,
        r"assignments are constants; pass assignments.detach\(\)",
    ),
    "batch": (
        lambda: k.mutual_information_loss(torch.rand(2, 5, 4), S),
        ValueError,
        r"must agree in V and B, got \[2, 5, 4\] and \[2, 3, 4\]",
    ),
    "weight": (
        lambda: k.mutual_information_loss(S, S, entropy_weight=float("inf")),
        ValueError,
        r"entropy_weight must be a finite number, got inf",
    ),
    "symmetric": (
        lambda: k.mutual_information_loss(torch.rand(2, 3, 5), S, symmetric=True),
        ValueError,
        r"symmetric=True takes scores with as many columns as logits, got \[2, 3, 4\] and \[2, 3, 5\]",
    ),
    "limit": (
        lambda: k.mutual_information_loss(S, S, logit_limit=-1),
        ValueError,
        r"logit_limit must be a finite number",
    ),
    "sub-heads": (
        lambda: k.log_dot_product_loss(S),
        ValueError,
        r"log_dot_product_loss: logits must have the shape \[H, 2, B, C\], got \[2, 3, 4\]",
    ),
    "three views": (
        lambda: k.log_dot_product_loss(torch.rand(1, 3, 4, 5)),
        ValueError,
        r"logits \[H, 2, B, C\] must hold 2 views, got \[1, 3, 4, 5\]",
    ),
    "smoothing": (
        lambda: k.log_dot_product_loss(S[None], smoothing=1),
        ValueError,
        r"smoothing must be a number of at least 0 and below 1, got 1",
    ),
    "smoothing nan": (
        lambda: k.log_dot_product_loss(S[None], smoothing=float("nan")),
        ValueError,
        r"smoothing must be a number of at least 0 and below 1, got nan",
    ),
    "weight of log-dot": (
        lambda: k.log_dot_product_loss(S[None], entropy_weight=float("nan")),
        ValueError,
        r"entropy_weight must be a finite number, got nan",
    ),
    "limit of log-dot": (
        lambda: k.log_dot_product_loss(S[None], logit_limit=0),
        ValueError,
        r"logit_limit must be a finite number above 0, got 0",
    ),
    "critic": (
        lambda: k.log_dot_product_loss(S[None], critic="cosine"),
        ValueError,
        r"critic must be log-dot, dot, negative-l2, negative-jsd, got 'cosine'",
    ),
    "critic of another backend": (
        lambda: k.log_dot_product_loss(S[None], critic="dot", backend="cpu"),
        ValueError,
        r"backend 'cpu' cannot run log_dot_product_loss with critic='dot': .*eager",
    ),
    "depth": (
        lambda: k.linear_swapped_prediction_loss(S, torch.rand(5, 6)),
        ValueError,
        r"embeddings and prototypes must agree in their last dimension, got \[2, 3, 4\] and \[5, 6\]",
    ),
    "one view of all pairs": (
        lambda: k.linear_swapped_prediction_loss(S[:1], S[0], assigned=1),
        ValueError,
        r'must hold at least the 1 assigned views, and 2 unless pairs="all", got \[1, 3, 4\]',
    ),
    "assigned views": (
        lambda: k.linear_swapped_prediction_loss(S, S[0], assigned=3),
        ValueError,
        r"embeddings \[V, B, D\] must hold at least the 3 assigned views, .* got \[2, 3, 4\]",
    ),
    "teacher of one tensor": (
        lambda: k.linear_swapped_prediction_loss(S, S[0], teacher=S),  # type: ignore[arg-type]
        TypeError,
        r"teacher must be its embeddings \[A, B, E\] and prototypes \[K, E\], two tensors, got Tensor",
    ),
    "teacher of three": (
        lambda: k.linear_swapped_prediction_loss(S, S[0], teacher=(S, S[0], S)),  # type: ignore[arg-type]
        TypeError,
        r"two tensors, got 3 of them",
    ),
    "teacher's views": (
        lambda: k.linear_swapped_prediction_loss(S, S[0], assigned=1, teacher=(S, S[0])),
        ValueError,
        r"must have A = assigned = 1, B = 3 and K = 3, got \[2, 3, 4\] and \[3, 4\]",
    ),
    "teacher's depth": (
        lambda: k.linear_swapped_prediction_loss(S, S[0], teacher=(S, torch.rand(3, 5))),
        ValueError,
        r"teacher's embeddings and prototypes must agree in their last dimension, got \[2, 3, 4\] and \[3, 5\]",
    ),
    "teacher with gradient": (
        lambda: k.linear_swapped_prediction_loss(S, S[0], teacher=(S, torch.rand(3, 4, requires_grad=True))),
        ValueError,
        r"teacher's prototypes are constants; pass them detached",
    ),
    "marginals and a center": (
        lambda: k.linear_swapped_prediction_loss(S, S[0], marginals=torch.ones(3), center=torch.ones(3)),
        ValueError,
        r"a center stands in for Sinkhorn-Knopp, which has the marginals; pass one of them",
    ),
    "marginal of none": (
        lambda: k.linear_swapped_prediction_loss(S, S[0], marginals=torch.tensor([1.0, -1, 1])),
        ValueError,
        r"marginals must all be above 0, got a smallest value of -1",
    ),
    "center's shape": (
        lambda: k.linear_swapped_prediction_loss(S, S[0], center=torch.ones(4)),
        ValueError,
        r"center \[K\] must have the shape \[3\], got \[4\]",
    ),
    "weights of predictions": (
        lambda: k.linear_swapped_prediction_loss(S, S[0], weights=torch.ones(2, 4)),
        ValueError,
        r"weights \[V, B\] must have the shape \[2, 3\], got \[2, 4\]",
    ),
    "weights with gradient": (
        lambda: k.linear_swapped_prediction_loss(S, S[0], weights=torch.ones(2, 3, requires_grad=True)),
        ValueError,
        r"weights must be constant; pass weights.detach\(\)",
    ),
    "teachers": (
        lambda: k.self_distillation_loss(S[None], S[None, :, :2]),
        ValueError,
        r"teachers \[H, 2, B, C\] must match students \[H, 2, B, C\], got \[1, 2, 2, 4\] for \[1, 2, 3, 4\]",
    ),
    "three views of students": (
        lambda: k.self_distillation_loss(torch.rand(1, 3, 4, 5), torch.rand(1, 3, 4, 5)),
        ValueError,
        r"students \[H, 2, B, C\] must hold 2 views, got \[1, 3, 4, 5\]",
    ),
    "teachers with gradient": (
        lambda: k.self_distillation_loss(S[None], S[None].clone().requires_grad_()),
        ValueError,
        r"self_distillation_loss: teachers are constants; pass teachers.detach\(\)",
    ),
    "prior's shape": (
        lambda: k.self_distillation_loss(S[None], S[None], prior=torch.ones(4)),
        ValueError,
        r"prior must have the shape \[H, C\], got \[4\]",
    ),
    "prior of other heads": (
        lambda: k.self_distillation_loss(S[None], S[None], prior=torch.ones(2, 4)),
        ValueError,
        r"prior \[H, C\] must match students \[H, 2, B, C\], got \[2, 4\] for \[1, 2, 3, 4\]",
    ),
    "prior with gradient": (
        lambda: k.self_distillation_loss(S[None], S[None], prior=torch.ones(1, 4, requires_grad=True)),
        ValueError,
        r"self_distillation_loss: prior is a constant; pass prior.detach\(\)",
    ),
    "weights of other pairs": (
        lambda: k.self_distillation_loss(S[None], S[None], weights=torch.ones(4)),
        ValueError,
        r"weights \[B\] must match students \[H, 2, B, C\], got \[4\] for \[1, 2, 3, 4\]",
    ),
    "weights' name": (
        lambda: k.self_distillation_loss(S[None], S[None], weights="mean"),
        ValueError,
        r"weights must be a tensor \[B\], \"agreement\" or None, got 'mean'",
    ),
    "weights as a number": (
        lambda: k.self_distillation_loss(S[None], S[None], weights=2.0),  # type: ignore[arg-type]
        TypeError,
        r"weights must be a torch.Tensor \[B\], got float",
    ),
    "embeddings' rank": (
        lambda: k.info_nce_loss(S[0]),
        ValueError,
        r"info_nce_loss: embeddings must have the shape \[V, B, D\], got \[3, 4\]",
    ),
    "one view of embeddings": (
        lambda: k.info_nce_loss(S[:1]),
        ValueError,
        r"embeddings \[V, B, D\] must hold at least 2 views, got \[1, 3, 4\]",
    ),
    "no embeddings": (lambda: k.info_nce_loss(S[:, :0]), ValueError, r"embeddings \[V, B, D\] is empty"),
    "temperature": (
        lambda: k.info_nce_loss(S, temperature=0),
        ValueError,
        r"temperature must be a finite number above 0, got 0",
    ),
    "unknown backend": (
        lambda: k.sinkhorn(S, backend="cpp"),
        ValueError,
        r"backend= names no backend: 'cpp'; known are .*cpu.*eager",
    ),
    "backend of another device": (
        lambda: k.sinkhorn(S, backend="cuda"),
        ValueError,
        r"backend 'cuda' cannot run sinkhorn: it serves cuda tensors, the input is on cpu",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_one_sentence(mistake: str) -> None:
    call, kind, pattern = MISTAKES[mistake]
    with pytest.raises(kind) as caught:
        call()
    message = str(caught.value)
    assert re.search(pattern, message), message
    assert "\n" not in message


def test_the_choice_of_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    assert backends.requested() is None
    monkeypatch.setenv("IMC_BACKEND", "eager")
    assert backends.requested() == "eager"
    backends.set_backend("cpu")
    try:
        assert backends.requested() == "cpu"
        with backends.backend("eager"):
            assert backends.requested() == "eager"
        assert backends.requested() == "cpu"
    finally:
        backends.set_backend(None)
    monkeypatch.setenv("IMC_BACKEND", "fast")
    with pytest.raises(ValueError, match="IMC_BACKEND names no backend: 'fast'"):
        k.sinkhorn(S)


def test_a_preferred_backend_leaves_what_it_has_not_to_others() -> None:
    """And says so, once an operation; a call with ``backend=`` and what it has a form of stay strict."""
    cpu, single = torch.device("cpu"), torch.float32
    told: list[tuple[str, str]] = []

    def choose(offered: tuple[str, ...], name: str | None = None) -> str:
        return backends.choose("some_loss", offered, cpu, single, name)

    with backends.backend("cuda", otherwise=lambda *words: told.append(words)):
        assert [choose(("eager",)), choose(("eager",))] == ["eager", "eager"]
        assert told == [("some_loss", "eager")]
        with pytest.raises(ValueError, match="backend 'cuda' cannot run some_loss: it has no some_loss"):
            choose(("eager",), "cuda")
        if backends.BACKENDS["cuda"].refusal("cpu", single) is not None:
            with pytest.raises(ValueError, match="backend 'cuda' cannot run some_loss: it serves cuda tensors"):
                choose(("cuda", "eager"))
        with (
            backends.backend("cuda"),
            pytest.raises(ValueError, match="backend 'cuda' cannot run some_loss: it has no some_loss"),
        ):
            choose(("eager",))
        assert choose(("eager",)) == "eager"
    assert told == [("some_loss", "eager")]
    assert choose(("eager",)) == "eager"


def test_describe_names_every_backend() -> None:
    text = backends.describe()
    for name in backends.BACKENDS:
        assert re.search(rf"^{name}\b.*(available|emulated on the CPU.*|not available: \w+)", text, re.MULTILINE)
