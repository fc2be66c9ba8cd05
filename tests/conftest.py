"""Options of the tests. `pytest --benchmark-only` leaves them out altogether."""

import contextlib
import os
from pathlib import Path

import pytest

# Beside other workers (make test), a thread each: also in the processes that tests start.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

try:
    from hypothesis import settings
except ImportError:  # make gpu-check uses a Python that may lack it
    settings = None

# Without a GPU the Triton kernels run in Triton's interpreter, which must be chosen before Triton is imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
    with contextlib.suppress(ImportError):  # Triton is not on every system
        from interpreter import patch_once_a_launch

        patch_once_a_launch()

# Files that take minutes and whose folder comes late: first, so that no process is left with one at the end.
FIRST = ("test_ranks.py",)

# The processes of a test run may be held to several instruction sets, whose compiled code torch does not tell apart
# (imc/machine/torch_state.py).
torch.compiler.config.cache_key_tag = torch.backends.cpu.get_cpu_capability()

# The same examples in every run: a failure in CI is a failure here.
if settings is not None:
    settings.register_profile("repeatable", derandomize=True)
    settings.load_profile("repeatable")


def pytest_report_header() -> str | None:
    return None if settings else "hypothesis is not installed: the files that need it are left out"


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    needs_hypothesis = collection_path.suffix == ".py" and "from hypothesis import" in collection_path.read_text()
    return True if config.getoption("benchmark_only") or (needs_hypothesis and not settings) else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in FIRST)
