"""Names that a library would read as markup, a pattern, a number or a command: through everything that shows or keeps
them, and back."""

from __future__ import annotations

import ast
import csv
import json
import os
import subprocess
import sys
import warnings
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from imc.cli import main
from imc.data import Dataset, Images
from imc.evaluate import Options as EvaluateOptions
from imc.evaluate import evaluate, table
from imc.export import Options as ExportOptions
from imc.export import export
from imc.files.csv import Rows, read_rows
from imc.files.whole import replacing
from imc.pages import figures
from imc.pages.figure_text import LONGEST_NAME, drawable
from imc.pages.results import table as results_table
from imc.pages.results import write_results
from imc.pages.template import render
from imc.predict import Options as PredictOptions
from imc.predict import predict
from imc.report import Options as ReportOptions
from imc.report import report
from imc.runs.model import load_run
from imc.text import printable, shell_word, shortened, visible

HOSTILE = (
    *("$x", "$\\frac{1}", "$x_$y", "_hidden", "a_b^c", "\\alpha", "%s%d%", "{0}{name}", "{", "*[a-z]?", "(", "(?P<x>"),
    *("<script>alert(1)</script>", "</title>", "&amp;", "\"'`", "<!--", "]]>", "a|b", "a\nb", "a\rb", "a\tb", " lead"),
    *("trail ", "=cmd|' C'!A1", "+1", "-1", "@SUM(A1)", "-rf", "--help", "1e5", "007", "nan", "inf", "None", "true"),
    *("1,5", "a;b", "\x1b[31mred", "\x07", "\x7f", "\x9b2J", "\u202egnp.exe", "\u200e", "\ufeffbom", "\u2028", "\xa0"),
    *("日本語", "עברית", "🐈", "\U0001f469\u200d\U0001f680", "e\u0301", "\udcff", "a\udc80b", "~", "~nobody", "$HOME"),
    *("`id`", "#", "!", "ß" * 100, "." * 3, "x" * 240),
)
# File systems on which names are UTF-8 refuse none of these; halves of UTF-16 pairs are how Python reads other bytes.
NAMES = pytest.mark.parametrize("name", HOSTILE, ids=lambda name: ascii(name)[:24])


TAGS = {"html", "head", "meta", "title", "link", "style", "body", "header", "p", "a", "h1", "main", "section", "img"}
LISTED = {"ol", "li", "bdi"}


