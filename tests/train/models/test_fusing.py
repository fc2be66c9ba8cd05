from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from imc.models import fusing
from imc.models.fusing import FusedConvolution, fused


def convolution(**options: Any) -> nn.Conv2d:
    return nn.Conv2d(4, 8, 3, **options)


def norm(**options: Any) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(8, **options)


class Branches(nn.Module):
    """A convolution that is called twice, one result of which two others read."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        z = functional.relu(self.norm(y)) + y
        return functional.relu6(self.first(z)) + self.second(z).relu()


class Dependent(nn.Module):
    """What it computes depends on the numbers, so that no trace is its function."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = convolution()

    def forward(self, x: Tensor) -> Tensor:
        x = self.convolution(x)
        return functional.relu(x) if x.sum() > 0 else -x


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "convolution, norm, relu": (lambda: nn.Sequential(convolution(bias=False), norm(), nn.ReLU()), 1),
    "convolution, norm, relu6": (lambda: nn.Sequential(convolution(stride=2), norm(), nn.ReLU6(inplace=True)), 1),
    "convolution, norm": (lambda: nn.Sequential(convolution(groups=4, dilation=2), norm()), 1),
    "convolution, other activation": (lambda: nn.Sequential(convolution(), norm(affine=False), nn.SiLU()), 1),
    "norm of the batch": (lambda: nn.Sequential(convolution(), norm(track_running_stats=False), nn.ReLU()), 1),
    "reflected edges": (lambda: nn.Sequential(convolution(padding=1, padding_mode="reflect"), norm()), 0),
    "padding by name": (lambda: nn.Sequential(convolution(padding="same"), norm()), 0),
    "norm before": (lambda: nn.Sequential(nn.BatchNorm2d(4), convolution(), nn.ReLU()), 1),
    "branches": (Branches, 3),
    "depends on numbers": (Dependent, 0),
    "no convolution": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(4 * 15 * 14, 3), nn.ReLU()), 0),
}


def trained(make: Callable[[], nn.Module]) -> nn.Module:
    """With numbers as training leaves them."""
    torch.manual_seed(0)
    network = make()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for parameter in module.parameters():
                nn.init.normal_(parameter)
            if module.running_mean is not None and module.running_var is not None:
                module.running_mean.normal_()
                module.running_var.uniform_(0.1, 2)
    return network.eval()


@pytest.mark.parametrize("primitives", [True, False])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_function_is_kept(name: str, primitives: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not primitives:
        monkeypatch.setattr(fusing, "_has_primitives", lambda: False)
    elif not fusing._has_primitives():
        pytest.skip("this torch is built without oneDNN")
    make, count = NETWORKS[name]
    network = trained(make)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    result = fused(network)
    assert sum(isinstance(module, FusedConvolution) for module in result.modules()) == count
    with torch.inference_mode():
        for images in (torch.randn(3, 4, 15, 14), -torch.randn(3, 4, 15, 14)):
            ordered = images.contiguous(memory_format=torch.channels_last)
            for given in (images, ordered):
                torch.testing.assert_close(result(given), network(images), rtol=1e-4, atol=1e-4)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_batch_normalisation_is_gone() -> None:
    result = fused(trained(NETWORKS["convolution, norm, relu"][0]))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in result.modules())
