"""A data set as a frozen encoder sees it: its features as the samples, its images beside them for the pages."""

from __future__ import annotations

import functools
import itertools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from imc.data import Dataset, Images, load
from imc.features.embedding import Embedded, embed_images
from imc.features.views import split_views
from imc.models.frozen import FrozenEncoder
from imc.models.named import load_encoder

PICTURE_SIDE = 64  # of what pages show of images in files, pixels


@functools.lru_cache(maxsize=1)
def frozen_encoder(name: str, weights: str | None, side: int | None, device: str) -> FrozenEncoder:
    """See :func:`imc.models.named.load_encoder`; the last one is kept, since a run asks for it several times."""
    return load_encoder(name, weights, side=side, device=device)


def encoded(
    source: str,
    encoder: FrozenEncoder,
    *,
    root: Path | None = None,
    labels_from_folders: bool = False,
    download: bool = False,
    pixel_bits: int | None = None,
    views: int | None = None,
) -> Dataset:
    """A data set whose samples are an encoder's features of its images.

    Args:
        source, root, labels_from_folders, download, pixel_bits: see :func:`imc.data.load`.
        encoder: see :func:`frozen_encoder`.
        views: of each image, see :func:`imc.features.embedding.embed_images`.

    Raises:
        UserError: see :func:`imc.features.embedding.embed_images`.
    """
    options = {"root": root, "labels_from_folders": labels_from_folders, "pixel_bits": pixel_bits}
    found = embed_images(
        source,
        encoder,
        download=download,
        views=views,
        picture_side=PICTURE_SIDE,
        **options,  # type: ignore[arg-type]
    )
    shown = _pictures(source, found, options)
    parts: dict[str, Images] = {}
    start = 0
    for name, count in found.splits.items():
        if name in ("train", "test") and count:
            parts[name] = _split(found, slice(start, start + count), shown.get(name))
        start += count
    seen = f"trained on {encoder.trained_on}" if encoder.trained_on else ""
    note = "; ".join(filter(None, [found.note, f"seen by {encoder.name}", seen]))
    return Dataset(found.name, parts["train"], parts.get("test"), None, (), (), note)


def _pictures(source: str, found: Embedded, options: dict[str, Any]) -> dict[str, Tensor | None]:
    """What pages show of each split; of images in files small pictures, which are read again where memory was short."""
    ends = list(itertools.accumulate(found.splits.values()))
    rows = {name: slice(end - count, end) for (name, count), end in zip(found.splits.items(), ends, strict=True)}
    if found.pictures is not None:
        return {name: found.pictures[place] for name, place in rows.items()}
    data = load(source, image_size=PICTURE_SIDE if found.in_files else None, **options)
    splits = {"train": data.train, "test": data.test}
    return {name: _in_order(split, found.files[rows[name]]) for name, split in splits.items() if split is not None}


def _split(found: Embedded, rows: slice, shown: Tensor | None) -> Images:
    files = found.files[rows]
    labels = None if found.labels is None else found.labels[rows]
    first_view, views = split_views(torch.from_numpy(found.features[rows]))
    known = files if found.in_files else None
    return Images(
        found.name, first_view, labels, found.class_names, known, found.pixel_bits, pictures=shown, views=views
    )


def _in_order(pictures: Images, files: tuple[str, ...]) -> Tensor | None:
    """The pictures of these files; None where some are not there."""
    if pictures.files is None or pictures.files == files:
        return pictures.images if len(pictures.images) == len(files) else None
    place = {name: number for number, name in enumerate(pictures.files)}
    if not all(name in place for name in files):
        return None
    return pictures.images[torch.tensor([place[name] for name in files])]
