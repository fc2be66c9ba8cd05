"""Where runs lie and what their files are called, so that a message can name those that somebody may have meant."""

from __future__ import annotations

import contextlib
from pathlib import Path

from imc.text import shell_word

RUNS = Path("runs")
CONFIG = "config.json"
RESULT = "result.json"
FIGURES = "figures"  # a folder
METRICS, MODEL, CHECKPOINT = "metrics.jsonl", "model.safetensors", "checkpoint.pt"
LABELS = "labels.csv"
NAMES = "names.json"  # of the clusters, by imc label
NEIGHBOURS = "neighbours.npy"  # of a run on features
DATA = "data.json"  # the fingerprint of the images
FILES = (CONFIG, DATA, NEIGHBOURS, METRICS, CHECKPOINT, MODEL, LABELS, NAMES, "confusion.png", "gallery.png", RESULT)
NAMED = 3  # runs in a message


def is_run(folder: Path) -> bool:
    """Whether a folder looks like that of a run."""
    try:
        return (folder / CONFIG).is_file()
    except (OSError, ValueError):  # a name that is too long, or no name
        return False


def newest() -> str:
    """The end of a sentence that names the newest runs, those of several seeds too; empty where there are none."""
    names: list[str] = []
    with contextlib.suppress(OSError):  # a folder that cannot be read, or a run that was just removed
        configs = sorted(
            (*RUNS.glob(f"*/{CONFIG}"), *RUNS.glob(f"*/*/{CONFIG}")), key=lambda path: -path.stat().st_mtime
        )
        names = [shell_word(config.parent) for config in configs[:NAMED]]
    return f"; the newest runs here are {', '.join(names)}" if names else ""
