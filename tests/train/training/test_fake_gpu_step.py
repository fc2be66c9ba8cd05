"""On a GPU a step neither waits for the device nor copies anything to it, and is as many launches as docs/gpu.md says:
shown on a device that is not there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from processes import answers_of

from imc_kernels import backends

SCRIPT = Path(__file__).with_name("fake_gpu_step.py")
PAGE = Path(__file__).parents[3] / "docs" / "gpu.md"
MOST = {"imc-swav": 450, "crlc": 450}
KINDS = {
    "convolutions": r"convolution.*",
    "batch normalisation": r"moments_kernel|normalise_kernel|gradient_sums_kernel|gradient_kernel|_foreach_add_",
    "casts": r"_to_copy",
    "sums of two gradients": r"add",
    "the optimiser": r"_fused_.*",
    "the rest": r".*",
}
pytestmark = pytest.mark.skipif(backends.BACKENDS["triton"].missing() is not None, reason="triton does not run here")


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    return answers_of(SCRIPT, 600)


def by_kind(names: list[str]) -> dict[str, int]:
    counts = dict.fromkeys(KINDS, 0)
    for name in names:
        counts[next(kind for kind, pattern in KINDS.items() if re.fullmatch(pattern, name))] += 1
    return counts


def written(case: str) -> dict[str, int]:
    """The column of a case in the page's table of launches."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.read_text().splitlines()]
    head = next(cells for cells in lines if cells[0] == "a step's launches")
    return {cells[0]: int(cells[head.index(case)]) for cells in lines if cells[0] in KINDS and len(cells) == len(head)}


@pytest.mark.parametrize("backend", [None, "triton"])
@pytest.mark.parametrize("method", MOST)
def test_a_step_waits_for_nothing_and_its_launches_are_counted(
    method: str, backend: str | None, results: dict[str, Any]
) -> None:
    """An exception of the device's is in the place of the launches."""
    result = results[f"{method} {backend}"]
    assert isinstance(result, list), result
    names, _ = result
    assert len(names) <= MOST[method]
    assert by_kind(names) == written(f"{method}{', Triton alone' if backend else ''}")


@pytest.mark.parametrize("method", MOST)
def test_the_next_update_launches_the_same_on_the_same_memory(method: str, results: dict[str, Any]) -> None:
    """So a graph of one is right for the next: what differs between them is in the tensors."""
    result = results[f"{method} None"]
    assert isinstance(result, list), result
    assert result[1] == []
