"""Swapped prediction: known values, and the sum over pairs written out."""

import math

import pytest
import torch
from operations import all_backends

from imc_kernels import swapped_prediction_loss

BACKENDS = all_backends("swapped_prediction_loss", torch.float64)
SINGLE = all_backends("swapped_prediction_loss")  # those that serve float32


@pytest.mark.parametrize("backend", BACKENDS)
def test_uniform_predictions_give_log_k(backend: str) -> None:
    # The eager form's float32 sums depend on the library: 1.4e-6 off on AVX2. As the specification it runs in float64.
    dtype = torch.float64 if backend == "eager" else torch.float32
    scores, assignments = torch.zeros(6, 8, 1000, dtype=dtype), torch.full((2, 8, 1000), 1e-3, dtype=dtype)
    assert swapped_prediction_loss(scores, assignments, backend=backend).item() == pytest.approx(
        math.log(1000), rel=1e-6
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("views", "assigned"), [(2, 1), (2, 2), (3, 3), (6, 2), (5, 4)])
def test_is_the_mean_over_pairs(views: int, assigned: int, backend: str) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(views, 7, 13, generator=generator, dtype=torch.float64)
    targets = torch.rand(assigned, 7, 13, generator=generator, dtype=torch.float64)  # rows need not sum to 1
    pairs = [
        torch.nn.functional.cross_entropy(scores[v] / 0.2, targets[a])
        for a in range(assigned)
        for v in range(views)
        if v != a
    ]
    result = swapped_prediction_loss(scores, targets, temperature=0.2, backend=backend)
    torch.testing.assert_close(result, torch.stack(pairs).mean())


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "cuda"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    ("views", "assigned", "pairs"), [(1, 1, "all"), (3, 2, "all"), (4, 4, "all"), (3, 2, "others")]
)
def test_weights_and_all_pairs(views: int, assigned: int, pairs: str, weighted: bool, backend: str) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(views, 5, 13, generator=generator, dtype=torch.float64).requires_grad_()
    targets = torch.rand(assigned, 5, 13, generator=generator, dtype=torch.float64)
    weights = torch.rand(views, 5, generator=generator, dtype=torch.float64) if weighted else None
    terms = [
        (1 if weights is None else weights[v])
        * torch.nn.functional.cross_entropy(scores[v] / 0.2, targets[a], reduction="none")
        for a in range(assigned)
        for v in range(views)
        if v != a or pairs == "all"
    ]
    expected = torch.stack(terms).mean()
    result = swapped_prediction_loss(scores, targets, temperature=0.2, weights=weights, pairs=pairs, backend=backend)
    torch.testing.assert_close(result, expected)
    torch.testing.assert_close(*(torch.autograd.grad(loss, scores)[0] for loss in (result, expected)))


def test_the_backend_without_weights_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    scores, said = (
        torch.rand(2, 3, 4),
        r"backend 'cuda' cannot run swapped_prediction_loss with weights or all pairs: it ",
    )
    for options in ({"weights": torch.ones(2, 3)}, {"pairs": "all"}):
        with pytest.raises(ValueError, match=said):
            swapped_prediction_loss(scores, scores, **options, backend="cuda")


@pytest.mark.parametrize("backend", BACKENDS)
def test_adding_a_constant_to_a_row_changes_nothing(backend: str) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(4, 9, 21, generator=generator, dtype=torch.float64)
    targets = torch.softmax(torch.randn(2, 9, 21, generator=generator, dtype=torch.float64), dim=-1)
    shifted = scores + 100 * torch.randn(4, 9, 1, generator=generator, dtype=torch.float64)
    result = swapped_prediction_loss(scores, targets, backend=backend)
    torch.testing.assert_close(swapped_prediction_loss(shifted, targets, backend=backend), result)


@pytest.mark.parametrize("backend", SINGLE)
def test_extreme_scores_stay_finite(backend: str) -> None:
    scores = torch.tensor([[[1e4, -1e4, 0.0]], [[-1e4, 1e4, 0.0]]]).requires_grad_()
    loss = swapped_prediction_loss(scores, torch.tensor([[[0.0, 1.0, 0.0]]]), backend=backend)
    loss.backward()
    assert loss.item() == 0
    assert scores.grad is not None
    assert scores.grad.isfinite().all()
