from __future__ import annotations

import math
import re

import pytest
import torch

from imc.errors import RunError
from imc.methods.method import Step
from imc.training.monitor import EpochMonitor, collapse_warnings, scarcity_warnings


def make_step(swapped: float = 1.0, information: float = -2.0) -> Step:
    terms = {"swapped_prediction": torch.tensor(swapped), "mutual_information": torch.tensor(information)}
    scores = torch.eye(4)[[0, 0, 1, 1]].unsqueeze(0)
    logits = torch.eye(2)[[0, 0, 0, 0]].unsqueeze(0)
    return Step(sum(terms.values()), terms, scores, logits)


def test_summary() -> None:
    monitor = EpochMonitor(prototypes=4, clusters=2, device=torch.device("cpu"))
    monitor.update(make_step(1.0), 0)
    monitor.update(make_step(3.0), 1)
    assert monitor.summary() == pytest.approx(
        {
            "loss": 0.0,
            "swapped_prediction": 2.0,
            "mutual_information": -2.0,
            "prototype_use": 0.5,
            "prototype_perplexity": 2.0,
            "cluster_use": 0.5,
        }
    )


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (make_step(swapped=math.nan), "swapped_prediction became nan at update 11"),
        (make_step(information=math.inf), "mutual_information became inf at update 11"),
    ],
)
def test_a_loss_that_is_not_finite_is_named(step: Step, message: str) -> None:
    monitor = EpochMonitor(prototypes=4, clusters=2, device=torch.device("cpu"))
    monitor.update(make_step(), 10)
    monitor.update(step, 11)
    with pytest.raises(RunError, match=message):
        monitor.read()


def test_collapse_is_warned_about() -> None:
    healthy = {"swapped_prediction": 2.0, "prototype_use": 0.9, "cluster_use": 1.0}
    assert collapse_warnings(healthy, prototypes=100) == []
    collapsed = {"swapped_prediction": math.log(100), "prototype_use": 0.02, "cluster_use": 0.1}
    stuck, unused, empty = collapse_warnings(collapsed, prototypes=100)
    assert "ln K = 4.605" in stuck
    assert "2% of the prototypes" in unused
    assert "10% of the clusters" in empty


@pytest.mark.parametrize(
    ("images", "epochs", "steps", "says"),
    [
        (3, 2, 1, ["3 images are few for 2 clusters", "2 updates are few: with fewer than 250"]),
        (100, 40, 1, ["40 updates are few: .*; --epochs 250 makes as many"]),
        (19, 40, 7, ["19 images are few for 2 clusters"]),
        (20, 40, 7, []),
    ],
)
def test_too_little_is_warned_about_by_numbers(images: int, epochs: int, steps: int, says: list[str]) -> None:
    warnings = scarcity_warnings(images, 2, epochs, steps)
    assert len(warnings) == len(says)
    assert all(re.match(pattern, warning) for pattern, warning in zip(says, warnings, strict=True))
