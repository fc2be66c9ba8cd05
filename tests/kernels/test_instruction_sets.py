"""IMC_CPU_CAPABILITY: the kernels run as they are compiled for each instruction set that the processor has."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from kernels.test_contract import SMALL, relative, run
from operations import OPERATIONS, Sizes
from torch import Tensor

from imc_kernels import native

if reason := native.missing("_cpu"):
    pytest.skip(reason, allow_module_level=True)

HERE = native.module("_cpu").instruction_sets()
RAGGED = Sizes(3, 37, 129, 7, 33)
RESULTS = """
import sys
import torch
from kernels.test_instruction_sets import results
from imc_kernels import native

own = results()
torch.save((native.module("_cpu").instruction_set(), own), sys.argv[1])
"""


def results() -> dict[str, list[Tensor]]:
    """Value and gradients of every operation on this process's kernels."""
    return {
        f"{operation} {sizes}": run(operation, operation.inputs(sizes, torch.float32), "cpu")
        for operation in OPERATIONS
        for sizes in (SMALL, RAGGED)
    }


def in_a_process(capability: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(filter(None, sys.path))
    environment = {**os.environ, "IMC_CPU_CAPABILITY": capability, "PYTHONPATH": path}
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def each(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, list[Tensor]]]:
    """The results of each instruction set."""
    found = {}
    for name in HERE:
        path = tmp_path_factory.mktemp("results") / name
        process = in_a_process(name.upper(), "-c", RESULTS, str(path))
        assert process.returncode == 0, process.stderr
        chosen, found[name] = torch.load(path)
        assert chosen == name
    return found


@pytest.mark.parametrize("name", HERE)
def test_every_instruction_set_is_as_exact_as_the_specification(
    name: str, each: dict[str, dict[str, list[Tensor]]]
) -> None:
    """The budget is that of test_contract.py, where the instruction set is the process's."""
    for operation in OPERATIONS:
        for sizes in (SMALL, RAGGED):
            truth = run(operation, operation.inputs(sizes), "eager")
            eager = run(operation, operation.inputs(sizes, torch.float32), "eager")
            for ours, theirs, exact in zip(each[name][f"{operation} {sizes}"], eager, truth, strict=True):
                budget = 3 * relative(theirs, exact) + 16 * torch.finfo(torch.float32).eps
                assert relative(ours, exact) <= budget, f"{operation} {sizes}"


@pytest.mark.skipif(len(HERE) < 2, reason=f"this processor has {HERE[0]} alone")
def test_other_code_runs(each: dict[str, dict[str, list[Tensor]]]) -> None:
    """Each two round differently somewhere."""
    for position, one in enumerate(HERE):
        for other in HERE[position + 1 :]:
            pairs = [(a, b) for case in each[one] for a, b in zip(each[one][case], each[other][case], strict=True)]
            assert not all(torch.equal(a, b) for a, b in pairs), f"{one} and {other}"


def test_without_the_variable_the_best_is_chosen() -> None:
    process = in_a_process("", "-m", "imc_kernels")
    assert f"instruction set {HERE[-1]} of {', '.join(HERE)}" in process.stdout


@pytest.mark.parametrize("command", ["imc_kernels", "imc.train"])
def test_a_command_says_so_in_one_sentence(command: str, tmp_path: Path) -> None:
    process = in_a_process("sse9", "-m", command, *(["--out", str(tmp_path / "run")] if command == "imc.train" else []))
    assert process.returncode in (1, 2)
    assert "Traceback" not in process.stderr
    assert process.stderr.splitlines()[-1].endswith(f"'sse9'; it has {', '.join(HERE)}")
    assert not (tmp_path / "run").exists()


def test_a_call_says_so_each_time_and_another_backend_serves() -> None:
    calls = """
import os, pytest, torch, imc_kernels
from imc_kernels.native import VariableError
scores = torch.rand(4, 5)
imc_kernels.sinkhorn(scores, backend="eager")
for name in ("sse9", "AVX2 ", "AVX2,STRICT", "avx1024"):
    os.environ["IMC_CPU_CAPABILITY"] = name
    with pytest.raises(VariableError, match=f"IMC_CPU_CAPABILITY names no .*: '{name}'; it has default"):
        imc_kernels.sinkhorn(scores)
os.environ["IMC_CPU_CAPABILITY"] = ""
imc_kernels.sinkhorn(scores)
"""
    process = in_a_process("", "-c", calls)
    assert process.returncode == 0, process.stderr
