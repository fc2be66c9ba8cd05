"""Options of the benchmarks: they run with `pytest --benchmark-only`, and only then."""

import time

import pytest
import torch

START = time.perf_counter()


def pytest_ignore_collect(config: pytest.Config) -> bool | None:
    return None if config.getoption("benchmark_only") else True


def pytest_report_header() -> str:
    from imc_kernels import backends, native

    lines = backends.describe().splitlines()
    if native.missing("_cpu") is None:
        lines.append(f"CPU kernels: {native.module('_cpu').instruction_set()}, {torch.get_num_threads()} threads")
    return "\n".join(lines)


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """After the tables, what they say."""
    from targets import Seconds, summary

    groups: dict[str, dict[str, Seconds]] = {}
    for row in config._benchmarksession.benchmarks:  # type: ignore[attr-defined]
        if row:
            groups.setdefault(row.group, {})[row.name] = Seconds(row.stats.median, row.stats.min)
    if groups:
        terminalreporter.section("targets")
        terminalreporter.write_line("\n".join(summary(groups, time.perf_counter() - START)))
