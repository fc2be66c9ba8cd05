from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from train.conftest import crlc_config

from imc.config import Config
from imc.data import Images
from imc.errors import UserError
from imc.methods import build_model, crlc
from imc.methods.crlc import ClusterHeads, Crlc
from imc.methods.method import Method
from imc.models.batch_norm import PerViewBatchNorm
from imc.train import plan
from imc_kernels import backends

HEADS = 3
LOGITS = torch.tensor(
    [
        [[2.0, 0, -1], [0, 1, 0], [-1, 0, 3], [1, 1, 0]],
        [[1.0, 0, 0], [0, 2, -1], [0, 0, 1], [0, 2, 1]],
    ]
)


@pytest.fixture(autouse=True)
def eager():
    with backends.backend("eager"):
        yield


@pytest.fixture
def model(tiny: Config, digits: Images) -> Method:
    torch.manual_seed(0)
    config = crlc_config(tiny, sub_heads=HEADS)
    return build_model(plan(config, digits))


@pytest.fixture
def crops() -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.rand(2, 16, 1, 10, 10)]


class Identity(nn.Module):
    """The images' three pixels as features."""

    feature_dim = 3

    def forward(self, images: Tensor, views: int = 1) -> Tensor:
        return images.flatten(1)


def identity_model(heads: int = 2) -> Crlc:
    """A model whose embeddings and logits, of every head, are the pixels of its images [V, B, 1, 1, 3]."""
    model = Crlc(
        Identity(),
        projection_hidden=6,
        embedding_dim=3,
        clusters=3,
        sub_heads=heads,
        head_hidden=6,
        temperature=0.1,
        contrast_weight=10.0,
        smoothing=0.01,
        entropy_weight=2.0,
        logit_limit=25.0,
    )
    # relu(x) - relu(-x) = x
    there, back = torch.cat([torch.eye(3), -torch.eye(3)]), torch.cat([torch.eye(3), -torch.eye(3)], dim=1)
    with torch.no_grad():
        model.projection[0].weight.copy_(there)
        model.projection[2].weight.copy_(back)
        model.heads.hidden.weight.copy_(there.repeat(heads, 1))
        model.heads.weight.copy_(back.T.expand(heads, 6, 3))
    return model


def with_gradient(model: Method) -> set[str]:
    return {
        name.split(".")[0]
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and parameter.grad.abs().max() > 0
    }


def nothing(inputs: Tensor, **options: float) -> Tensor:
    return torch.zeros(HEADS)


def test_golden_values() -> None:
    terms = identity_model()([LOGITS[:, :, None, None]]).terms
    assert terms["instance_contrast"].item() == pytest.approx(10 * 0.73082376, rel=1e-6)
    assert terms["cluster_contrast"].item() == pytest.approx(1.49302550 - 2 * 1.07181630, rel=1e-6)


def test_logits_beyond_the_limit_are_penalised() -> None:
    model = identity_model(heads=1)
    images = LOGITS[:, :, None, None].clone()
    before = model([images]).terms["cluster_contrast"]
    model.logit_limit = 2.5
    guard = model([images]).terms["cluster_contrast"] - before
    assert guard.item() == pytest.approx(0.01 / 2 * 0.5**2 / 2 / 4, rel=1e-3)


def test_first_loss_of_a_batch_of_512_that_tells_nothing_apart() -> None:
    model = identity_model(heads=10)
    model.heads = ClusterHeads(3, 6, 10, 10)
    with torch.no_grad():
        model.heads.weight.zero_()
    loss = model([torch.ones(2, 512, 1, 1, 3)]).loss.item()
    assert loss == pytest.approx(10 * math.log(1023) + math.log(1023) - 2 * math.log(10), rel=1e-6)
    assert loss == pytest.approx(71.6, abs=0.1)


@pytest.mark.parametrize(("silenced", "heads"), [("info_nce_loss", "heads"), ("log_dot_product_loss", "projection")])
def test_each_term_trains_its_head_and_the_encoder(
    model: Method, crops: list[Tensor], monkeypatch: pytest.MonkeyPatch, silenced: str, heads: str
) -> None:
    monkeypatch.setattr(crlc, silenced, nothing)
    model(crops).loss.sum().backward()
    assert with_gradient(model) == {"encoder", heads}


