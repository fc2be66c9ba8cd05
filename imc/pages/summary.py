"""Several runs as one table: mean and standard deviation of every score, and accuracy against training images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from imc.files.json import write_json
from imc.metrics import mean_and_deviation
from imc.pages import figures
from imc.text import counted

SUMMARY = "summary.json"
COLUMNS = {"acc": "ACC", "nmi": "NMI", "ari": "ARI", "knn": "kNN", "linear_probe": "linear"}


def summarise(evaluations: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Every score's mean and sample standard deviation over the runs.

    Args:
        evaluations: what :func:`imc.evaluate.evaluate` returned for each.

    Returns:
        ``runs``, their folders, and ``scores``: for each split, and ``encoder``, and each score its ``mean``,
        ``deviation`` and ``values``, one per run. A score that a run lacks is left out.
    """
    values: dict[str, dict[str, list[float]]] = {}
    for evaluation in evaluations:
        for name, row in {**evaluation["splits"], "encoder": evaluation["encoder"] or {}}.items():
            for score in COLUMNS:
                if row.get(score) is not None:
                    values.setdefault(name, {}).setdefault(score, []).append(row[score])
    scores: dict[str, dict[str, Any]] = {name: {} for name in values}
    for name, row in values.items():
        for score, numbers in row.items():
            mean, deviation = mean_and_deviation(numbers)
            scores[name][score] = {"mean": mean, "deviation": deviation, "values": numbers}
    return {"runs": [evaluation["run"] for evaluation in evaluations], "scores": scores}


def summary_table(summary: dict[str, Any]) -> str:
    """A summary as text, one line per split."""
    lines = [f"{counted(len(summary['runs']), 'run{s}')}, mean and standard deviation"]
    for name, row in summary["scores"].items():
        numbers = (f"{COLUMNS[score]} {each['mean']:.3f} +- {each['deviation']:.3f}" for score, each in row.items())
        lines.append(f"{name:10}{'   '.join(numbers)}")
    if not summary["scores"]:
        lines.append("no scores: the data set has no labels")
    return "\n".join(lines)


def write_summary(folder: Path, summary: dict[str, Any], evaluations: Sequence[dict[str, Any]]) -> list[Path]:
    """Write summary.json and, where the runs differ in their number of training images, the figure of that.

    Returns:
        The files written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / SUMMARY, summary)
    written = [folder / SUMMARY]
    split = "test" if all("test" in evaluation["splits"] for evaluation in evaluations) else "train"
    points = [(evaluation["training_images"], evaluation["splits"][split]["acc"]) for evaluation in evaluations]
    if len({images for images, _ in points}) > 1 and all(accuracy is not None for _, accuracy in points):
        written.append(folder / "accuracy-by-images.png")
        figures.save_accuracy_by_images(written[-1], points, f"{evaluations[0]['data']}: accuracy on the {split} split")
    return written
