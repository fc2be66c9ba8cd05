"""What other programs get: read back by their own libraries where these are installed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from imc.data.sorting import folders_of
from imc.files.csv import read_rows
from imc.handover.coco import write_coco
from imc.handover.fiftyone import write_fiftyone
from imc.handover.image_folders import write_folders
from imc.handover.label_studio import write_label_studio
from imc.handover.labelled import Labelled
from imc.handover.tables import write_csv, write_parquet

FILES = ("a.png", "more/b.png", "=c.png", 'd <&" é.png', "\u202ee.png", "more/f\n.png")
NAMES = ("dogs", "cats & <b>", None, "dogs", "日本語", "a/b")
CLASSES = ["dogs", "cats & <b>", "日本語", "a/b"]


@pytest.fixture
def images(tmp_path: Path) -> list[Labelled]:
    found = []
    for index, (file, name) in enumerate(zip(FILES, NAMES, strict=True)):
        path = tmp_path / "photos" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4 + index, 8, 3), 9 * index, np.uint8)).save(path)
        columns: dict[str, Any] = {"index": index, "cluster": index % 3, "confidence": f"{0.5 + index / 20:.6f}"}
        found.append(Labelled({**columns, "file": file, "label": index - 1}, name, path))
    return found


def test_csv(images: list[Labelled], tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", images, CLASSES)
    rows = list(read_rows(tmp_path / "a.csv"))
    assert [row["name"] or None for row in rows] == list(NAMES)
    assert [row["label"] for row in rows] == ["-1", "0", "1", "2", "3", "4"]
    assert rows[2]["file"] == "./=c.png"


def test_parquet_read_by_pyarrow(images: list[Labelled], tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    write_parquet(tmp_path / "a.parquet", images, CLASSES)
    table = parquet.read_table(tmp_path / "a.parquet")
    assert table["name"].to_pylist() == list(NAMES)
    assert table["file"].to_pylist() == list(FILES)
    assert table["cluster"].to_pylist() == [0, 1, 2, 0, 1, 2]
    assert table["confidence"].to_pylist() == [0.5, 0.55, 0.6, 0.65, 0.7, 0.75]
    assert table["path"].to_pylist() == [str(image.path) for image in images]


def test_coco_read_by_pycocotools(images: list[Labelled], tmp_path: Path) -> None:
    coco = pytest.importorskip("pycocotools.coco", reason="pycocotools is not installed")
    write_coco(tmp_path / "a.json", images, CLASSES)
    read = coco.COCO(str(tmp_path / "a.json"))
    for name in CLASSES:
        (category,) = read.getCatIds(catNms=[name])
        files = {read.loadImgs(image)[0]["file_name"] for image in read.getImgIds(catIds=[category])}
        assert files == {file for file, own in zip(FILES, NAMES, strict=True) if own == name}
    sizes = [(each["width"], each["height"]) for each in read.loadImgs(sorted(read.getImgIds()))]
    assert sizes == [(8, 4 + index) for index in range(6)]


def test_coco_is_whole(images: list[Labelled], tmp_path: Path) -> None:
    write_coco(tmp_path / "a.json", images, CLASSES)
    content = json.loads((tmp_path / "a.json").read_text())
    ids = {each["id"] for each in content["images"]}
    assert ids == set(range(1, 7))
    assert [each["name"] for each in content["categories"]] == CLASSES
    assert {each["image_id"] for each in content["annotations"]} == ids - {3}


def test_label_studio(images: list[Labelled], tmp_path: Path) -> None:
    write_label_studio(tmp_path / "a.json", images, CLASSES)
    tasks = json.loads((tmp_path / "a.json").read_text())
    assert len(tasks) == len(images)
    for task, image in zip(tasks, images, strict=True):
        place = unquote(task["data"]["image"].removeprefix("/data/local-files/?d="))
        assert tmp_path / place == image.path
        assert len(task["predictions"]) == (image.name is not None)
        for prediction in task["predictions"]:
            assert prediction["score"] == image.confidence
            assert prediction["result"][0]["value"] == {"choices": [image.name]}
    view = ElementTree.parse(tmp_path / "a.xml").getroot()
    assert [choice.get("value") for choice in view.iter("Choice")] == CLASSES


def test_label_studio_accepted_by_its_sdk(images: list[Labelled], tmp_path: Path) -> None:
    sdk = pytest.importorskip("label_studio_sdk.label_interface", reason="label-studio-sdk is not installed")
    write_label_studio(tmp_path / "a.json", images, CLASSES)
    interface = sdk.LabelInterface((tmp_path / "a.xml").read_text())
    for task in json.loads((tmp_path / "a.json").read_text()):
        assert interface.validate_task({"data": task["data"]})  # with predictions it fails in its own code
        for prediction in task["predictions"]:
            assert interface.validate_prediction(prediction)


def test_fiftyone(images: list[Labelled], tmp_path: Path) -> None:
    write_fiftyone(tmp_path / "a.json", images, CLASSES)
    content = json.loads((tmp_path / "a.json").read_text())
    assert content["classes"] == CLASSES
    # As its importer reads them: a key that is an absolute path is the image, an integer the number of a class.
    for image in images:
        target = content["labels"].pop(str(image.path))
        assert (None if target is None else content["classes"][target["label"]]) == image.name
        assert target is None or target["confidence"] == image.confidence
    assert content["labels"] == {}


@pytest.mark.parametrize("link", [False, True])
def test_folders(link: bool, images: list[Labelled], tmp_path: Path) -> None:
    write_folders(tmp_path / "sorted", images, link=link)
    folders = folders_of(NAMES)
    for image in images:
        copy = tmp_path / "sorted" / folders[image.name] / image.file
        assert image.path is not None
        assert copy.read_bytes() == image.path.read_bytes()
        assert copy.is_symlink() == link
    write_folders(tmp_path / "named", images, unnamed=False)
    assert not (tmp_path / "named" / folders[None]).exists()


def test_a_path_from_elsewhere_stays_inside(images: list[Labelled], tmp_path: Path) -> None:
    path = images[0].path
    assert path is not None
    away = [Labelled({**images[0].columns, "file": file}, "dogs", path) for file in (str(path), "../../a.png")]
    before = sorted(path.parent.rglob("*"))
    write_folders(tmp_path / "deep" / "sorted", away)
    assert sorted(path.parent.rglob("*")) == before
    copies = {str(each.relative_to(tmp_path / "deep" / "sorted")) for each in (tmp_path / "deep").rglob("*.png")}
    assert copies == {"dogs/a.png", "dogs/a-2.png"}


def test_names_of_folders_are_safe_and_differ(tmp_path: Path) -> None:
    names = ["a/b", "a:b", "A_B", "..", ".hidden", "no group", "x" * 300, "trail. ", "日本語", None, "con\x1b"]
    folders = folders_of(names)
    assert len({folder.casefold() for folder in folders.values()}) == len(names)
    for folder in folders.values():
        (tmp_path / folder).mkdir()
        assert not folder.startswith(".")
    assert len(list(tmp_path.iterdir())) == len(names)