def test_heads_equal_perceptrons_that_stand_alone() -> None:
    heads = ClusterHeads(5, 4, 3, HEADS)
    nn.init.normal_(heads.hidden.bias)
    nn.init.normal_(heads.bias)
    features = torch.randn(7, 5)
    logits = heads(features)
    for head, (weight, bias) in enumerate(zip(heads.hidden.weight.split(4), heads.hidden.bias.split(4), strict=True)):
        hidden = functional.linear(features, weight, bias).relu()
        alone = hidden @ heads.weight[head] + heads.bias[3 * head : 3 * head + 3]
        torch.testing.assert_close(logits[head], alone)


def test_weights_are_drawn_within_the_bounds_of_each_layer_and_biases_are_zero() -> None:
    heads = ClusterHeads(24, 150, 10, 8)
    for weight, fan_in in ((heads.hidden.weight, 24), (heads.weight, 150)):
        bound = math.sqrt(6 / fan_in)
        assert 0.99 * bound < weight.abs().max() <= bound
    assert not any(bias.any() for bias in (heads.hidden.bias, heads.bias))


def test_weight_decay_sees_matrices_in_the_weights_alone(model: Method) -> None:
    dims = {name: parameter.dim() for name, parameter in model.heads.named_parameters()}
    assert dims == {"weight": 3, "bias": 1, "hidden.weight": 2, "hidden.bias": 1}


def permute_heads(model: Crlc, order: list[int]) -> None:
    heads = model.heads
    with torch.no_grad():
        for parameter in heads.parameters():
            blocks = parameter.reshape(len(order), -1)
            parameter.copy_(blocks[order].view_as(parameter))


def test_the_order_of_the_heads_changes_neither_loss_nor_clusters(model: Crlc, crops: list[Tensor]) -> None:
    for module in model.encoder.modules():
        if isinstance(module, PerViewBatchNorm):
            module.momentum = 0.0  # both steps leave the running statistics alone
    step = model(crops)
    clusters = model.eval().predict(crops[0][0])
    order = model.head_losses.argsort(descending=True).tolist()
    permute_heads(model, order)
    model.begin_epoch(1)
    permuted = model.train()(crops)
    torch.testing.assert_close(step.loss, permuted.loss)
    torch.testing.assert_close(model.head_losses, model.head_losses.sort(descending=True).values)
    torch.testing.assert_close(clusters, model.eval().predict(crops[0][0]))


def test_the_head_of_the_lowest_mean_loss_of_the_epoch_predicts(model: Crlc, crops: list[Tensor]) -> None:
    model.begin_epoch(0)
    for factor in (1, 2, 3):
        model([factor * crops[0]])
    loss = model.head_losses
    assert loss.shape == (HEADS,)
    assert loss.unique().numel() == HEADS
    assert model.best_head == int(loss.argmin())
    model.eval()
    images = crops[0][0]
    logits, by_head = model.classify(model.features(images))
    torch.testing.assert_close(logits, by_head[model.best_head])
    torch.testing.assert_close(model.predict(images), logits)
    model.begin_epoch(1)
    assert not model.head_losses.any()


def test_a_saved_model_predicts_with_the_same_head(model: Crlc, crops: list[Tensor]) -> None:
    model.head_loss_sum.copy_(torch.tensor([3.0, 2.0, 1.0]))
    other = build_like(model)
    other.load_state_dict(model.state_dict())
    assert other.best_head == model.best_head == 2


def build_like(model: Crlc) -> Crlc:
    other = identity_model(HEADS)
    other.encoder, other.projection, other.heads = model.encoder, model.projection, model.heads
    return other


def test_evaluation_leaves_the_losses_of_the_heads_alone(model: Crlc, crops: list[Tensor]) -> None:
    model.eval()
    model(crops)
    assert not model.head_losses.any()


def test_step_returns_the_logits_of_the_chosen_head_and_terms_that_add_up(model: Crlc, crops: list[Tensor]) -> None:
    step = model(crops)
    assert step.scores is None
    assert step.logits.shape == (2, 16, 10)
    assert not any(tensor.requires_grad for tensor in (step.logits, *step.terms.values()))
    torch.testing.assert_close(sum(step.terms.values()), step.loss.detach())


def test_embeddings_have_length_1(model: Crlc, crops: list[Tensor]) -> None:
    torch.testing.assert_close(model.eval().embed(crops[0][0]).norm(dim=1), torch.ones(16))


@pytest.mark.parametrize("shapes", [[3], [2, 4]])
def test_other_than_two_views_are_refused(model: Crlc, shapes: list[int]) -> None:
    with pytest.raises(UserError, match="--large-crops must be 2"):
        model([torch.rand(views, 4, 1, 8, 8) for views in shapes])
