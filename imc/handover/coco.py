"""Labels as COCO's JSON, for classification: images, categories, and annotations without boxes of the named images."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from imc.data.decode import read_header
from imc.data.folders import Skipped, read_in_threads
from imc.errors import UserError
from imc.files.whole import replacing
from imc.handover.labelled import Labelled


def write_coco(path: Path, images: Sequence[Labelled], classes: Sequence[str]) -> None:
    """Write the file; numbers of images and categories begin at 1, as COCO's do.

    Raises:
        UserError: an image cannot be read, for its width and height.
    """
    skipped = Skipped()
    paths = [str(image.path) for image in images]
    headers = dict(read_in_threads(lambda name: read_header(Path(name)), paths, "read sizes", skipped))
    if skipped.count:
        raise UserError(f"--to coco-classification needs the size of each image; {skipped}")
    numbers = {name: number for number, name in enumerate(classes, 1)}
    entries: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, image in enumerate(images, 1):
        header = headers[str(image.path)]
        entries.append({"id": number, "file_name": image.file, "width": header.width, "height": header.height})
        if image.name is not None:
            annotation = {"id": len(annotations) + 1, "image_id": number, "category_id": numbers[image.name]}
            annotations.append({**annotation, "score": image.confidence})
    categories = [{"id": number, "name": name} for name, number in numbers.items()]
    info = {"description": "clusters of images, named by a person"}
    content = {"info": info, "images": entries, "annotations": annotations, "categories": categories}
    with replacing(path) as file:
        json.dump(content, file, indent=1)
