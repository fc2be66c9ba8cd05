"""Scripts of the benchmarks are started by their path, where the tests' modules cannot be imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import imc_kernels

FOLDER = Path(__file__).parents[2] / "benchmarks"
SCRIPTS = sorted(path.stem for path in FOLDER.glob("*.py") if '__name__ == "__main__"' in path.read_text())
IMPORT_EACH = """
import importlib, sys
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except ImportError as error:
        print(f"{name}: {error}")
"""


def test_they_import_without_the_tests(tmp_path: Path) -> None:
    assert {"cifar10_epoch", "gpu_report", "pillow_steps"} <= set(SCRIPTS)
    places = os.pathsep.join((str(FOLDER), str(Path(imc_kernels.__file__).parents[1])))
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_EACH, *SCRIPTS],
        env={**os.environ, "PYTHONPATH": places},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
