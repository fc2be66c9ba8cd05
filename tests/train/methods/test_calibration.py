from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from train.features.blobs import blobs
from train.features.conftest import on_features

from imc.features.files import read_features
from imc.methods.calibration import agreement, answer_temperature
from imc.runs.model import load_run
from imc.train import train


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
    best, *others = winners([100, 80, 60])
    assert agreement(best, torch.stack(others)) == pytest.approx(0.8)
    assert agreement(best, torch.empty(0, 100, dtype=torch.int64)) is None


def test_the_confidence_becomes_the_agreement() -> None:
    generator = torch.Generator().manual_seed(0)
    best, *others = winners([90, 70])
    answer = torch.nn.functional.one_hot(best, 4) * 8.0 + torch.rand(100, 4, generator=generator)
    temperature = answer_temperature(answer, torch.stack(others), 1.0)
    assert temperature > 1
    confidence = (answer / temperature).softmax(dim=1).max(dim=1).values.mean()
    assert float(confidence) == pytest.approx(0.8, abs=1e-4)


def test_an_answer_is_not_made_surer() -> None:
    best, other = winners([100])
    unsure = torch.nn.functional.one_hot(best, 4) * 0.5
    assert answer_temperature(unsure, other[None], 1.0) == 1.0
    assert answer_temperature(unsure, torch.empty(0, 100, dtype=torch.int64), 0.1) == 0.1
    assert answer_temperature(torch.zeros(10, 3), torch.zeros(2, 10, dtype=torch.int64), 1.0) == 1.0


OPEN = 60  # rows of noise, of which nothing says where they belong
METHODS: dict[str, dict[str, Any]] = {
    "crlc": {},
    "one head": {"sub_heads": 1},
    "temi": {"method": "temi", "teacher_momentum": 0.9},
    "imc-swav": {"method": "imc-swav", "sub_heads": None, "prototypes": 12, "classifier_widths": (8,)},
}


@pytest.fixture(scope="module")
def open_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three groups, and as many rows of noise."""
    rows, labels = blobs(members=20)
    noise = 2 * np.random.default_rng(1).normal(size=(OPEN, rows.shape[1]))
    path = tmp_path_factory.mktemp("open") / "rows.npz"
    np.savez(path, features=np.concatenate([rows, noise]), labels=np.concatenate([labels, np.full(OPEN, -1)]))
    return path


@pytest.mark.parametrize("method", METHODS)
def test_an_answer_on_features_is_as_sure_as_other_heads_agree(method: str, open_rows: Path, tmp_path: Path) -> None:
    config = on_features(open_rows, tmp_path / "run", **METHODS[method])
    assert train(config, report=False) is not None
    run = load_run(tmp_path / "run")
    rows = read_features([str(open_rows)]).train.images
    features = run.model.features(rows)
    answer = run.model.classify(features)[0].detach()
    others = run.model.jury.winners(features) if run.model.jury is not None else None
    assert (others is None) == (method == "crlc")
    confidence = float(answer.softmax(dim=1).max(dim=1).values.mean())
    if others is not None:
        # Not surer than they agree, unless the answer was less sure by itself.
        agreed = agreement(answer.argmax(dim=1), others)
        assert agreed is not None
        assert confidence <= agreed + 1e-3
    assert confidence < 0.95
