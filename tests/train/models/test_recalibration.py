from __future__ import annotations

import pytest
import torch
from torch import nn

from imc.models.batch_norm import PerViewBatchNorm
from imc.models.recalibration import recalibrate_batch_norm


class Model(nn.Module):
    """Two normalisations, the second fed by the first, and a dropout that must stay off."""

    def __init__(self) -> None:
        super().__init__()
        self.first = PerViewBatchNorm(3, momentum=0.1)
        self.second = nn.BatchNorm2d(3, momentum=None)
        self.dropout = nn.Dropout(0.5)

    def predict(self, images: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.second(self.first(images) ** 2)).mean(dim=(2, 3))


def batches(*sizes: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [3 + 2 * torch.randn(size, 3, 4, 4, generator=generator) for size in sizes]


def test_the_statistics_are_the_average_over_the_batches() -> None:
    model, data = Model(), batches(8, 8, 4)
    assert recalibrate_batch_norm(model, data) == 20
    weights = [8 / 20, 8 / 20, 4 / 20]
    means = sum(weight * batch.mean(dim=(0, 2, 3)) for weight, batch in zip(weights, data, strict=True))
    variances = sum(weight * batch.var(dim=(0, 2, 3)) for weight, batch in zip(weights, data, strict=True))
    torch.testing.assert_close(model.first.running_mean, means)
    torch.testing.assert_close(model.first.running_var, variances)


def test_what_was_estimated_before_leaves_no_trace() -> None:
    one, other = Model(), Model()
    recalibrate_batch_norm(one, batches(16))
    recalibrate_batch_norm(one, batches(8, 8))
    recalibrate_batch_norm(other, batches(8, 8))
    assert all(torch.equal(a, b) for a, b in zip(one.buffers(), other.buffers(), strict=True) if a.is_floating_point())


@pytest.mark.parametrize("training", [True, False])
def test_modes_and_momenta_are_left_as_found(training: bool) -> None:
    model = Model().train(training)
    recalibrate_batch_norm(model, batches(8))
    assert [module.training for module in model.modules()] == [training] * 4
    assert (model.first.momentum, model.second.momentum) == (0.1, None)


def test_a_batch_of_one_image_is_left_out() -> None:
    model = Model()
    before = {name: value.clone() for name, value in model.named_buffers()}
    assert recalibrate_batch_norm(model, batches(1)) == 0
    assert all(torch.equal(before[name], value) for name, value in model.named_buffers())
