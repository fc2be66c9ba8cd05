"""The commands that train several runs take features, and photographs, as imc train does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from imc.clusters_sweep import Options as SweepOptions
from imc.clusters_sweep import clusters_sweep
from imc.config import Config
from imc.runs.folder import read_config
from imc.seeds import Options as SeedOptions
from imc.seeds import seeds

SHORT: dict[str, Any] = {"epochs": 5, "warmup_updates": 2, "sub_heads": 2, "neighbours": 3, "checkpoint_every": 0}
ENCODER = "module:train.features.pooling.Pooling"


@pytest.fixture
def sources(
    photos: Path, features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, tuple[str, Config]]:
    monkeypatch.setenv("IMC_CACHE", str(tmp_path / "cache"))
    short = Config(backend="eager", **SHORT)
    return {
        "features": (str(features), short),
        "encoder": (str(photos), Config(backend="eager", encoder=ENCODER, clusters=3, **SHORT)),
    }


@pytest.mark.parametrize("kind", ["features", "encoder"])
def test_seeds(kind: str, sources: dict[str, tuple[str, Config]], tmp_path: Path) -> None:
    data, config = sources[kind]
    summary = seeds(SeedOptions(data=data, seeds=(0, 1), out=str(tmp_path / "out")), config)
    assert -1 <= summary["agreement"] <= 1
    assert [read_config(tmp_path / "out" / f"seed-{seed}").on_features for seed in (0, 1)] == [True, True]
    again = seeds(SeedOptions(data=data, seeds=(0, 1), out=str(tmp_path / "out")), config)
    assert again["agreement"] == summary["agreement"]


@pytest.mark.parametrize("kind", ["features", "encoder"])
def test_a_sweep(kind: str, sources: dict[str, tuple[str, Config]], tmp_path: Path) -> None:
    data, config = sources[kind]
    options = SweepOptions(data=data, clusters=(2, 3), seeds=(0,), out=str(tmp_path / "out"))
    assert [row["clusters"] for row in clusters_sweep(options, config)["runs"]] == [2, 3]
