"""Labels for FiftyOne, as its FiftyOneImageClassificationDataset: each image by its absolute path, so that none moves.

fiftyone.Dataset.from_dir(labels_path="labels-fiftyone.json",
                          dataset_type=fiftyone.types.FiftyOneImageClassificationDataset)
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from imc.files.whole import replacing
from imc.handover.labelled import Labelled
from imc.text import printable


def write_fiftyone(path: Path, images: Sequence[Labelled], classes: Sequence[str]) -> None:
    """Write the file; an image without a name has no label."""
    numbers = {name: number for number, name in enumerate(classes)}
    labels: dict[str, Any] = {}
    for image in images:
        target = None
        if image.name is not None:
            attributes = {"cluster": image.columns["cluster"]}
            target = {"label": numbers[image.name], "confidence": image.confidence, "attributes": attributes}
        labels[printable(str(image.path))] = target
    with replacing(path) as file:
        json.dump({"classes": list(classes), "labels": labels}, file, indent=1)
