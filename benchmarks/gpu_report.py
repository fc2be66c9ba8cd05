"""Measure every operation, and the losses of whole steps, on this machine's GPU (or CPU), against their floors.

    python benchmarks/gpu_report.py                      # about 4 minutes; writes benchmarks/results/<device>/
    python benchmarks/gpu_report.py --seconds 0.5        # quicker, noisier
    python benchmarks/gpu_report.py --no-compile         # and without the minutes of torch.compile's compilers
    python benchmarks/gpu_report.py --only sinkhorn      # the cases whose name contains this
    python benchmarks/gpu_report.py --tiny --out DIR     # a trial of the script itself

Writes report.json (every number, with device, driver, versions and commit), report.md (the tables) and, with
matplotlib, speedup.png and roofline.png. The first two are written anew after every case: an end at any moment leaves
what was measured before. Forms: released (the authors' structure restated), eager (the specification),
batched (the best PyTorch form we know), torch.compile of that with max-autotune, and the backends of this package. The
floor of a case is the larger of its bytes at the copy bandwidth and its operations at the matrix rate, both measured in
the same run.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from cases import Case, cases, tiny_cases
from measure import BrokenCaptureError, Timing, copy_bandwidth, machine, matrix_rate, measure, rotation

RESULTS = Path(__file__).resolve().parent / "results"
AGREEMENT = 2e-2  # of a form's loss with the specification's: a wrong form, not a rounding


def ceilings(device: torch.device, tiny: bool) -> dict[str, float]:
    """The rates of this device that floors are made of, in bytes and operations a second."""
    size = 256 if tiny else 8192 if device.type == "cuda" else 2048
    return {
        "copy": copy_bandwidth(device, 1 << (20 if tiny else 30 if device.type == "cuda" else 28)),
        "float32": matrix_rate(device, torch.float32, size),
        "bfloat16": matrix_rate(device, torch.bfloat16, size),
    }


def floor_microseconds(case: Case, rates: dict[str, float]) -> float:
    """The larger of the times that the case's bytes and its operations need."""
    return max(case.bytes / rates["copy"], case.operations / rates[case.rate]) * 1e6


def report_case(
    case: Case, device: torch.device, rates: dict[str, float], seconds: float, compiled: bool
) -> dict[str, Any]:
    """One case's row of the report."""
    forms = case.forms(device, compiled)
    rotating = [case.inputs(seed, device) for seed in range(rotation(case.bytes, device))]
    timings = measure(forms, rotating, seconds=seconds)
    for name, timing in timings.items():
        if timing.failure is None and (difference := disagreement(case, name, rotating[0])) is not None:
            timing.failure = f"differs from the specification by {difference:.1e}"
    return {
        "case": case.name,
        "size": case.size,
        "dtype": str(case.dtype).removeprefix("torch."),
        "bytes": case.bytes,
        "operations": case.operations,
        "floor_microseconds": floor_microseconds(case, rates),
        "forms": {name: asdict(timing) for name, timing in timings.items()},
    }


def disagreement(case: Case, form: str, inputs: tuple[torch.Tensor, ...]) -> float | None:
    """How far, relative to its size, a form's value is from that of the eager backend; None within AGREEMENT."""
    if form in ("eager", "torch.compile"):  # the specification itself; the compiler's input is compared
        return None
    from imc_kernels import backends

    values = []
    for function, backend in ((case.rivals.get(form, case.fused), form), (case.fused, "eager")):
        with torch.no_grad(), backends.backend(backend if backend in backends.BACKENDS else None):
            try:
                value = function(*inputs)
            except torch.OutOfMemoryError:  # the specification's N x N: nothing to compare with
                return None
        values.append(torch.cat([x.flatten() for x in value]) if isinstance(value, list) else value)
    value, exact = (x.double() for x in values)
    difference = float((value - exact).norm() / exact.norm())
    return difference if not difference < AGREEMENT else None


