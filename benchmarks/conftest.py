"""Options of the benchmarks: they run with `pytest --benchmark-only`, and only then."""

import pytest
import torch


def pytest_ignore_collect(config: pytest.Config) -> bool | None:
    return None if config.getoption("benchmark_only") else True


def pytest_report_header() -> str:
    from imc_kernels import backends, native

    lines = backends.describe().splitlines()
    if native.missing("_cpu") is None:
        lines.append(f"CPU kernels: {native.module('_cpu').instruction_set()}, {torch.get_num_threads()} threads")
    return "\n".join(lines)
