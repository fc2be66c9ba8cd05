"""The published files themselves, where they are at hand.

IMC_TEST_DATA, or else ``shared/data`` beside the repository, holds the sets as IMC_DATA would, or an ``unpack.py`` that
restores them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from imc.data.named import NAMED

ROOT = Path(os.environ.get("IMC_TEST_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")


def root_of(name: str, folders: pytest.TempPathFactory) -> Path:
    """The folder that holds a set, as IMC_DATA would; a test of one that is not at hand is skipped."""
    if NAMED[name].find(ROOT) is not None:
        return ROOT
    unpack = ROOT / "unpack.py"
    if not unpack.is_file():
        pytest.skip(f"neither {name} nor unpack.py is in {ROOT}; IMC_TEST_DATA names another folder")
    root = folders.mktemp("real")
    subprocess.run([sys.executable, unpack, root, name], check=True, timeout=300, stdout=subprocess.DEVNULL)
    return root
