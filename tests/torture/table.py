"""The rows of the page: a fault, how often it was tried, and what went wrong."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from imc.training.checkpoint import read_checkpoint
from torture.runs import Ended, Process, difference, left_by


@dataclass
class Row:
    """One fault.

    Attributes:
        fault, how: what the page says.
        tried: number of times.
        wrong: runs whose end differs in a bit from that of the uninterrupted run.
        crashes: processes that hung, or ended with a traceback or without a sentence that says why.
        lost: times that less was on the disk than the run had saved.
        notes: further numbers for the page.
        failures: what happened, for whoever repairs it.
    """

    fault: str
    how: str
    tried: int = 0
    wrong: int = 0
    crashes: int = 0
    lost: int = 0
    notes: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def crashed(self, what: str) -> None:
        self.crashes += 1
        self.failures.append(f"{self.fault}: {what}")

    def held(self, folder: Path, ended: Ended) -> int | None:
        """Count a checkpoint as lost if the disk holds less than the run had saved; its update."""
        try:
            found = read_checkpoint(folder / "run")
        except Exception as error:
            self.lost += 1
            self.failures.append(f"{self.fault}: {folder.name}: {error}")
            return None
        update = None if found is None else int(found["update"])
        if ended.saved is not None and (update is None or update < ended.saved):
            self.lost += 1
            self.failures.append(f"{self.fault}: {folder.name}: {ended.saved} was saved, {update} is there")
        return update

    def finishes(self, folder: Path, whole: dict[str, object], ended: Ended | None = None) -> None:
        """Resume to the end and compare with the uninterrupted run."""
        ended = ended or Process(folder, "--resume").wait()
        if ended.code != 0:
            self.crashed(f"{folder.name}: --resume ended with {ended.code}: {ended.message[-800:]}")
            return
        if found := difference(left_by(folder), whole):
            self.wrong += 1
            self.failures.append(f"{self.fault}: {folder.name} differs in {found}")


@dataclass
class Bench:
    """What every fault is given.

    Attributes:
        folder: for its runs.
        whole: what the uninterrupted run left.
        seconds: how long that took.
        share: of the full number of tries.
    """

    folder: Path
    whole: dict[str, object]
    seconds: float
    share: float = 1.0

    def times(self, count: int) -> int:
        return max(1, round(count * self.share))


Fault = Callable[[Bench], Row]


def markdown(rows: list[Row]) -> str:
    lines = ["| fault | how | tried | wrong answers | crashes | lost checkpoints | |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        numbers = f"{row.tried:,} | {row.wrong} | {row.crashes} | {row.lost}"
        lines.append(f"| {row.fault} | {row.how} | {numbers} | {'; '.join(row.notes)} |")
    return "\n".join(lines)


def run(faults: list[Fault], bench: Bench) -> list[Row]:
    """All faults in turn, each in a folder of its own."""
    rows = []
    for fault in faults:
        start = time.monotonic()
        row = fault(Bench(bench.folder / fault.__name__, bench.whole, bench.seconds, bench.share))
        print(f"{time.monotonic() - start:6.0f} s  {row}", flush=True)
        rows.append(row)
    return rows
