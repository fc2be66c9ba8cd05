from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from imc.config import Config
from imc.data import Images
from imc.methods import build_model, imc_swav
from imc.methods.imc_swav import ImcSwav
from imc.methods.method import Method
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
