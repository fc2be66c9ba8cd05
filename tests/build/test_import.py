"""What importing costs and needs: no driver, no compiler, no compiled module until one is used, from any directory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from imc_kernels import native

ROOT = Path(__file__).resolve().parents[2]


def python(code: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    # No compiler, nvcc or ninja on the path.
    clean = {"PATH": "/nowhere", "HOME": str(folder), **environment}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=folder, env=clean, capture_output=True, text=True, check=False)


def test_import_from_an_empty_folder_without_compilers(tmp_path: Path) -> None:
    result = python("import imc_kernels; print(imc_kernels.backends.describe())", tmp_path)
    assert result.returncode == 0, result.stderr
    assert "eager" in result.stdout


def test_import_loads_neither_triton_nor_compiled_modules(tmp_path: Path) -> None:
    code = (
        "import sys, imc_kernels\n"
        "print([m for m in sys.modules if m.split('.')[0] == 'triton' or m.startswith('imc_kernels._')])"
    )
    assert python(code, tmp_path).stdout.strip() == "[]"


def test_the_source_tree_finds_the_installed_modules() -> None:
    """`python -m imc.train` in a clone imports the clone's packages: the kernels must still be the compiled ones."""
    code = "from imc_kernels import native; print(native.missing('_cpu'))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == str(native.missing("_cpu"))


def test_a_missing_module_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imc_kernels._cpu", None)
    native._load.cache_clear()
    try:
        reason = native.missing("_cpu")
        assert reason is not None
        assert "g++ or clang++" in reason
        with pytest.raises(RuntimeError, match=r"imc_kernels\._cpu"):
            native.module("_cpu")
    finally:
        native._load.cache_clear()


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({"IMC_BUILD_CUDA": "1"}, "IMC_BUILD_CUDA=1, but nvcc was found neither in CUDA_HOME nor on the PATH"),
        ({"IMC_BUILD_CUDA": "yes"}, "IMC_BUILD_CUDA must be auto, 0, 1 or simt, got 'yes'"),
    ],
)
def test_a_build_that_cannot_be_is_one_sentence(environment: dict[str, str], sentence: str, tmp_path: Path) -> None:
    pytest.importorskip("setuptools", reason="setup.py needs setuptools, which is not installed here")
    # As on a machine without the toolkit: nothing is found, wherever it may lie on this one.
    code = "import runpy, shutil; shutil.which = lambda *a, **k: None; runpy.run_path('setup.py', run_name='__main__')"
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode != 0
    assert "Traceback" not in result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("imc-kernels:")]
    assert len(lines) == 1
    assert sentence in lines[0]


def test_the_cuda_module_imports_without_a_driver() -> None:
    if native.missing("_cuda") is not None:
        pytest.skip(f"{native.missing('_cuda')}")
    module = native.module("_cuda")
    if "TORCH_CUDA_ARCH_LIST" not in os.environ:
        assert module.architectures() == "8.0 9.0a 10.0+PTX"
    if torch.cuda.is_available():
        pytest.skip("there is a driver here")
    scores = torch.rand(2, 3, 4)
    with pytest.raises(ValueError, match="scores must be a CUDA tensor, got one on cpu"):
        module.sinkhorn(scores, None, torch.empty_like(scores), None, None, 0.05, 3)
