from __future__ import annotations

import dataclasses
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import imc.report
from imc.cli import main
from imc.data import Dataset, Images
from imc.errors import UserError
from imc.report import Options, fits_one_page, report, thumbnail_side
from imc.scores.evaluation import Outputs, outputs
from imc.text import visible

VOID = {"img", "meta", "link", "input"}


class Reader(HTMLParser):
    """Collects the tags and texts of a page, and checks that they nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.data = ""
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["script"]:
            self.data = self.data or data  # the first is what the others read
        elif self.open[-1:] != ["style"]:
            self.texts.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def run(self) -> dict[str, Any]:
        """What the scripts read."""
        content: dict[str, Any] = json.loads(self.data)
        return content

    @property
    def text(self) -> str:
        return " ".join(self.texts)


@pytest.fixture(scope="module")
def written(trained: Path, split_digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(shutil.copytree(trained, tmp_path_factory.mktemp("report") / "run"))
    return report(Options(str(folder)), split_digits)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other pages than ``written`` without what takes the longest."""
    monkeypatch.setattr("imc.pages.contents.plane", lambda features, seed: features[:, :2].numpy().copy())
    monkeypatch.setattr("imc.pages.run_page.evidence", lambda *_: iter(()))


@pytest.fixture(scope="module")
def reader(written: Path) -> Reader:
    return Reader(written.read_text())


def test_the_page_shows_the_run(reader: Reader) -> None:
    for heading in ("Clusters", "Doubtful images", "Map", "Classes", "The run", "Evidence"):
        assert heading in reader.texts
    for shown in ("192", "ACC", "embedding_dim", "imc-swav", "processor", "precision", "second choice", "Loss, nats"):
        assert shown in reader.text, shown
    assert re.search(r"Cluster \d+ ", reader.text)


def test_every_image_is_in_its_cluster_once(reader: Reader, written: Path, split_digits: Dataset) -> None:
    from imc.runs.model import load_run

    result = outputs(load_run(written.parent), split_digits.train.images)
    run = reader.run
    assert run["cluster"] == result.clusters.tolist()
    assert sorted(run["order"]) == list(range(192))
    start = 0
    for cluster, size in enumerate(run["sizes"]):
        members = run["order"][start : start + size]
        assert {run["cluster"][index] for index in members} <= {cluster}
        sure = result.confidence[members]
        assert (np.diff(sure) <= 0).all()
        start += size
    second = result.probabilities.sort(dim=1, descending=True)
    assert run["second"] == second.indices[:, 1].tolist()
    gaps = (second.values[:, 0] - second.values[:, 1]).numpy()[run["doubtful"]]
    assert (np.diff(gaps) >= 0).all()
    static = [text for text in reader.texts if re.fullmatch(r"image \d+", text)]
    assert {f"image {index}" for index in range(192)} <= set(static)  # where scripts are off


def test_sheets_hold_the_pictures_in_order(reader: Reader, split_digits: Dataset) -> None:
    import base64
    import io

    from PIL import Image

    run, sources = reader.run, [tag["src"] or "" for tag in reader.all("img") if tag.get("class") == "sheet"]
    assert len(sources) == len(run["sheets"])
    seen = 0
    for sheet, source in zip(run["sheets"], sources, strict=True):
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))), np.int64)
        for number in range(sheet["count"]):
            top, left = (run["side"] + run["gap"]) * np.array(divmod(number, sheet["columns"]))
            image = run["order"][sheet["first"] + number]
            expected = split_digits.train.images[image].numpy().astype(np.int64)
            shown = pixels[top : top + run["side"], left : left + run["side"]]
            assert np.abs(shown - expected).mean() < 12  # JPEG
            seen += 1
    assert seen == 192


def test_every_image_says_what_it_shows(reader: Reader) -> None:
    assert all(len(image["alt"] or "") > 8 for image in reader.all("img"))


def test_the_page_stands_alone(reader: Reader) -> None:
    addresses = [
        value or "" for _, attributes in reader.tags for name, value in attributes.items() if name in ("src", "href")
    ]
    assert all(address.startswith(("data:", "#")) for address in addresses)
    anchors = {attributes["id"] for _, attributes in reader.tags if "id" in attributes}
    assert {address[1:] for address in addresses if address.startswith("#")} <= anchors
    policy = next(meta["content"] for meta in reader.all("meta") if meta.get("http-equiv")) or ""
    assert policy.startswith("default-src 'none';")
    assert "http" not in policy
    assert "unsafe" not in policy
    assert "style" not in {name for _, attributes in reader.tags for name in attributes}  # which the policy forbids


def test_the_page_is_made_for_a_phone(reader: Reader) -> None:
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in reader.all("meta")


def test_without_labels_nothing_is_said_about_classes(run_copy: Path, split_digits: Dataset) -> None:
    files = tuple(f"dir/</script><{index}>\u202e.png" for index in range(192))
    train = dataclasses.replace(split_digits.train, labels=None, class_names=(), files=files)
    read = Reader(report(Options(str(run_copy)), dataclasses.replace(split_digits, train=train)).read_text())
    assert "ACC" not in read.texts
    assert "Classes" not in read.texts
    assert visible(files[7]) in read.texts
    assert read.run["files"] == list(map(visible, files))


