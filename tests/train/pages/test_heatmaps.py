from __future__ import annotations

import pytest
import torch
from torch import nn

from imc.pages.heatmaps import heatmaps


class Model(nn.Module):
    """Convolution, pooling and a linear layer, where Grad-CAM is the class-activation map."""

    def __init__(self, features: int = 4) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, features, 3, padding=1), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
        self.classifier = nn.Linear(features, 3)

    def predict(self, images: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.encoder(images))


def test_with_a_linear_classifier_it_is_the_class_activation_map() -> None:
    torch.manual_seed(0)
    model, images = Model().eval(), torch.randn(5, 1, 8, 8)
    feature_map = model.encoder[:2](images)
    weights = model.classifier.weight[model.predict(images).argmax(dim=1)]
    expected = torch.einsum("bk,bkhw->bhw", weights, feature_map).relu()
    expected = (expected / expected.amax(dim=(1, 2), keepdim=True).clamp(min=1e-12)).detach()
    torch.testing.assert_close(heatmaps(model, images), expected)


def test_the_heat_lies_where_the_image_differs_from_the_background() -> None:
    torch.manual_seed(0)
    model, images = Model(), torch.zeros(1, 1, 16, 16)
    with torch.no_grad():
        model.encoder[0].weight.fill_(1)
        model.encoder[0].bias.zero_()
        model.classifier.weight.copy_(torch.tensor([1.0, 0, -1]).view(3, 1).expand(3, 4))
    images[0, 0, 2:6, 9:13] = 1
    heat = heatmaps(model, images)[0]
    assert heat.max() == 1
    assert heat[1:7, 8:14].sum() == heat.sum()


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_found(training: bool) -> None:
    model = Model().train(training)
    heatmaps(model, torch.randn(2, 1, 8, 8))
    assert all(module.training == training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_an_encoder_without_a_feature_map_is_refused() -> None:
    model = Model()
    model.encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    with pytest.raises(ValueError, match="no module whose output is a feature map"):
        heatmaps(model, torch.randn(2, 1, 8, 8))
