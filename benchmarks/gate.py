"""Compare a benchmark run with a stored one, by ratio to eager within each run: the machine's own speed cancels.

pytest --benchmark-only --benchmark-json=bench.json
python -m benchmarks.gate bench.json             # fails where a kernel lost more than a third against eager
python -m benchmarks.gate bench.json --update    # store this run instead, in benchmarks/baseline.json
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

BASELINE = Path(__file__).resolve().parent / "baseline.json"
KERNELS = ("cpu", "cuda", "triton")
TOLERANCE = 1.33  # a shared machine's ratios differ by a quarter from run to run
Ratios = dict[str, dict[str, float]]


def ratios(content: dict[str, Any]) -> Ratios:
    """Group -> kernel backend -> its fastest round over eager's: minima, as other load only ever adds time."""
    groups: Ratios = {}
    for entry in content["benchmarks"]:
        groups.setdefault(entry["group"], {})[entry["name"]] = entry["stats"]["min"]
    return {
        group: {name: round(rows[name] / rows["eager"], 5) for name in KERNELS if name in rows}
        for group, rows in groups.items()
        if "eager" in rows and rows.keys() & set(KERNELS)
    }


def regressions(now: Ratios, before: Ratios, tolerance: float = TOLERANCE) -> list[str]:
    """A line for every kernel that is slower against eager than it was, or is no longer measured."""
    lines = []
    for group, backends in before.items():
        for name, old in backends.items():
            new = now.get(group, {}).get(name)
            if new is None:
                lines.append(f"{group}, {name}: not in this run")
            elif new > tolerance * old:
                lines.append(f"{group}, {name}: {new:.3f} of eager's time, was {old:.3f}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("json", type=Path, help="what --benchmark-json wrote")
    parser.add_argument("--update", action="store_true", help="store this run as the baseline")
    options = parser.parse_args()
    now = ratios(json.loads(options.json.read_text(encoding="utf-8")))
    if options.update:
        BASELINE.write_text(json.dumps(now, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        print(f"{BASELINE.name}: {len(now)} groups")
        return
    if not BASELINE.exists():
        sys.exit(f"{BASELINE} is not there; store one with --update")
    lost = regressions(now, json.loads(BASELINE.read_text(encoding="utf-8")))
    print("\n".join(lost) or f"{len(now)} groups: no kernel lost more than {TOLERANCE - 1:.0%} against eager")
    sys.exit(bool(lost))


if __name__ == "__main__":
    main()
