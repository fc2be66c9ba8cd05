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
from PIL import Image

from imc import page
from imc.cli import main
from imc.data import Dataset
from imc.report import Options, report

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
    for shown in ("192", "ACC", "Cluster 0: ", "most certain", "embedding_dim", "imc-swav", "processor", "class 3"):
        assert shown in text
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
@pytest.mark.parametrize("width", [500, 1280])  # 500: headless chromium makes no narrower window
def test_a_browser_shows_it_without_scrolling_sideways(written: Path, width: int, tmp_path: Path) -> None:
    probe = tmp_path / "probe.html"
    script = (
        "<script>addEventListener('load', () => { const root = document.documentElement;"
        "const broken = [...document.images].filter(image => !image.naturalWidth).length;"
        "root.setAttribute('data-seen', `${root.scrollWidth > root.clientWidth} ${broken} ${innerWidth}`); })</script>"
    )
    probe.write_text(written.read_text().replace("</body>", f"{script}</body>"))
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    shown = subprocess.run(
        [*command, f"--window-size={width},900", "--dump-dom", probe.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout
    assert f'data-seen="false 0 {width}"' in shown


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
