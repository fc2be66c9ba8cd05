from __future__ import annotations

import base64
import dataclasses
import io
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from imc.cli import main
from imc.data import Dataset
from imc.pages import page
from imc.report import Options, report
from imc.scores.evaluation import Outputs, outputs

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Reader(HTMLParser):
    """Collects the tags of a page, and checks that they nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("img", "meta", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def written(trained: Path, split_digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(shutil.copytree(trained, tmp_path_factory.mktemp("report") / "run"))
    return report(Options(str(folder)), split_digits)


def test_the_page_shows_the_run(written: Path) -> None:
    text = written.read_text()
    for heading in ("Clusters", "Classes", "Embeddings", "Evidence", "Training", "Use", "Configuration"):
        assert f">{heading}</h2>" in text
    for shown in ("192", "ACC", "most certain", "embedding_dim", "imc-swav", "processor", "class 3"):
        assert shown in text
    assert re.search(r"Cluster \d+: ", text)
    figures = {path.name for path in (written.parent / "figures").iterdir()}
    curves = {"curves.png", "cluster-use.png", "prototype-use.png"}
    assert figures == {"confusion-train.png", "embeddings.png", "heatmaps.png", *curves}


def test_every_image_says_what_it_shows(written: Path) -> None:
    images = Reader(written.read_text()).all("img")
    assert len(images) > 100
    assert all(len(image["alt"] or "") > 10 for image in images)


def test_the_page_stands_alone(written: Path) -> None:
    reader = Reader(written.read_text())
    addresses = [
        value or "" for _, attributes in reader.tags for name, value in attributes.items() if name in ("src", "href")
    ]
    assert all(address.startswith(("data:", "#")) for address in addresses)
    assert not re.search(r"@import|url\(|<script", written.read_text())
    anchors = {attributes["id"] for _, attributes in reader.tags if "id" in attributes}
    assert {address[1:] for address in addresses if address.startswith("#")} <= anchors


def test_the_page_is_made_for_a_phone(written: Path) -> None:
    metas = Reader(written.read_text()).all("meta")
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in metas


def test_without_labels_nothing_is_said_about_classes(run_copy: Path, split_digits: Dataset) -> None:
    train = dataclasses.replace(
        split_digits.train, labels=None, class_names=(), files=tuple(f"dir/<{index}>.png" for index in range(192))
    )
    text = report(Options(str(run_copy)), dataclasses.replace(split_digits, train=train)).read_text()
    assert "ACC" not in re.sub(r"base64,[^\"]*", "", text)  # a picture's bytes may spell anything
    assert ">Classes</h2>" not in text
    assert "dir/&lt;7&gt;.png" in text
    Reader(text)


def test_the_command_prints_the_page(run_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(run_copy)]) == 0
    assert capsys.readouterr().out == f"{run_copy / 'report.html'}\n"


def test_a_folder_that_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 2
    assert f"{tmp_path} is not the folder of a run" in capsys.readouterr().err


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on the PATH")
@pytest.mark.parametrize("width", [390, 1280])  # a phone, a desk
def test_a_browser_shows_it_without_errors_or_scrolling_sideways(written: Path, width: int, tmp_path: Path) -> None:
    probe, frame = tmp_path / "probe.html", tmp_path / "frame.html"  # headless chromium's windows are 500 wide or more
    script = (
        "<script>let errors = 0; addEventListener('error', () => errors++, true); addEventListener('load', () => {"
        "const root = document.documentElement, images = [...document.images];"
        "const broken = images.filter(image => !image.complete || !image.naturalWidth).length;"
        "const unnamed = images.filter(image => !image.alt).length;"
        "parent.postMessage([innerWidth, root.scrollWidth > root.clientWidth, broken, unnamed, errors].join(' '), '*')"
        "})</script>"
    )
    probe.write_text(written.read_text().replace("</head>", f"{script}</head>"))
    frame.write_text(
        "<!DOCTYPE html><html><body><script>addEventListener('message', message => "
        "document.documentElement.setAttribute('data-seen', message.data))</script>"
        f"<iframe src='{probe.as_uri()}' style='width: {width}px; height: 800px; border: 0'></iframe></body></html>"
    )
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    shown = subprocess.run(
        [*command, "--enable-logging=stderr", "--window-size=1400,900", "--dump-dom", frame.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert f'data-seen="{width} false 0 0 0"' in shown.stdout  # width, scrolls sideways, broken, without alt, errors
    assert "CONSOLE" not in shown.stderr


def test_empty_clusters_take_one_line(run_copy: Path, split_digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    def one_cluster(*arguments: object, **options: object) -> Outputs:
        found = outputs(*arguments, **options)  # type: ignore[arg-type]
        return found._replace(probabilities=torch.eye(found.probabilities.shape[1])[[3] * len(found.probabilities)])

    monkeypatch.setattr("imc.report.outputs", one_cluster)
    text = report(Options(str(run_copy)), split_digits).read_text()
    assert "Without images: 0, 1, 2, 4" in text
    assert text.count('class="cluster"') == 1


def test_text_is_escaped() -> None:
    assert page.tag("p", page.escape("<b>"), title='"&') == '<p title="&quot;&amp;">&lt;b&gt;</p>'
    assert "<script>" not in page.page("<script>", "", [("<script>", page.paragraph("<script>"))])
    assert "<script>" not in page.table(["<script>"], [["<script>"]])


@pytest.mark.parametrize(("side", "kind"), [(8, "png"), (200, "jpeg")])
def test_thumbnails_are_small(side: int, kind: str, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(256, size=(side, side, 3), dtype=np.uint8)
    (image,) = Reader(page.thumbnails([(pixels, "noise of a given seed")])).all("img")
    header, _, content = (image["src"] or "").partition(",")
    assert header == f"data:image/{kind};base64"
    assert max(Image.open(io.BytesIO(base64.b64decode(content))).size) == min(side, 96)
