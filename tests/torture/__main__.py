"""``make torture``: run the faults, print what happened, and write the table into docs/robustness.md.

    python -m torture [fault ...] [--share 0.1] [--write]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
import time
from pathlib import Path

import torch

from torture import one_process, several_ranks
from torture.runs import Process, left_by, prepare
from torture.table import Bench, Row, markdown, run

PAGE = Path(__file__).resolve().parents[2] / "docs" / "robustness.md"
BEGIN, END = "<!-- make torture: begin -->\n", "<!-- make torture: end -->\n"
FAULTS = [
    one_process.killed_at_random,
    one_process.killed_again_and_again,
    one_process.killed_while_writing,
    one_process.terminated,
    one_process.interrupted,
    one_process.disk_full,
    one_process.damaged_checkpoint,
    several_ranks.rank_killed,
    several_ranks.rank_stalled,
    several_ranks.ranks_terminated,
    several_ranks.under_torchrun,
]


def main() -> int:
    parser = argparse.ArgumentParser(prog="make torture", description=__doc__)
    parser.add_argument("faults", nargs="*", help=f"which; default: all of {', '.join(f.__name__ for f in FAULTS)}")
    parser.add_argument("--share", type=float, default=1.0, help="of the number of tries")
    parser.add_argument("--write", action="store_true", help="write the table into docs/robustness.md")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON, one a line")
    arguments = parser.parse_args()
    unknown = set(arguments.faults) - {fault.__name__ for fault in FAULTS}
    if unknown:
        parser.error(f"no fault is named {', '.join(sorted(unknown))}")
    chosen = [fault for fault in FAULTS if not arguments.faults or fault.__name__ in arguments.faults]
    torch.set_num_threads(1)  # no threads here that a forked child would miss
    with tempfile.TemporaryDirectory() as name:
        prepare(Path(name))
        start = time.monotonic()
        whole = Process(Path(name) / "again").wait()
        seconds = time.monotonic() - start
        if whole.code != 0:
            print(whole.message, file=sys.stderr)
            return 1
        rows = run(chosen, Bench(Path(name) / "faults", left_by(Path(name) / "again"), seconds, arguments.share))
    for row in rows:
        print(*row.failures, sep="\n", file=sys.stderr)
    if arguments.json:
        print(*(json.dumps(dataclasses.asdict(row)) for row in rows), sep="\n")
    else:
        print(markdown(rows))
    if arguments.write:
        write(rows)
    return int(any(row.wrong or row.crashes or row.lost for row in rows))


def write(rows: list[Row]) -> None:
    """Replace the rows of these faults in the page's table."""
    before, rest = PAGE.read_text().split(BEGIN)
    table, after = rest.split(END)
    lines = {line.split(" | ")[0]: line for line in table.splitlines()}
    lines |= {line.split(" | ")[0]: line for line in markdown(rows).splitlines()}
    PAGE.write_text(before + BEGIN + "\n".join(lines.values()) + "\n" + END + after)


if __name__ == "__main__":
    sys.exit(main())
