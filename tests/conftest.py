"""Options of the tests. `pytest --benchmark-only` leaves them out altogether."""

import os

import pytest
import torch
from hypothesis import settings

# Without a GPU the Triton kernels run in Triton's interpreter, which must be chosen before Triton is imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# The same examples in every run: a failure in CI is a failure here.
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")


def pytest_ignore_collect(config: pytest.Config) -> bool | None:
    return True if config.getoption("benchmark_only") else None
