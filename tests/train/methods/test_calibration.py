from __future__ import annotations

import pytest
import torch
from torch import Tensor

from imc.methods.calibration import agreement_of_heads, answer_temperature


def winners(agreeing: list[int], count: int = 100, clusters: int = 4) -> Tensor:
    """The best head, and others that put so many samples where it does, under other names of the clusters."""
    best = torch.arange(count) % clusters
    heads = [best]
    for number in agreeing:
        moved = best.clone()
        moved[number:] = (moved[number:] + 1) % clusters
        heads.append((moved + 1) % clusters)
    return torch.stack(heads)


def test_the_agreement_of_heads() -> None:
    assert agreement_of_heads(winners([100, 80, 60]), 0) == pytest.approx(0.8)
    assert agreement_of_heads(winners([]), 0) is None


def test_the_confidence_becomes_the_agreement() -> None:
    generator = torch.Generator().manual_seed(0)
    own = torch.nn.functional.one_hot(winners([90, 70]), 4) * 8.0 + torch.rand(3, 100, 4, generator=generator)
    temperature = answer_temperature(own, 0, 1.0)
    assert temperature > 1
    confidence = (own[0] / temperature).softmax(dim=1).max(dim=1).values.mean()
    assert float(confidence) == pytest.approx(agreement_of_heads(own.argmax(dim=2), 0) or 0, abs=1e-4)


def test_an_answer_is_not_made_surer() -> None:
    unsure = torch.nn.functional.one_hot(winners([100]), 4) * 0.5
    assert answer_temperature(unsure, 0, 1.0) == 1.0
    assert answer_temperature(unsure[:1], 0, 0.1) == 0.1
    assert answer_temperature(torch.zeros(2, 10, 3), 0, 1.0) == 1.0