class Texts(HTMLParser):
    """What a browser shows of a page: its text, and the texts in attributes."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.feed(content)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.texts += [value for name, value in attrs if name in ("alt", "title") and value is not None]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@NAMES
def test_a_page_shows_the_name_and_obeys_none(name: str) -> None:
    sheet = {"src": "sheets/00000.jpg", "width": 8, "height": 8, "count": 1, "start": 1, "files": [name]}
    content = render("cluster.html", scripts=False, number=3, title=name, text=name, sheets=[sheet])
    content.encode("utf-8")
    assert not set(content) & {"\x00", "\x1b", "\x07", "\u202e"}
    read = Texts(content)
    assert read.texts.count(visible(name)) == 3  # title, h1, the file
    assert {f"{visible(name)}; the most certain first", f"1 image of {visible(name)}"} <= set(read.texts)
    assert set(read.tags) <= TAGS | LISTED


@NAMES
def test_a_csv_gives_the_path_back_and_is_no_formula(name: str, tmp_path: Path) -> None:
    with replacing(tmp_path / "files.csv") as file:
        rows = Rows(file, ["file", "cluster"])
        rows.add(f"{name}.png", 3)
        rows.add(name, 4)
    first, second = read_rows(tmp_path / "files.csv")
    assert [first["file"].removeprefix("./"), second["file"].removeprefix("./")] == [
        printable(f"{name}.png"),
        printable(name),
    ]
    assert (first["cluster"], second["cluster"]) == ("3", "4")
    written = (tmp_path / "files.csv").read_bytes()
    for control in b"\x1b\x07\x7f":  # not escaped: the name is that of the file
        assert written.count(control) == 2 * name.encode("utf-8", "surrogatepass").count(control)
    assert not first["file"].startswith(("=", "+", "-", "@"))


@NAMES
def test_a_shell_gives_the_path_back(name: str) -> None:
    word = shell_word(name)
    assert word == visible(word)
    echoed = subprocess.run(["bash", "-c", f"printf %s {word}"], capture_output=True, check=True).stdout
    assert echoed.removeprefix(b"./" if name.startswith("-") else b"") == os.fsencode(name)


@NAMES
def test_a_terminal_is_sent_one_line(name: str) -> None:
    assert visible(name).isprintable() or set(name) & set("\u200d\xa0")
    assert visible(visible(name)) == visible(name)


def test_plain_names_are_shown_as_they_are() -> None:
    for name in ("Übung", "日本語", "naïve café.png", "👩‍🚀", "a b", "100%", "c:\\x"):
        assert (visible(name), printable(name)) == (name, name)


def test_a_shortened_name_fits_a_file_system(tmp_path: Path) -> None:
    for name in ("x" * 255, "é" * 200, "\udcff" * 255, "🐈" * 80):
        (tmp_path / shortened(name, ".csv.tmp")).touch()
    assert shortened("short", ".csv") == "short.csv"


def drawn_texts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is drawn into figures from here on: the texts in which matplotlib found no formula."""
    texts: list[str] = []
    draw = figures.FigureCanvasAgg.get_renderer

    def recorded(canvas: Any, *args: Any, **kwargs: Any) -> Any:
        renderer = draw(canvas, *args, **kwargs)
        plain = renderer.draw_text

        def draw_text(gc: Any, x: float, y: float, text: str, prop: Any, angle: float, **more: Any) -> None:
            assert not more.get("ismath")
            texts.append(text)
            plain(gc, x, y, text, prop, angle, **more)

        renderer.draw_text = draw_text
        return renderer

    monkeypatch.setattr(figures.FigureCanvasAgg, "get_renderer", recorded)
    return texts


