"""ThreadSanitizer sees through the parallel loops of the CPU kernels: it finds a race that is there, and no other."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

CSRC = Path(__file__).resolve().parents[2] / "csrc"
PROGRAM = r"""
#define IMC_ISA baseline
#include "cpu/parallel.h"
#include <cstdio>

int main() {
  long slots[64] = {0}, total = 0;
  imc::baseline::parallel_for(64, 4, [&](int64_t item, int) {
    for (int turn = 0; turn < 1000; ++turn) TARGET += item;
  });
  std::printf("%ld\n", total + slots[3]);
}
"""


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++ here")
@pytest.mark.parametrize(("target", "races"), [("slots[item]", False), ("total", True)])
def test_a_race_is_found_and_none_is_invented(target: str, races: bool, tmp_path: Path) -> None:
    (tmp_path / "main.cpp").write_text(PROGRAM)
    flags = ["-std=c++17", "-O1", "-g", "-fopenmp", "-fsanitize=thread", f"-I{CSRC}", f"-DTARGET={target}"]
    subprocess.run(["g++", *flags, str(tmp_path / "main.cpp"), "-o", str(tmp_path / "main")], check=True)
    # Without random addresses, of which ThreadSanitizer takes only so many.
    command = [*(["setarch", "-R"] if shutil.which("setarch") else []), str(tmp_path / "main")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (result.returncode == 66) == races, result.stderr
    assert ("WARNING: ThreadSanitizer: data race" in result.stderr) == races
