from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from imc.models.batch_norm import PerViewBatchNorm

VIEWS, BATCH, CHANNELS = 3, 5, 4


@pytest.fixture(params=["features", "maps"])
def pair(request: pytest.FixtureRequest) -> tuple[PerViewBatchNorm, nn.Module, Tensor]:
    torch.manual_seed(0)
    maps = request.param == "maps"
    ours = PerViewBatchNorm(CHANNELS, momentum=0.3)
    nn.init.normal_(ours.weight)
    nn.init.normal_(ours.bias)
    standard = (nn.BatchNorm2d if maps else nn.BatchNorm1d)(CHANNELS, momentum=0.3)
    standard.load_state_dict(ours.state_dict())
    shape = (VIEWS * BATCH, CHANNELS, 6, 7) if maps else (VIEWS * BATCH, CHANNELS)
    offsets = torch.arange(VIEWS).repeat_interleave(BATCH).view(-1, *[1] * (len(shape) - 1))
    return ours, standard, torch.randn(shape) * (1 + offsets) + 10 * offsets


def test_training_equals_separate_passes(pair: tuple[PerViewBatchNorm, nn.Module, Tensor]) -> None:
    ours, standard, x = pair
    x_ours, x_standard = (copy.deepcopy(x).requires_grad_() for _ in range(2))
    y_ours = ours(x_ours, VIEWS)
    y_standard = torch.cat([standard(view) for view in x_standard.split(BATCH)])
    torch.testing.assert_close(y_ours, y_standard)
    weights = torch.randn_like(x)
    (y_ours * weights).sum().backward()
    (y_standard * weights).sum().backward()
    torch.testing.assert_close(x_ours.grad, x_standard.grad)
    for name, parameter in standard.named_parameters():
        torch.testing.assert_close(ours.get_parameter(name).grad, parameter.grad)
    for name, buffer in standard.named_buffers():
        torch.testing.assert_close(ours.get_buffer(name), buffer, msg=name)


def test_views_matter(pair: tuple[PerViewBatchNorm, nn.Module, Tensor]) -> None:
    ours, _, x = pair
    assert (ours(x, VIEWS) - ours(x, 1)).abs().max() > 0.5


def test_evaluation_uses_the_running_statistics(pair: tuple[PerViewBatchNorm, nn.Module, Tensor]) -> None:
    ours, standard, x = pair
    ours(x, VIEWS)
    standard.load_state_dict(ours.state_dict())
    assert torch.equal(ours.eval()(x, VIEWS), standard.eval()(x))


def test_rejects_views_that_do_not_divide_the_rows() -> None:
    with pytest.raises(ValueError, match="5 rows are not 2 views"):
        PerViewBatchNorm(CHANNELS)(torch.randn(5, CHANNELS), 2)
