"""Tasks for Label Studio, with the names as predictions to confirm or to correct.

https://labelstud.io/guide/predictions: images that lie on its machine are named by /data/local-files/?d= and a path
below LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT, here the folder above that of the images.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote
from xml.etree import ElementTree

from imc.files.whole import replacing
from imc.handover.labelled import Labelled
from imc.text import printable

FROM, TO = "class", "image"  # names of the tags in its interface


def write_label_studio(path: Path, images: Sequence[Labelled], classes: Sequence[str]) -> None:
    """Write the tasks, and beside them, as .xml, the interface with the classes to choose from."""
    root = document_root(images)
    tasks = []
    for image in images:
        assert image.path is not None
        place = quote(str(image.path.relative_to(root)).encode("utf-8", "surrogateescape"))
        predictions = []
        if image.name is not None:
            choice = {"from_name": FROM, "to_name": TO, "type": "choices", "value": {"choices": [image.name]}}
            predictions.append({"model_version": "imc", "score": image.confidence, "result": [choice]})
        data = {TO: f"/data/local-files/?d={place}", "file": printable(image.file)}
        tasks.append({"data": data, "predictions": predictions})
    view = ElementTree.Element("View")
    ElementTree.SubElement(view, "Image", name=TO, value=f"${TO}")
    choices = ElementTree.SubElement(view, "Choices", name=FROM, toName=TO, choice="single")
    for name in classes:
        ElementTree.SubElement(choices, "Choice", value=name)
    with replacing(path.with_suffix(".xml")) as file:
        file.write(ElementTree.tostring(view, encoding="unicode") + "\n")
    with replacing(path) as file:
        json.dump(tasks, file, indent=1)


def document_root(images: Sequence[Labelled]) -> Path:
    """The folder above the one that all images lie in."""
    folders = {image.path.parent for image in images if image.path is not None}
    base = next(iter(folders))
    while not all(folder.is_relative_to(base) for folder in folders):
        base = base.parent
    return base.parent
