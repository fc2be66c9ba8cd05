"""Charts of measured speed.

    pytest --benchmark-only --benchmark-json=bench.json && python -m benchmarks.plot bench.json --out charts
    python -m benchmarks.plot benchmarks/results/<device>/report.json

From a report of gpu_report.py: speedup.png (every form against the batched one) and roofline.png (every case of this
package's backends against the measured ceilings). From pytest-benchmark's JSON: speedup.png, every row against `eager`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

OURS = ("cuda", "triton", "cpu")
COLOURS = {
    "cuda": "#1b6e3c",
    "triton": "#3f9c6b",
    "cpu": "#1b6e3c",
    "torch.compile": "#c77f1a",
    "batched": "#8a8f98",
    "eager": "#b9bdc4",
    "released": "#d7695b",
}
OTHER = "#6b7fa3"


def best(timing: dict[str, Any]) -> float | None:
    """Microseconds of a form in a report: by graph where it was captured, None where it failed."""
    if timing["failure"] is not None:
        return None
    graph = timing["graph_microseconds"]
    return timing["microseconds"] if graph is None else graph


def speedups_of_report(report: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Case -> form -> how many times faster than the batched form (than eager where there is none)."""
    made = {}
    for row in report["cases"]:
        times = {name: best(timing) for name, timing in row["forms"].items()}
        base = times.get("batched") or times.get("eager")
        if base:
            made[f"{row['case']}\n{row['size']}"] = {name: base / time for name, time in times.items() if time}
    return made


def speedups_of_pytest(content: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Group -> row -> how many times faster than the group's `eager` row (its slowest where there is none)."""
    groups: dict[str, dict[str, float]] = {}
    for entry in content["benchmarks"]:
        groups.setdefault(entry["group"], {})[entry["name"]] = entry["stats"]["median"]
    return {
        group: {name: rows.get("eager", max(rows.values())) / median for name, median in rows.items()}
        for group, rows in groups.items()
        if len(rows) > 1
    }


def draw_speedups(speedups: dict[str, dict[str, float]], path: Path, title: str) -> None:
    """Horizontal bars on a logarithmic axis, one group a case."""
    rows = [(case, form, value) for case, forms in speedups.items() for form, value in forms.items()]
    height = 0.22 * len(rows) + 0.35 * len(speedups) + 1
    figure, axes = _figure(10, height)
    position, ticks = 0.0, []
    for case, forms in speedups.items():
        first = position
        for form, value in forms.items():
            axes.barh(position, value, height=0.85, left=0, color=COLOURS.get(form, OTHER))
            axes.text(value, position, f" {form} {value:.3g}x", va="center", fontsize=7)
            position += 1
        ticks.append(((first + position - 1) / 2, case))
        position += 1.2
    axes.set_yticks([at for at, _ in ticks], [name for _, name in ticks], fontsize=8)
    axes.set_ylim(position - 1, -1)
    axes.set_xscale("log")
    axes.axvline(1, color="black", linewidth=0.8)
    highest = max(value for _, _, value in rows)
    axes.set_xlim(right=highest * 6)
    axes.set_xlabel(title)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, facecolor="white")


def draw_roofline(report: dict[str, Any], path: Path) -> None:
    """Operations a second over operations a byte, with the measured ceilings."""
    figure, axes = _figure(8, 6)
    rates = report["ceilings"]
    points = [
        (row["operations"] / row["bytes"], row["operations"] / time / 1e6, f"{row['case']}, {name}", name)
        for row in report["cases"]
        for name, timing in row["forms"].items()
        if name in OURS and row["operations"] and (time := best(timing))
    ]
    intensities = [0.1, *(point[0] for point in points), 1e4]
    span = [min(intensities), max(intensities)]
    for name in ("float32", "bfloat16"):
        ridge = rates[name] / rates["copy"]
        axes.plot(
            [span[0], ridge, max(span[1], ridge)],
            [span[0] * rates["copy"] / 1e12, rates[name] / 1e12, rates[name] / 1e12],
            linewidth=1,
            label=f"{name} matrix product {rates[name] / 1e12:.3g} TFLOP/s, copy {rates['copy'] / 1e9:.0f} GB/s",
        )
    for intensity, rate, label, name in points:
        axes.plot(intensity, rate, "o", color=COLOURS.get(name, OTHER))
        axes.annotate(label, (intensity, rate), fontsize=6, xytext=(4, 3), textcoords="offset points")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("operations a byte")
    axes.set_ylabel("TFLOP/s")
    axes.legend(fontsize=8, loc="lower right")
    figure.savefig(path, facecolor="white")


def draw(content: dict[str, Any], out: Path) -> list[Path]:
    """The charts of a report or of pytest-benchmark's JSON, in the folder ``out``."""
    out.mkdir(parents=True, exist_ok=True)
    speedup = out / "speedup.png"
    if "benchmarks" in content:
        draw_speedups(speedups_of_pytest(content), speedup, "times faster than eager")
        return [speedup]
    draw_speedups(speedups_of_report(content), speedup, "times faster than the batched form in PyTorch")
    draw_roofline(content, out / "roofline.png")
    return [speedup, out / "roofline.png"]


def _figure(width: float, height: float):  # type: ignore[no-untyped-def]
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("json", type=Path, help="report.json, or what --benchmark-json wrote")
    parser.add_argument("--out", type=Path, help="folder of the charts (default: that of the JSON)")
    options = parser.parse_args()
    content = json.loads(options.json.read_text(encoding="utf-8"))
    print(*draw(content, options.out or options.json.parent), sep="\n")


if __name__ == "__main__":
    main()
