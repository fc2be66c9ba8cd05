"""What lies in a folder of images and is none of them: hidden and system entries, and what this package wrote there."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection
from pathlib import Path

from imc.files.run_places import CONFIG

# Folders that systems and programs keep beside a user's files, by their names in lower case. Nearly all others begin
# with a dot. Not a rule on the first character: #sunset and @home are classes that people have.
SYSTEM = frozenset(
    (
        *("$recycle.bin", "recycler", "recycled", "system volume information", "thumbs.db", "config.msi"),  # Windows
        *("$winreagent", "$sysreset", "$extend", "$windows.~bt", "$windows.~ws", "msdownld.tmp"),
        *("__macosx", "network trash folder", "temporary items", "thevolumesettingsfolder"),  # macOS
        *("lost+found", "lost.dir"),  # Linux, Android
        *("@eadir", "#recycle", "#snapshot", "@tmp", "@sharebin", "@sharesnap", "@appstore"),  # Synology
        *("@recycle", "@recently-snapshot", "~snapshot", "files_trashbin", "files_versions"),  # QNAP, NetApp, Nextcloud
        *("__pycache__", "node_modules", "site-packages", "dist-packages"),
    )
)
RECOVERED = re.compile(r"found\.\d{3}")  # of Windows' check of a disk, numbered
# Libraries and previews of other programs: folders that hold each picture several times, at several sizes.
BUNDLES = (
    *(".photoslibrary", ".photolibrary", ".aplibrary", ".migratedphotolibrary", ".app"),  # macOS
    *(".lrdata", ".lrcat-data", ".cocatalog", ".cosessiondb"),  # Lightroom, Capture One
)
HIDDEN = "hidden or system {file or folder|files and folders}, read only where one is itself what is given"
OUTPUT = "of imc's own output"
OUTPUT_FIGURES = {"accuracy-by-images.png": "summary.json", "clusters-sweep.png": "clusters-sweep.json"}
OUTPUT_MARK = ".imc-output"
RUN_FIELDS = frozenset(("method", "data", "seed", "large_crops", "small_crops", "entropy_weight"))
CONFIG_LIMIT = 1 << 20  # bytes; a run's has 3 kB


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is hidden, or kept by a system or a program for itself."""
    lower = name.lower()
    return lower.startswith(".") or lower in SYSTEM or lower.endswith(BUNDLES) or bool(RECOVERED.fullmatch(lower))


def is_output_figure(name: str, names: Collection[str]) -> bool:
    """Whether a file beside these names is a figure over several runs; what else its folder holds may be anyone's."""
    return OUTPUT_FIGURES.get(name) in names


def is_output(folder: str | os.PathLike[str], names: Collection[str]) -> bool:
    """Whether a folder that holds these names is a run's, or another that this package filled with images."""
    return OUTPUT_MARK in names or (CONFIG in names and _is_run_config(Path(folder) / CONFIG))


def mark_output(folder: Path) -> None:
    """Mark a folder that this package fills with images, so that none of them is later read as a user's own.

    Raises:
        OSError: it cannot be written.
    """
    (folder / OUTPUT_MARK).write_text(
        "imc wrote the images here; it reads this folder only if that itself is given.\n", encoding="utf-8"
    )


def _is_run_config(path: Path) -> bool:
    try:
        if path.stat().st_size > CONFIG_LIMIT:
            return False
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and content.keys() >= RUN_FIELDS
