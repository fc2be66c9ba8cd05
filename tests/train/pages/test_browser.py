"""The page in a browser, as somebody uses it who has a folder of images: by the keyboard, on a desk and on a phone."""

from __future__ import annotations

import csv
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from browser import CHROMIUM, MISSING, Browser
from PIL import Image

import imc.report
from imc.cli import main
from imc.config import Config
from imc.files.csv import path_of
from imc.report import Options, report
from imc.text import printable, visible
from imc.train import train

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=MISSING)

HOSTILE = (
    *("a</script><script>throw 1</script>.png", "\"'`onerror=throw 2 '.png", "<img src=x onerror=throw 3>.png"),
    *("\u202egnp.exe.png", "עברית 1.png", "日本語.png", "x" * 251 + ".png", "${1}.png", "-- ]]>.png", "a\nb.png"),
    *("&lt;b&gt;.png", "\udcff.png"),
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a folder of 80 pictures, twelve of them with hostile names, two of them the same."""
    folder = tmp_path_factory.mktemp("photos") / "photos"
    random = np.random.default_rng(0)
    for index in range(80):
        name = HOSTILE[index] if index < len(HOSTILE) else f"{index:02}.png"
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        kind = np.array([(200, 40, 40), (40, 200, 40), (40, 40, 200)])[index % 3]
        pixels = kind + random.integers(-30, 30, size=(24, 16 + index % 9, 3))
        Image.fromarray(pixels.astype(np.uint8)).save(path)
    (folder / "79.png").write_bytes((folder / "78.png").read_bytes())
    out = folder.parent / "run"
    train(
        Config(
            data=str(folder), out=str(out), backend="eager", clusters=4, image_size=8, epochs=1, batch_size=40,
            small_crops=1, widths=(4, 8), pool_after=1, feature_dim=16, projection_hidden=16, embedding_dim=8,
            prototypes=12, classifier_widths=(16,), encoder="digits",
        )
    )  # fmt: skip
    return out


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    opened = Browser(tmp_path_factory.mktemp("browser"))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def page(run: Path) -> Path:
    return report(Options(str(run)))


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def choose(browser: Browser, select: str, value: int) -> None:
    """Choose an entry of a list, as a keyboard does: with the focus on it."""
    browser.run(
        f"(() => {{ const list = {select}; list.focus(); list.value = '{value}';"
        " list.dispatchEvent(new Event('change', { bubbles: true })); })()"
    )


def test_clusters_are_opened_named_merged_and_applied(run: Path, page: Path, browser: Browser) -> None:
    clusters = [int(row["cluster"]) for row in rows(run / "labels.csv")]
    used = sorted(set(clusters), key=lambda cluster: -clusters.count(cluster))
    assert len(used) > 1, "the run found one cluster, and nothing can be merged"
    first, second = used[:2]
    browser.resize(1400)
    browser.open(page)

    # It opens to all its images, whose names are text.
    card = f"document.getElementById('cluster-{first}')"
    browser.run(f"{card}.scrollIntoView()")
    browser.wait(f"{card}.querySelector('.tile')")
    if clusters.count(first) > 12:
        browser.run(f"{card}.querySelector('.all').focus()")
        browser.key("Enter")
        browser.wait(f"{card}.querySelectorAll('.named .tile').length === {clusters.count(first)}")
        names = browser.run(f"[...{card}.querySelectorAll('.named .file')].map(each => each.textContent)")
        members = (row for row in rows(run / "labels.csv") if int(row["cluster"]) == first)
        assert sorted(names) == sorted(visible(path_of(row["file"])) for row in members)
    browser.wait(f"{card}.querySelector('.thumb').style.backgroundImage.startsWith('url(\"blob:')")

    # It is named, and another is merged into it.
    browser.run(f"{card}.querySelector('input[type=text]').focus()")
    browser.type("red <b>&")
    assert browser.run(f"{card}.querySelector('h3 .title').textContent") == "red <b>&"
    choose(browser, f"document.querySelector('#cluster-{second} select')", first)
    assert browser.run(f"document.querySelector('#cluster-{second} h3 .title').textContent") == "red <b>&"

    # An image is found by its name, opened, and moved elsewhere; the keys go on to the next.
    target = next(cluster for cluster in range(4) if cluster not in (first, second))
    browser.run("document.querySelector('input[type=search]').focus()")
    browser.type("SCRIPT")
    assert browser.run("document.querySelector('#found h2').textContent") == "1 found"
    browser.run("document.querySelector('#found .tile').focus()")
    browser.key("Enter")
    browser.wait("document.querySelector('dialog').open")
    moved = next(index for index, row in enumerate(rows(run / "labels.csv")) if "script" in row["file"])
    assert browser.run("document.querySelector('dialog h3').textContent") == visible(HOSTILE[0])
    assert browser.run("document.querySelectorAll('dialog .tile').length") == 8  # its neighbours
    browser.wait("document.querySelector('dialog .large img')?.naturalWidth > 0")  # the original, beside the page
    choose(browser, "document.querySelector('dialog select')", target)
    browser.key("Escape")
    browser.wait("!document.querySelector('dialog').open")

    # The download, applied.
    browser.run("document.getElementById('download').click()")
    until = time.monotonic() + 10
    while not (found := list(browser.downloads.glob("*.json"))):
        assert time.monotonic() < until
        time.sleep(0.02)
    content = json.loads(found[0].read_text())
    said = {name: content[name] for name in ("names", "merged", "wrong", "moved")}
    assert said == {
        "names": {str(first): "red <b>&"},
        "merged": {str(second): first},
        "wrong": [],
        "moved": {} if clusters[moved] == target else {str(moved): target},
    }
    assert main(["label", str(run), str(found[0])]) == 0
    labelled = rows(run / "labels.csv")
    assert [int(row["cluster"]) for row in labelled] == clusters
    for index, row in enumerate(labelled):
        cluster = target if index == moved else clusters[index]
        assert row["name"] == ("red <b>&" if cluster in (first, second) else f"cluster {cluster}")

    # The browser has kept it; a new page has it from the run.
    browser.open(page)
    assert browser.run(f"document.querySelector('#cluster-{second} h3 .title').textContent") == "red <b>&"
    browser.run("localStorage.clear()")
    browser.open(report(Options(str(run))))
    assert browser.run(f"document.querySelector('#cluster-{second} h3 .title').textContent") == "red <b>&"
    assert browser.problems == []


def test_what_was_made_is_taken_back(page: Path, browser: Browser) -> None:
    browser.open(page)
    browser.run("confirm = () => true; localStorage.clear(); takeBack()")
    before = browser.run("JSON.stringify(made)")
    assert browser.run("document.getElementById('back').hidden")
    browser.run("nameCluster(0, 'cats'); move(3, 1); markWrong(2, true)")
    assert not browser.run("document.getElementById('back').hidden")
    browser.run("document.getElementById('back').click()")
    assert browser.run("JSON.stringify(made)") == before
    assert browser.run("document.getElementById('back').hidden")


def test_a_name_that_would_be_a_formula_is_not_taken(page: Path, browser: Browser) -> None:
    browser.open(page)
    field = "document.querySelector('article input[type=text]:not([hidden])')"
    browser.run(f"{field}.value = ''; {field}.focus()")
    browser.type("=1+1")
    assert browser.run(f"{field}.validity.customError")
    assert "=" not in browser.run("Object.values(made.names).join()")


@pytest.mark.parametrize("width", [390, 1400])  # a phone, a desk
def test_nothing_is_broken_or_scrolls_sideways(page: Path, browser: Browser, width: int) -> None:
    browser.resize(width)
    browser.open(page)
    browser.run("document.querySelectorAll('details').forEach(each => each.open = true)")
    for section in ("doubtful", "nearly-same", "map", "about"):
        browser.run(f"document.getElementById('{section}').scrollIntoView()")
        made = {"doubtful": ".doubt", "nearly-same": ".group .tile", "map": "canvas", "about": "details"}[section]
        browser.wait(f"document.querySelector('#{section} {made}')")
    browser.run("document.querySelector('canvas').focus()")
    browser.key("ArrowRight")
    browser.wait("document.querySelector('.preview .thumb')")  # a point shows its image
    browser.key("Enter")
    browser.wait("document.querySelector('dialog').open")
    browser.key("Escape")
    assert browser.run("document.documentElement.scrollWidth") <= width
    visible_images = "[...document.images].filter(each => each.checkVisibility() && each.loading !== 'lazy')"
    assert browser.run(f"{visible_images}.every(each => each.complete && each.naturalWidth)")
    assert browser.run("document.querySelectorAll('button:not([aria-label]):empty').length") == 0
    assert browser.problems == []


def test_without_scripts_it_is_read(run: Path, page: Path, browser: Browser) -> None:
    browser.send("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(page)
        tree = browser.send("DOM.getDocument", depth=-1)["root"]
    finally:
        browser.send("Emulation.setScriptExecutionDisabled", value=False)
    text = json.dumps(tree, ensure_ascii=False)
    assert "Scripts are off" in text
    browser.send("DOM.disable")
    for name in os.listdir(run.parent / "photos"):
        if name.endswith(".png"):
            assert json.dumps(visible(printable(name)), ensure_ascii=False)[1:-1] in text


def test_a_folder_of_pages(run: Path, browser: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imc.report, "IMAGES_OF_A_PAGE", 50)
    page = report(Options(str(run)))
    browser.open(page)
    browser.run("document.querySelector('article').scrollIntoView()")
    browser.wait("document.querySelector('article .thumb').style.backgroundImage.includes('sheets/')")
    browser.open(next((page.parent / "clusters").iterdir()))
    browser.run("window.scrollTo(0, 0)")
    browser.wait("document.querySelector('.sheet').naturalWidth > 0")
    assert browser.problems == []
