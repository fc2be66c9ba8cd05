"""A run whose steps are CUDA graphs is the run without: what only a GPU shows of it is that the captures succeed."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
# What each changes, and how many forms its steps have once ten ordinary ones are made.
CASES: dict[str, tuple[dict[str, Any], int]] = {
    "crops in the graph, frozen prototypes": ({"augmentation": "crops", "freeze_updates": 16}, 2),
    "crops before it, a queue": ({"queue": 192, "queue_start_epoch": 2, "freeze_updates": 0}, 3),
    "crlc": ({}, 1),
}


@pytest.mark.parametrize("case", CASES)
def test_the_losses_are_those_of_ordinary_steps(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn", reason="imc train needs scikit-learn, which is not installed here")
    from train.conftest import crlc_config, tiny_config

    from imc.data import load
    from imc.train import train
    from imc.training.cuda_graph import GraphedStep

    digits = load("digits").train
    data = dataclasses.replace(digits, images=digits.images[:192], labels=digits.labels[:192])
    options, forms = CASES[case]
    recorded: list[frozenset[str]] = []
    record = GraphedStep.record

    def counted(self: GraphedStep, form: frozenset[str], *rest: Any) -> Any:
        recorded.append(form)
        return record(self, form, *rest)

    monkeypatch.setattr(GraphedStep, "record", counted)

    def losses(graph: bool) -> list[float]:
        common = {"device": "cuda", "backend": "auto", "batch_size": 24, "epochs": 6, "amp": "off"}
        config = dataclasses.replace(tiny_config(tmp_path / str(graph)), **common, cuda_graph=graph)
        config = crlc_config(config) if case == "crlc" else dataclasses.replace(config, **options)
        train(config, data, report=False)
        lines = (tmp_path / str(graph) / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line)["loss"] for line in lines]

    ordinary = losses(False)
    assert not recorded
    assert losses(True) == pytest.approx(ordinary, rel=1e-2)
    assert len(recorded) == forms
