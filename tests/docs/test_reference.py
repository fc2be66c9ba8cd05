"""`make docs` builds the reference without a warning; every public function says what it takes, gives and refuses."""

from __future__ import annotations

import html
import inspect
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import imc_kernels
from imc import ImageClusterer
from imc.data import load
from imc.train import train

ROOT = Path(__file__).parents[2]
OPERATIONS = [getattr(imc_kernels, name) for name in imc_kernels.__all__ if callable(getattr(imc_kernels, name))]
PUBLIC = {"imc_kernels": OPERATIONS, "imc/estimator": [ImageClusterer], "imc/train": [train], "imc/data": [load]}


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if find_spec("pdoc") is None:
        pytest.skip("pdoc is not installed")
    recipe = re.search(r"^docs:.*\n\t(.+)$", (ROOT / "Makefile").read_text(), flags=re.M)
    modules = re.search(r"^DOCUMENTED := (.+)$", (ROOT / "Makefile").read_text(), flags=re.M)
    assert recipe
    assert modules
    folder = tmp_path_factory.mktemp("docs")
    command = recipe[1].replace("$(BIN)/python", sys.executable).replace("$(DOCUMENTED)", modules[1])
    done = subprocess.run(
        command.replace("build/docs", str(folder)).split(), cwd=ROOT, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert "Warn" not in done.stdout + done.stderr
    return folder


def shown(page: Path, name: str) -> str:
    """The text of one function's section."""
    text = page.read_text()
    start = text.index(f'<section id="{name}"')
    section = text[start : text.index("</section>", start)]
    return html.unescape(re.sub(r"<[^>]+>", "", re.sub(r'<div class="pdoc-code.*?</div>', "", section, flags=re.S)))


@pytest.mark.parametrize("page", PUBLIC)
def test_every_public_name_is_there_with_its_sections(pages: Path, page: str) -> None:
    for function in PUBLIC[page]:
        text = shown(pages / f"{page}.html", function.__name__)
        wanted = ("Arguments:", "Returns:", "Raises:") if inspect.isfunction(function) else ("Arguments:",)
        for heading in wanted:
            assert heading in text, (function.__name__, heading)


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.__name__)
def test_an_operation_names_every_parameter_its_shapes_and_its_source(operation: Callable[..., Any]) -> None:
    text = inspect.getdoc(operation) or ""
    arguments = text[text.index("Args:") : text.index("Raises:" if inspect.isclass(operation) else "Returns:")]
    for name in inspect.signature(operation).parameters:
        assert re.search(rf"^ +(\w+, )*{name}(, \w+)*:", arguments, flags=re.M), name
    assert re.search(r": (\w+ )*\[[\w., ]+\]", arguments), "no shape"
    if not inspect.isclass(operation):
        assert re.search(r"\[.*\]|scalar|\[\]", text[text.index("Returns:") : text.index("Raises:")])
    assert "float32" in text or "uint8" in text
    assert re.search(r"arXiv \d{4}\.\d{4,5}|Pillow", text), "no source"
