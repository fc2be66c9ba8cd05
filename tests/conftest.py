"""Options of the tests. `pytest --benchmark-only` leaves them out altogether."""

import pytest
from hypothesis import settings

# The same examples in every run: a failure in CI is a failure here.
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")


def pytest_ignore_collect(config: pytest.Config) -> bool | None:
    return True if config.getoption("benchmark_only") else None
