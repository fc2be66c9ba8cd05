"""Curves as a page draws them: lines in a square of 100 by 100, which is stretched, beside numbers that are text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

NOT_LOSSES = {"loss", "epoch", "lr", "seconds", "images_per_second"}
POINTS = 400  # of a line, beyond which some are left out


@dataclass(frozen=True)
class Line:
    """A line: its name, ``x,y`` pairs for SVG, and its last value."""

    name: str
    points: str
    last: str


@dataclass(frozen=True)
class Chart:
    """Lines over one axis.

    Attributes:
        title: what is drawn.
        lines: one or several.
        lowest, highest: values at the lower and the upper edge.
        first, last: what the left and the right edge stand for.
    """

    title: str
    lines: tuple[Line, ...]
    lowest: str
    highest: str
    first: str
    last: str


def chart(title: str, first: str, last: str, series: Mapping[str, Sequence[float]]) -> Chart | None:
    """A chart of several series of numbers; None where none of them is finite. NaN and infinity are left out."""
    finite = [value for values in series.values() for value in values if math.isfinite(value)]
    if not finite:
        return None
    low, high = min(finite), max(finite)
    span = high - low or 1.0
    lines = []
    for name, values in series.items():
        width, step = max(1, len(values) - 1), -(-len(values) // POINTS)
        kept = [(place, values[place]) for place in sorted({*range(0, len(values), step), len(values) - 1})]
        drawn = ((place / width, (high - value) / span) for place, value in kept if math.isfinite(value))
        points = " ".join(f"{100 * x:.4g},{100 * y:.4g}" for x, y in drawn)
        lines.append(Line(name.replace("_", " "), points, number(values[-1])))
    return Chart(title, tuple(lines), number(low), number(high), first, last)


def curves(metrics: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """What metrics.jsonl holds, over the epochs."""
    if len(metrics) < 2:
        return []
    use = [name for name in metrics[-1] if name.endswith("_use")]
    terms = [name for name in metrics[-1] if not (name in NOT_LOSSES or "_use" in name or name.endswith("perplexity"))]
    panels = (
        ("Loss, nats", ["loss", *terms]),
        ("Share of the prototypes and clusters in use", use),
        ("Prototypes that are effectively in use", [name for name in metrics[-1] if name.endswith("perplexity")]),
        ("Learning rate at the end of the epoch", ["lr"]),
    )
    ends = (f"epoch {metrics[0]['epoch']}", f"epoch {metrics[-1]['epoch']}")
    drawn = (chart(title, *ends, {name: [line[name] for line in metrics] for name in names}) for title, names in panels)
    return [each for each in drawn if each is not None]


def number(value: float) -> str:
    """A number with as many digits as are read at a glance."""
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"
