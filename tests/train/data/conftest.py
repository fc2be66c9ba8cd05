from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own for each test, outside of the folder that the test fills."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("IMC_CACHE", str(folder))
    monkeypatch.delenv("IMC_DATA", raising=False)
    return folder