def markdown(report: dict[str, Any]) -> str:
    """The report as Markdown: the machine, then a table a case."""
    facts, rates = report["machine"], report["ceilings"]
    lines = [
        f"# {facts['device']}",
        "",
        ", ".join(f"{key} {value}" for key, value in facts.items() if key != "device"),
        "",
        f"Measured in the same run: copy {rates['copy'] / 1e9:.0f} GB/s, matrix product {rates['float32'] / 1e12:.2f} "
        f"TFLOP/s in float32, {rates['bfloat16'] / 1e12:.2f} in bfloat16. Made by `{report['command']}`.",
        "",
        "us: median of single calls between events. graph: a call of a replayed CUDA graph. host: to issue a call. "
        "floor: share of the floor reached, by graph where there is one. x: how many times the batched form's time.",
    ]
    for row in report["cases"]:
        timings = {name: Timing(**values) for name, values in row["forms"].items()}
        rate = row["bytes"] / 1e6
        lines += [
            "",
            f"## {row['case']} {row['size']}, {row['dtype']}",
            "",
            f"{rate:.2f} MB, {row['operations'] / 1e9:.3f} GFLOP: floor {row['floor_microseconds']:.2f} us.",
            "",
            "| form | us | graph us | host us | launches | peak MB | GB/s | TFLOP/s | floor | x |",
            "|---|---|---|---|---|---|---|---|---|---|",
        ]
        base = timings["batched"].best if "batched" in timings else None
        lines += [_line(name, timing, row, base) for name, timing in timings.items()]
    return "\n".join(lines) + "\n"


def _line(name: str, timing: Timing, row: dict[str, Any], base: float | None) -> str:
    if timing.failure is not None:
        return f"| {name} | {timing.failure.replace('|', '/')} | | | | | | | | |"

    def number(value: float | None, digits: int = 1) -> str:
        return "" if value is None else f"{value:.{digits}f}"

    best = timing.best
    assert best is not None
    peak = None if timing.peak_bytes is None else timing.peak_bytes / 1e6
    columns = [
        number(timing.microseconds),
        number(timing.graph_microseconds),
        number(timing.host_microseconds),
        "" if timing.launches is None else str(timing.launches),
        number(peak),
        number(row["bytes"] / best / 1e3, 0),
        number(row["operations"] / best / 1e6, 2) if row["operations"] else "",
        f"{row['floor_microseconds'] / best:.0%}",
        "" if base is None else f"{best / base:.2f}",
    ]
    return f"| {name} | {' | '.join(columns)} |"


def write(report: dict[str, Any], out: Path) -> None:
    """Replace the folder's report: at any moment the files hold whole cases."""
    out.mkdir(parents=True, exist_ok=True)
    for name, text in (("report.json", json.dumps(report, indent=1) + "\n"), ("report.md", markdown(report))):
        temporary = out / f".{name}"
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(out / name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="of measuring a case (default: 2)")
    parser.add_argument("--only", default="", help="measure the cases whose name contains this")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--tiny", action="store_true", help="small sizes, to try the script itself")
    parser.add_argument("--out", type=Path, help="folder of the results (default: benchmarks/results/<device>)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()

    device, start = torch.device(options.device), time.perf_counter()
    facts = machine(device)
    out = options.out or RESULTS / re.sub(r"[^a-z0-9]+", "-", facts["device"].lower()).strip("-")
    rates = ceilings(device, options.tiny)
    chosen = [case for case in (tiny_cases() if options.tiny else cases()) if options.only in case.name]
    report: dict[str, Any] = {
        "machine": facts,
        "ceilings": rates,
        "command": shlex.join(["python", *sys.argv]),
        "cases": [],
    }
    for position, case in enumerate(chosen, start=1):
        print(f"[{position}/{len(chosen)}, {time.perf_counter() - start:.0f} s] {case.name} {case.size}", flush=True)
        try:
            report["cases"].append(report_case(case, device, rates, options.seconds, not options.no_compile))
        except BrokenCaptureError as error:
            sys.exit(
                f"{case.name} {case.size}: {error}. The cases before it are in {out}; --only measures those after it"
            )
        write(report, out)
        torch.compiler.reset()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    print(f"{out}: report.json report.md, {time.perf_counter() - start:.0f} s")
    try:
        from plot import draw
    except ImportError:
        print("no charts: matplotlib is not installed")
    else:
        draw(report, out)


if __name__ == "__main__":
    main()