@pytest.mark.parametrize("start", range(0, len(HOSTILE), 12))
def test_figures_draw_every_name(start: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [*HOSTILE[start : start + 12], ""]
    texts = drawn_texts(monkeypatch)
    random = np.random.default_rng(0)
    groups = np.arange(len(names))
    pixels = random.integers(256, size=(len(names), 8, 8, 1), dtype=np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a glyph that is missing, a layout that failed
        figures.save_scatter(
            tmp_path / "a.png", random.random((len(names), 2)), [("title", groups, [(name, "C0") for name in names])]
        )
        figures.save_confusion(tmp_path / "b.png", np.eye(len(names), dtype=np.int64), tuple(names), list(groups), "t")
        heat = np.ones((len(names), 8, 8), np.float32)
        figures.save_heatmaps(tmp_path / "c.png", [("title", pixels, heat, names)])
        captions = [f"cluster 0: {name}" for name in names]
        figures.save_gallery(tmp_path / "d.png", pixels, groups, np.ones(len(names), np.float32), captions, names[0])
        figures.save_accuracy_by_images(tmp_path / "e.png", [(10, 0.5), (20, 0.6)], names[0])
    for name in filter(None, names):
        shown = drawable(name)
        assert sum(text == shown for text in texts) >= 3, shown  # legend, axis, caption
    assert {path.name for path in tmp_path.iterdir()} == {f"{letter}.png" for letter in "abcde"}


def test_a_name_that_fonts_lack_is_drawn_escaped() -> None:
    assert drawable("a\U000e0041b\U0010fffd") == "a\\U000e0041b\\U0010fffd"
    assert drawable("Übung ЖΩ “x”") == "Übung ЖΩ “x”"
    assert len(drawable("x" * 300)) == LONGEST_NAME


def test_a_users_own_settings_of_matplotlib_change_no_figure(tmp_path: Path) -> None:
    import matplotlib

    def draw(path: Path) -> bytes:
        figures.save_accuracy_by_images(path, [(10, 0.5), (20, 0.75)], "title")
        return path.read_bytes()

    plain = draw(tmp_path / "a.png")
    with matplotlib.rc_context(
        {"text.usetex": True, "font.size": 30, "savefig.format": "pdf", "axes.facecolor": "red"}
    ):
        assert draw(tmp_path / "b.png") == plain


def named(names: tuple[str, ...]) -> Dataset:
    """Noise: one class and one file for each name."""
    pixels = torch.from_numpy(np.random.default_rng(0).integers(256, size=(2 * len(names), 8, 8, 1), dtype=np.uint8))
    labels = torch.arange(2 * len(names)) % len(names)
    files = tuple(f"{name}/{index}.png" for index in range(2) for name in names)
    images = Images(names[0], pixels, labels, names, files)
    return Dataset(names[0], images, None, None, (0.5,), (0.2,), f"note of {names[0]}")


@pytest.fixture(scope="module")
def hostile_run(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run in a folder whose name, as those of its data and classes, is hostile in every way at once."""
    import shutil

    folder = tmp_path_factory.mktemp("runs") / "-$x$ <b>\x1b[31m\n=%s{0}*\udcff🐈"
    shutil.copytree(trained, folder)
    config = json.loads((folder / "config.json").read_text())
    name = "<script>\x1b$\udcff"
    (folder / "config.json").write_text(json.dumps({**config, "name": name, "data": name, "out": str(folder)}))
    return folder


def test_every_command_takes_a_run_of_any_name(
    hostile_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(hostile_run.parent)
    data = named(HOSTILE)
    run = load_run(hostile_run)
    clusters, confidence = np.arange(len(data.train.images)) % 10, np.full(len(data.train.images), 0.5, np.float32)
    result = write_results(hostile_run, run.config, data.train, clusters, confidence, 1.0)
    rows = list(read_rows(hostile_run / "labels.csv"))
    assert [row["file"].removeprefix("./") for row in rows] == [printable(file) for file in data.train.files or ()]
    assert json.loads((hostile_run / "result.json").read_text()) == json.loads(json.dumps(result))
    # The report draws the same figures.
    evaluation = evaluate(hostile_run, EvaluateOptions(runs=(str(hostile_run),), skip_figures=True), data)
    assert [row["class"] for row in evaluation["splits"]["train"]["classes"]] == list(HOSTILE)
    assert json.loads((hostile_run / "evaluation.json").read_text())["run"] == str(hostile_run)
    shown = table(evaluation) + results_table(result, hostile_run)
    assert all(line.isprintable() or set(line) & set("\u200d\xa0") for line in shown.split("\n"))
    content = report(ReportOptions(str(hostile_run)), data).read_text(encoding="utf-8")
    texts = Texts(content)
    assert texts.tags.count("script") == 2  # its data, and what reads them
    for name in HOSTILE:
        assert visible(name) in texts.texts
    exported = export(ExportOptions(str(hostile_run), format="torch", check=None))
    extra = {"imc.json": ""}
    with Path(next(iter(exported["files"]))).open("rb") as file:
        torch.export.load(file, extra_files=extra)
    assert json.loads(extra["imc.json"])["name"] == "<script>\x1b$\udcff"
    assert main(["evaluate", f"./{hostile_run.name}", "--data", "digits", "--skip-figures", "--skip-probes"]) == 0
    captured = capsys.readouterr()
    for text in (captured.out, captured.err):
        assert "\x1b[31m" not in text


def possible(name: str) -> bool:
    return "/" not in name and name not in (".", "..", "...") and len(os.fsencode(name)) <= 240


def test_files_of_any_name_are_predicted_and_sorted(trained: Path, tmp_path: Path) -> None:
    folder, names = tmp_path / "=photos\n$\x1b", []
    for index, name in enumerate(filter(possible, HOSTILE)):
        file = folder / (f"{name}.png" if index % 2 else f"in {name[:100]}/{name}.png")
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(index).integers(256, size=(8, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(file, format="PNG")
        names.append(str(file.relative_to(folder)))
    result = predict(
        PredictOptions(str(trained), (str(folder),), out=str(tmp_path / "out.csv"), sort_into=str(tmp_path / "sorted"))
    )
    assert result["images"] == len(names)
    rows = list(read_rows(tmp_path / "out.csv"))
    assert sorted(row["file"].removeprefix("./") for row in rows) == sorted(map(printable, names))
    copies = {
        str(path.relative_to(tmp_path / "sorted")).partition("/")[2] for path in (tmp_path / "sorted").rglob("*.png")
    }
    assert copies == set(names)
    with (tmp_path / "out.csv").open(newline="", encoding="utf-8") as file:
        assert all(len(row) == 3 for row in csv.reader(file))


HOSTILE_LOCALES = (
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii:strict"},
    {"PYTHONIOENCODING": "cp1252:strict", "NO_COLOR": "1"},
)


@pytest.mark.parametrize("settings", HOSTILE_LOCALES, ids=lambda settings: " ".join(settings.values()))
def test_any_locale_writes_utf_8_and_escapes_what_a_terminal_lacks(settings: dict[str, str], tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(256, size=(40, 8, 8), dtype=np.uint8)
    labels = np.array(["日本語", "naïve 🐈"] * 20)
    np.savez(tmp_path / "データ é.npz", images=pixels, labels=labels)
    flags = "--epochs 1 --clusters 2 --backend eager --batch-size 20 --widths 4 8 --pool-after 1 --prototypes 12"
    small = "--feature-dim 16 --projection-hidden 16 --embedding-dim 8 --classifier-widths 16"
    command = [sys.executable, "-m", "imc", "train", "--data", "データ é.npz", *flags.split(), *small.split()]
    environment = {**os.environ, **settings, "IMC_CACHE": str(tmp_path / "cache")}
    environment.pop("PYTEST_CURRENT_TEST", None)
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode("utf-8", "replace")
    assert b"Traceback" not in done.stderr
    assert b"UserWarning" not in done.stderr
    (run,) = (tmp_path / "runs").iterdir()
    for path in run.glob("*.json*"):
        path.read_text(encoding="utf-8")
    evaluated = subprocess.run(
        [sys.executable, "-m", "imc", "evaluate", f"runs/{run.name}", "--skip-probes", "--skip-figures"],
        cwd=tmp_path, env=environment, capture_output=True, check=False,
    )  # fmt: skip
    assert evaluated.returncode == 0, evaluated.stderr.decode("utf-8", "replace")
    classes = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))["splits"]["train"]["classes"]
    assert {row["class"] for row in classes} == {"日本語", "naïve 🐈"}


def test_a_name_with_a_null_character_is_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    for command in (
        ["report", "a\0b"],
        ["train", "--out", "a\0b"],
        ["train", "--name", "a\0b"],
        ["predict", "a", "\0"],
    ):
        assert main(command) == 2
        assert capsys.readouterr().err.count("\n") == 1


ROOT = Path(__file__).parents[3]
SOURCES = [
    *(path for name in ("imc", "imc_kernels", "benchmarks") for path in (ROOT / name).rglob("*.py")),
    ROOT / "setup.py",
]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_text_file_depends_on_the_locale(path: Path) -> None:
    for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(call, ast.Call) or any(keyword.arg in ("encoding", None) for keyword in call.keywords):
            continue
        name = getattr(call.func, "attr", getattr(call.func, "id", None))
        strings = [each.value for each in call.args if isinstance(each, ast.Constant) and isinstance(each.value, str)]
        owner = ast.unparse(getattr(call.func, "value", ast.Constant("")))
        if name == "open" and owner not in ("os", "gzip", "tarfile", "Image", "wave"):
            assert any("b" in mode for mode in strings), f"line {call.lineno}"
        assert name not in ("write_text", "read_text"), f"line {call.lineno}"
