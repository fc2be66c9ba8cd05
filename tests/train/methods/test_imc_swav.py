from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from imc.config import Config
from imc.data import Images
from imc.methods import build_model, imc_swav
from imc.methods.imc_swav import ImcSwav
from imc.methods.method import Method, Step
from imc.train import plan
from imc_kernels import backends

CLUSTERS = 10


@pytest.fixture(autouse=True)
def eager():
    with backends.backend("eager"):
        yield


@pytest.fixture
def model(tiny: Config, digits: Images) -> Method:
    torch.manual_seed(0)
    return build_model(plan(tiny, digits))


@pytest.fixture
def crops() -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.rand(2, 16, 1, 10, 10), torch.rand(3, 16, 1, 7, 7)]


def nothing(*inputs: Tensor, **options: float) -> Tensor:
    return torch.zeros(())


def with_gradient(model: ImcSwav) -> set[str]:
    return {name.split(".")[0] for name, parameter in model.named_parameters() if parameter.grad is not None}


def test_swapped_prediction_does_not_train_the_classifier(
    model: ImcSwav, crops: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(imc_swav, "mutual_information_loss", nothing)
    model(crops).loss.backward()
    assert with_gradient(model) == {"encoder", "projection", "prototypes"}


def test_mutual_information_and_guard_train_the_classifier_only(
    model: ImcSwav, crops: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(imc_swav, "swapped_prediction_loss", nothing)
    model.logit_limit = 0.01  # the guard is active
    model(crops).loss.backward()
    assert with_gradient(model) == {"classifier"}


def test_uniform_predictions(model: ImcSwav, crops: list[Tensor], tiny: Config) -> None:
    with torch.no_grad():
        for parameter in (*model.projection[-1].parameters(), *model.classifier.layers[-1].parameters()):
            parameter.zero_()
    terms = model(crops).terms
    assert terms["swapped_prediction"].item() == pytest.approx(math.log(tiny.prototypes), rel=1e-6)
    assert terms["mutual_information"].item() == pytest.approx(-3 * math.log(CLUSTERS), rel=1e-6)


def test_step_returns_the_large_crops_and_terms_that_add_up(model: ImcSwav, crops: list[Tensor], tiny: Config) -> None:
    step = model(crops)
    assert step.scores.shape == (2, 16, tiny.prototypes)
    assert step.logits.shape == (2, 16, CLUSTERS)
    assert not any(tensor.requires_grad for tensor in (step.scores, step.logits, *step.terms.values()))
    torch.testing.assert_close(sum(step.terms.values()), step.loss.detach())


def test_prototypes_are_normalised_before_the_scores(model: ImcSwav, crops: list[Tensor]) -> None:
    with torch.no_grad():
        model.prototypes.weight.mul_(7)
    scores = model(crops).scores
    torch.testing.assert_close(model.prototypes.weight.norm(dim=1), torch.ones(len(model.prototypes.weight)))
    assert scores.abs().max() <= 1 + 1e-6


def test_batching_of_views_equals_one_pass_per_view(model: ImcSwav, crops: list[Tensor]) -> None:
    together = model.encoder(crops[1].flatten(0, 1), 3)
    separate = torch.cat([model.encoder(view) for view in crops[1]])
    torch.testing.assert_close(together, separate)


def test_known_values_of_the_specification(model: Method) -> None:
    scores = torch.tensor([[0.9, 0.1, -0.3, 0], [0.8, 0.2, 0.1, -0.5], [-0.2, 0.7, 0.3, 0.1]])
    assignments = model._assign(torch.zeros(1, 3, 2), scores.unsqueeze(0), frozenset())[0]
    expected = torch.tensor(
        [
            [0.47773201, 0.00005223, 0.00002375, 0.52219201],
            [0.47591851, 0.00284075, 0.52106624, 0.00017451],
            [0, 0.52394799, 0.2382218, 0.23783022],
        ]
    )
    torch.testing.assert_close(assignments, expected, rtol=1e-4, atol=1e-7)
    logits = torch.tensor([[1, 0], [0.5, -0.5], [-1, 2]])
    information = model._information(logits.unsqueeze(0), scores.unsqueeze(0), None)
    assert information.item() == pytest.approx(-2.31866604, rel=1e-6)


def banked(tiny: Config, digits: Images, **changes: object) -> Method:
    torch.manual_seed(0)
    return build_model(plan(dataclasses.replace(tiny, **changes), digits))


def step(model: Method, crops: list[Tensor], *labelled: int) -> Step:
    """One on crops of which these rows belong to the clustered split."""
    wanted = torch.zeros(crops[0].shape[1], dtype=torch.bool)
    wanted[list(labelled)] = True
    return model(crops, model.prepare(wanted))  # type: ignore[no-any-return]


def test_the_bank_trains_the_classifier_when_a_batch_of_labelled_rows_is_there(
    tiny: Config, digits: Images, crops: list[Tensor]
) -> None:
    model = banked(tiny, digits, bank=True, batch_size=4)
    assert "mutual_information" not in step(model, crops, 3, 5).terms
    assert "mutual_information" not in step(model, crops).terms
    made = step(model, crops, 1, 2, 9)  # the fifth row is one too many
    assert made.terms.keys() == {"swapped_prediction", "mutual_information"}
    made.loss.backward()
    assert "classifier" in with_gradient(model)
    assert "mutual_information" not in step(model, crops, 0, 1, 2).terms  # empty again after the flush
    model.begin_epoch(1)
    assert "mutual_information" not in step(model, crops, 0).terms  # and at each epoch


def test_a_bank_filled_at_once_is_the_step_on_those_rows(tiny: Config, digits: Images, crops: list[Tensor]) -> None:
    plain, model = banked(tiny, digits), banked(tiny, digits, bank=True, batch_size=16)
    expected = plain(crops).terms["mutual_information"]
    torch.testing.assert_close(step(model, crops, *range(16)).terms["mutual_information"], expected)


def test_waiting_for_the_bank_leaves_the_classifier_as_it_is(tiny: Config, digits: Images, crops: list[Tensor]) -> None:
    model = banked(tiny, digits, bank=True)
    before = {name: x.clone() for name, x in model.classifier.state_dict().items()}
    step(model, crops, 0, 1).loss.backward()
    assert "classifier" not in with_gradient(model)
    assert all(torch.equal(x, before[name]) for name, x in model.classifier.state_dict().items())


def test_the_queue_joins_once_it_is_full(tiny: Config, digits: Images, crops: list[Tensor]) -> None:
    plain, model = (banked(tiny, digits, queue=queue, queue_start_epoch=1) for queue in (0, 32))
    first = plain(crops).loss.detach()
    torch.testing.assert_close(step(model, crops).loss.detach(), first)  # epoch 0: the queue is not filled yet
    model.begin_epoch(1)
    for _ in range(2):  # 16 rows each
        assert not model.queue.full
        torch.testing.assert_close(
            step(model, crops).terms["swapped_prediction"], plain(crops).terms["swapped_prediction"]
        )
    assert model.queue.full
    assert model.queue.rows.shape == (2, 32, tiny.embedding_dim)
    # The same rows three times over: what is queued changes the share of a row, not its assignment.
    torch.testing.assert_close(
        step(model, crops).terms["swapped_prediction"], plain(crops).terms["swapped_prediction"], rtol=1e-3, atol=0
    )
    other = [size.flip(1) for size in crops]
    other[0] = other[0] ** 2
    difference = step(model, other).terms["swapped_prediction"] - plain(other).terms["swapped_prediction"]
    assert difference.abs() > 1e-5


@pytest.mark.parametrize(("bn", "views"), [("per-view", [2, 3]), ("per-size", [1, 1])])
def test_groups_of_batch_normalisation(bn: str, views: list[int], model: Method, crops: list[Tensor]) -> None:
    seen: list[int] = []
    model.per_size = bn == "per-size"
    model.encoder.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[1]))
    model(crops)
    assert seen == views