def test_the_command_prints_the_page(
    run_copy: Path, split_digits: Dataset, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(imc.report, "other_data", lambda *_: split_digits)
    assert main(["report", str(run_copy)]) == 0
    assert capsys.readouterr().out == f"{run_copy / 'report.html'}\n"


def test_a_folder_that_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 2
    assert f"{tmp_path} is not the folder of a run" in capsys.readouterr().err


def test_empty_clusters_take_one_line(run_copy: Path, split_digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    def one_cluster(*arguments: object, **options: object) -> Outputs:
        found = outputs(*arguments, **options)  # type: ignore[arg-type]
        return found._replace(probabilities=torch.eye(found.probabilities.shape[1])[[3] * len(found.probabilities)])

    monkeypatch.setattr(imc.report, "outputs", one_cluster)
    text = report(Options(str(run_copy)), split_digits).read_text()
    assert "Without images: 0, 1, 2, 4" in text
    assert text.count('class="cluster"') == 1


def test_features_without_pictures_have_a_page_too(run_copy: Path, split_digits: Dataset, monkeypatch: Any) -> None:
    rows = split_digits.train.images.flatten(1).float()
    known = Images("rows", rows, None, (), files=tuple(f"sound {index}.wav" for index in range(len(rows))))
    monkeypatch.setattr(imc.report, "clustered", lambda config, data: known)
    probabilities = torch.eye(10)[split_digits.train.labels] * 0.5 + 0.05
    monkeypatch.setattr(imc.report, "outputs", lambda *_, **__: Outputs(rows, probabilities, torch.empty(192, 0)))
    monkeypatch.setattr("imc.pages.run_page.prototype_winners", lambda *_: None)
    read = Reader(report(Options(str(run_copy)), split_digits).read_text())
    assert read.run["sheets"] == []
    assert "sound 17.wav" in read.texts
    assert "Evidence" not in read.texts


@pytest.mark.parametrize("images", [1, 2, 3])
def test_few_images(images: int, run_copy: Path, split_digits: Dataset) -> None:
    train = dataclasses.replace(
        split_digits.train, images=split_digits.train.images[:images], labels=split_digits.train.labels[:images]
    )
    read = Reader(report(Options(str(run_copy)), dataclasses.replace(split_digits, train=train)).read_text())
    assert read.run["near"] == images - 1
    assert len(read.run["map"]["x"]) == images


def test_many_images_make_a_folder_of_pages(
    run_copy: Path, split_digits: Dataset, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    single = report(Options(str(run_copy)), split_digits)
    monkeypatch.setattr(imc.report, "IMAGES_OF_A_PAGE", 100)
    index = report(Options(str(run_copy)), split_digits)
    assert index == run_copy / "report" / "index.html"
    assert "192 images: a folder of pages" in capsys.readouterr().err
    assert not single.exists()  # of which nothing was left behind to look at by mistake
    read = Reader(index.read_text())
    for sheet in read.run["sheets"]:
        assert (index.parent / sheet["src"]).read_bytes()[:2] == b"\xff\xd8"
    pages = [tag.get("href") or "" for tag in read.all("a") if (tag.get("href") or "").startswith("clusters/")]
    assert len(pages) == sum(size > 0 for size in read.run["sizes"])
    listed = [text for page in pages for text in Reader((index.parent / page).read_text()).texts]
    assert {f"image {index}" for index in range(192)} <= set(listed)
    monkeypatch.setattr(imc.report, "IMAGES_OF_A_PAGE", 5000)
    report(Options(str(run_copy)), split_digits)
    assert not index.parent.exists()


def test_a_folder_of_ones_own_is_left_alone(
    run_copy: Path, split_digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = run_copy / "report" / "mine.txt"
    own.parent.mkdir()
    own.touch()
    report(Options(str(run_copy)), split_digits)
    monkeypatch.setattr(imc.report, "IMAGES_OF_A_PAGE", 100)
    with pytest.raises(UserError, match="holds what imc report did not write"):
        report(Options(str(run_copy)), split_digits)
    assert own.exists()


@pytest.mark.parametrize("images", [100, 5000])
def test_what_fails_leaves_the_page_that_was_there(
    images: int, run_copy: Path, split_digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(imc.report, "IMAGES_OF_A_PAGE", images)
    page = report(Options(str(run_copy)), split_digits)
    before = {path: path.read_bytes() for path in run_copy.rglob("*") if path.is_file()}

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("imc.pages.run_page.for_scripts", interrupted)
    with pytest.raises(KeyboardInterrupt):
        report(Options(str(run_copy)), split_digits)
    assert page.exists()
    assert {path: path.read_bytes() for path in run_copy.rglob("*") if path.is_file()} == before


def test_the_size_of_thumbnails() -> None:
    assert thumbnail_side(None, 500, 4000) == 160
    assert thumbnail_side(None, 500, 32) == 32  # none is enlarged
    assert thumbnail_side(64, 500, 4000) == 64
    assert thumbnail_side(None, 4000, 4000) == 128
    assert fits_one_page(5000, 32)
    assert not fits_one_page(50_000, 32)
    assert fits_one_page(500, 160)
