"""What the page of a run says about its images, as its template and its scripts take it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from imc.data import Images
from imc.pages.similar import find_neighbours, nearly_same
from imc.pages.thumbnails import GAP, Sheet
from imc.runs.names import Names, digest_of_images
from imc.scores.evaluation import PLANE_IMAGES, UNSURE, Outputs, evenly_spaced, plane
from imc.text import visible

DOUBTFUL, LEAST_DOUBTFUL = 2000, 24  # images in the list, at most and at least
STATIC = 24  # of them in the table that is read where scripts are off
PIXELATED = 48  # pictures up to this side are shown with visible pixels


@dataclass(frozen=True)
class Contents:
    """The images of a page.

    Attributes:
        images: of the data set.
        result: what the model says about them.
        second: the second choice of each [M]; -1 where there is a single cluster.
        second_confidence: its probability [M].
        order: all images [M], cluster after cluster, the most certain first.
        sizes: of the clusters [C].
        doubtful: the images between whose first and second choice the model hardly decides, those first.
        neighbours: int32 [M, k].
        groups: of images that are nearly the same.
        placed, points: of the map: images, and where they lie, [N, 2] of 0..1.
    """

    images: Images
    result: Outputs
    second: NDArray[np.int64]
    second_confidence: NDArray[np.float32]
    order: NDArray[np.int64]
    sizes: NDArray[np.int64]
    doubtful: NDArray[np.int64]
    neighbours: NDArray[np.int32]
    groups: list[list[int]]
    placed: NDArray[np.int64]
    points: NDArray[np.float32]

    def members(self) -> dict[int, NDArray[np.int64]]:
        """The images of each cluster that has some, the most certain first."""
        parts = np.split(self.order, np.cumsum(self.sizes)[:-1])
        return {cluster: part for cluster, part in enumerate(parts) if len(part)}

    @property
    def kind(self) -> str:
        """What one of them is called: of features too an image, where it is known."""
        return self.images.sample if self.images.shown is None else "image"

    def file(self, index: int) -> str:
        """What an image is called."""
        images = self.images
        return f"{self.kind} {index}" if images.files is None else visible(images.files[index])


def collect(images: Images, result: Outputs, seed: int) -> Contents:
    """All that a page says about images; the neighbours and the map take the longest."""
    neighbours, cosines = find_neighbours(result.features, seed)
    placed = evenly_spaced(len(images.images), PLANE_IMAGES)
    points = plane(result.features[placed], seed)
    points -= points.min(axis=0)
    points /= np.maximum(points.max(axis=0), 1e-12)
    second, second_confidence, order, sizes, doubtful = _ranked(result)
    return Contents(
        images=images,
        result=result,
        second=second,
        second_confidence=second_confidence,
        order=order,
        sizes=sizes,
        doubtful=doubtful,
        neighbours=neighbours,
        groups=nearly_same(neighbours, cosines),
        placed=placed.numpy(),
        points=points,
    )


def _ranked(result: Outputs) -> tuple[NDArray[Any], ...]:
    """Second choices and their probabilities, order, sizes, and doubtful images; see :class:`Contents`."""
    clusters, confidence = result.clusters, result.confidence
    total = result.probabilities.shape[1]
    if total > 1:
        best = result.probabilities.topk(2, dim=1)
        second, second_confidence = best.indices[:, 1].numpy(), best.values[:, 1].numpy()
        unsure = int((confidence < UNSURE).sum())
        shown = min(len(clusters), DOUBTFUL, max(LEAST_DOUBTFUL, unsure))
        doubtful = np.argsort(confidence - second_confidence, kind="stable")[:shown]
    else:
        second, second_confidence = np.full(len(clusters), -1), np.zeros(len(clusters), np.float32)
        doubtful = np.empty(0, np.int64)
    order = np.lexsort((-confidence, clusters))
    return second, second_confidence, order, np.bincount(clusters, minlength=total), doubtful


def for_scripts(
    contents: Contents,
    names: Names,
    *,
    model: str,
    command: str,
    originals: Sequence[Path] | None,
    sheets: Sequence[tuple[Sheet, str]],
    side: int,
) -> dict[str, Any]:
    """What the scripts of a page read, as JSON takes it: probabilities in thousandths.

    Args:
        contents: of the page.
        names: those given before.
        model: its digest.
        command: the run's folder as a word of a command.
        originals: the file of each image.
        sheets: each, and its address; an empty one for a sheet that lies in the page.
        side: of a thumbnail, pixels.
    """
    images, result = contents.images, contents.result
    files = images.files
    return {
        "model": model,
        "images": digest_of_images(files, len(images.images)),
        "names": names.said(),
        "command": command,
        "sample": contents.kind,
        "sizes": contents.sizes.tolist(),
        "order": contents.order.tolist(),
        "cluster": result.clusters.tolist(),
        "confidence": _thousandths(result.confidence),
        "second": contents.second.tolist(),
        "secondConfidence": _thousandths(contents.second_confidence),
        "files": None if files is None else [visible(file) for file in files],
        **_links(originals),
        "labels": None if images.labels is None else images.labels.tolist(),
        "classes": [visible(name) for name in images.class_names],
        "doubtful": contents.doubtful.tolist(),
        "near": contents.neighbours.shape[1],
        "neighbours": contents.neighbours.flatten().tolist(),
        "duplicates": contents.groups,
        "map": {
            "images": contents.placed.tolist(),
            "x": _thousandths(contents.points[:, 0]),
            "y": _thousandths(contents.points[:, 1]),
        },
        "side": side,
        "gap": GAP,
        "pixelated": PIXELATED,
        "sheets": [
            {"first": sheet.first, "count": sheet.count, "columns": sheet.columns, **({"src": src} if src else {})}
            for sheet, src in sheets
        ],
    }


def _thousandths(values: NDArray[np.floating[Any]]) -> list[int]:
    return np.rint(values * 1000).astype(np.int64).tolist()  # type: ignore[no-any-return]


def _links(originals: Sequence[Path] | None) -> dict[str, Any]:
    """The addresses of the originals, what all of them begin with apart."""
    if not originals:
        return {"base": "", "links": None}
    folders = {path.parent for path in originals}
    base = next(iter(folders))
    while not all(folder.is_relative_to(base) for folder in folders):
        base = base.parent
    links = [quote(str(path.relative_to(base)).encode("utf-8", "surrogateescape")) for path in originals]
    return {"base": base.as_uri().rstrip("/") + "/", "links": links}
