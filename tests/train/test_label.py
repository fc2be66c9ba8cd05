from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from imc.cli import main
from imc.data import Dataset
from imc.errors import UserError
from imc.export import Options as ExportOptions
from imc.export import export
from imc.files.run_places import LABELS, MODEL, NAMES
from imc.label import FORMATS, Options, label
from imc.predict import Options as PredictOptions
from imc.predict import predict
from imc.runs.names import Names, digest_of_images, digest_of_model


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for index in range(6):
        name = f"more/{index}.png" if index % 2 else f"{index}.png"
        Image.new("L", (8, 8), 40 * index).save(folder / name)
    return folder


@pytest.fixture
def run(trained: Path, photos: Path, tmp_path: Path) -> Path:
    """The folder of a run that found cluster index % 3 for the images of ``photos``; of its files those that count."""
    folder = tmp_path / "run"
    folder.mkdir()
    shutil.copy(trained / MODEL, folder)
    config = json.loads((trained / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "data": str(photos)}))
    lines = [f"{i},{i % 3},0.9,{f'more/{i}.png' if i % 2 else f'{i}.png'}" for i in range(6)]
    (folder / LABELS).write_text("\n".join(["index,cluster,confidence,file", *lines]) + "\n")
    return folder


def write_names(run: Path, **said: Any) -> Path:
    files = [row["file"] for row in rows(run / LABELS)]
    names = Names(10, digest_of_model(run), digest_of_images(files, len(files)), **said)
    path = run.parent / "names.json"
    path.write_text(json.dumps(names.to_json()))
    return path


def test_names_are_applied_and_kept(run: Path) -> None:
    before = rows(run / LABELS)
    names = write_names(run, names={0: "dogs", 1: "cats"}, merged={2: 0}, moved={4: 0})
    result = label(Options(str(run), str(names)))
    after = rows(run / LABELS)
    assert [row["name"] for row in after] == ["dogs", "cats", "dogs", "dogs", "dogs", "dogs"]
    assert [{key: value for key, value in row.items() if key != "name"} for row in after] == before
    assert result["classes"] == {"dogs": 5, "cats": 1}
    assert json.loads((run / NAMES).read_text()) == json.loads(names.read_text())
    assert label(Options(str(run), str(write_names(run, wrong=frozenset([1])))))["unnamed"] == 2
    assert [row["name"] for row in rows(run / LABELS)][:3] == ["cluster 0", "", "cluster 2"]


def test_the_command_says_what_it_did(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["label", str(run), str(write_names(run, names={0: "dogs"}, wrong=frozenset([1])))]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == ["dogs: 2 images", "cluster 2: 2 images", "without a name: 2 images"]
    assert lines[3:] == [str(run / LABELS), str(run / NAMES)]


def test_images_are_sorted_by_name(run: Path, photos: Path, tmp_path: Path) -> None:
    names = write_names(run, names={0: "dogs"}, merged={1: 0}, wrong=frozenset([2]))
    label(Options(str(run), str(names), sort_into=str(tmp_path / "sorted")))
    copies = {str(path.relative_to(tmp_path / "sorted")) for path in (tmp_path / "sorted").rglob("*.png")}
    assert copies == {
        *("dogs/0.png", "dogs/more/1.png", "dogs/more/3.png", "dogs/4.png"),
        *("no group/2.png", "no group/more/5.png"),
    }
    moved = photos.rename(tmp_path / "moved")
    with pytest.raises(UserError, match="6 of 6 images are no longer in"):
        label(Options(str(run), sort_into=str(tmp_path / "again")))
    label(Options(str(run), sort_into=str(tmp_path / "again"), data=str(moved), link=True))
    assert all(path.is_symlink() for path in (tmp_path / "again").rglob("*.png"))


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "parquet"])
def test_every_format_has_its_place(name: str, run: Path, tmp_path: Path) -> None:
    result = label(Options(str(run), to=name))
    assert result["files"] == [str(run / FORMATS[name][0])]
    assert (run / FORMATS[name][0]).exists()
    other = tmp_path / "elsewhere"
    assert label(Options(str(run), to=name, out=str(other)))["files"] == [str(other)]
    if name != "imagefolder":
        with pytest.raises(UserError, match="exists already"):
            label(Options(str(run), to=name, out=str(other)))
        label(Options(str(run), to=name, out=str(other), overwrite=True))


def test_predictions_and_exports_have_the_names(run: Path, photos: Path, tmp_path: Path) -> None:
    every = {cluster: f"name {cluster}" for cluster in range(1, 10)}
    label(Options(str(run), str(write_names(run, names=every, wrong=frozenset([0])))))
    predict(PredictOptions(str(run), (str(photos),), out=str(tmp_path / "out.csv"), sort_into=str(tmp_path / "sorted")))
    predicted = rows(tmp_path / "out.csv")
    assert len(predicted) == 6
    for row in predicted:
        name = every.get(int(row["cluster"]), "")
        assert row["name"] == name
        assert (tmp_path / "sorted" / (name or "no group") / row["file"]).exists()
    (path,) = export(ExportOptions(str(run), format="torch"))["files"]
    extra = {"imc.json": ""}
    with Path(path).open("rb") as file:
        torch.export.load(file, extra_files=extra)
    assert json.loads(extra["imc.json"])["classes"] == [None, *every.values()]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ([], "nothing to do"),
        (["nowhere.json"], "nowhere.json cannot be read"),
        (["--to", "yolo"], "accepted are csv, parquet, label-studio, fiftyone, imagefolder, coco-classification"),
        (["--out", "x"], "--out is the place of what --to writes"),
        (["--to", "csv", "--link"], "--link is for --sort-into"),
        (["--sort-into", "{run}"], "--sort-into must be a new or an empty folder"),
        (["--sort-into", "{photos}/sorted"], "whose images it would add to"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    flags: list[str], says: str, run: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["label", str(run), *(flag.format(run=run, photos=photos) for flag in flags)]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


def test_moved_images_of_another_set_are_refused(run: Path) -> None:
    names = write_names(run, moved={0: 1})
    before = (run / LABELS).read_text()
    (run / LABELS).write_text(before.replace("more/5.png", "more/6.png"))
    with pytest.raises(UserError, match="moves 1 image of other images than those in labels"):
        label(Options(str(run), str(names)))
    assert not (run / NAMES).exists()


def test_images_in_no_files_are_for_tables_alone(run: Path, split_digits: Dataset) -> None:
    text = "\n".join(line.rpartition(",")[0] for line in (run / LABELS).read_text().splitlines()) + "\n"
    (run / LABELS).write_text(text)
    with pytest.raises(UserError, match="accepted are csv and parquet"):
        label(Options(str(run), to="fiftyone"))
    assert label(Options(str(run), to="csv"))["images"] == 6


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "index,cluster,confidence\n0,x,0.5\n", "index,cluster\n0,1\n"])
def test_a_damaged_labels_csv_is_one_sentence(text: str, run: Path) -> None:
    (run / LABELS).write_text(text)
    with pytest.raises(UserError, match=r"labels\.csv (is damaged|holds no image)"):
        label(Options(str(run), to="csv"))
