"""On a GPU no operation waits for the device, or copies anything to it: shown on a device that is not there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from operations import OPERATIONS
from processes import answers_of

from imc_kernels import backends

GROUPED = {"info_nce_loss", "log_dot_product_loss", "mutual_information_loss", "per_view_batch_norm", "sinkhorn"}
SCRIPT = Path(__file__).with_name("fake_gpu.py")
LACKS: dict[str, set[str]] = {  # what the GPU backends have no form of, as README.md says
    "cuda": {
        "prototype_scores",
        "info_nce_loss",
        "self_distillation_loss",
        "linear_swapped_prediction_loss",
        "transport_plan",
    },
    "triton": {"transport_plan"},
    "eager": set(),
}
pytestmark = pytest.mark.skipif(backends.BACKENDS["triton"].missing() is not None, reason="triton does not run here")


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    return answers_of(SCRIPT, 300)


@pytest.mark.parametrize("backend", ["cuda", "triton", "eager"])
@pytest.mark.parametrize("operation", OPERATIONS, ids=str)
def test_an_operation_and_its_gradients(operation: Any, backend: str, results: dict[str, Any]) -> None:
    for dtype in ("float32", "bfloat16"):
        result = results[f"{operation} {dtype} {backend}"]
        if operation.name in LACKS[backend]:
            assert "it has no" in result
        else:
            assert isinstance(result, list), result


@pytest.mark.parametrize("backend", ["cuda", "triton", "eager"])
@pytest.mark.parametrize("operation", [o for o in OPERATIONS if o.name in GROUPED], ids=str)
def test_over_processes_of_unequal_sizes(operation: Any, backend: str, results: dict[str, Any]) -> None:
    for dtype in ("float32", "bfloat16"):
        result = results[f"{operation} {dtype} {backend} with a group"]
        if operation.name in LACKS[backend] | ({"per_view_batch_norm"} if backend == "cuda" else set()):
            assert "it has no" in result
        else:
            assert isinstance(result, list), result
            assert {"allgather_", "allreduce_", "_allgather_base_"} & set(result)


@pytest.mark.parametrize("backend", ["cuda", "triton", "eager"])
def test_multi_crop(backend: str, results: dict[str, Any]) -> None:
    assert isinstance(results[f"multi_crop {backend}"], list), results[f"multi_crop {backend}"]


@pytest.mark.parametrize(("step", "launches"), [("", 90), (", the step a tensor", 110)])
def test_the_draw_of_crop_parameters(step: str, launches: int, results: dict[str, Any]) -> None:
    result = results[f"draw_crop_parameters{step}"]
    assert isinstance(result, list), result
    assert len(result) <= launches


def test_what_waits_is_found(results: dict[str, Any]) -> None:
    """The device tells on each kind of waiting."""
    waiting = {name: result for name, result in results.items() if name.startswith("waits")}
    assert len(waiting) == 6
    for name, result in waiting.items():
        assert isinstance(result, str), name
