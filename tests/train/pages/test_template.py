from __future__ import annotations

import base64
import fnmatch
import hashlib
import re
from pathlib import Path

import imc.pages
from imc.pages.template import SCRIPTS, STYLE, render, source

HERE = Path(imc.pages.__file__).parent


def test_text_is_escaped_and_what_turns_it_is_shown() -> None:
    text = render("cluster.html", scripts=False, number=0, title="<b>&\"'", text="\u202e\x1b", sheets=[])
    assert "<b>" not in text
    assert "&lt;b&gt;&amp;&#34;&#39;" in text
    assert "\\u202e\\x1b" in text


def test_a_page_allows_its_own_style_alone() -> None:
    text = render("cluster.html", scripts=False, number=0, title="t", text="t", sheets=[])
    (style,) = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    (policy,) = re.findall(r'Content-Security-Policy" content="(.*?)"', text)
    assert f"style-src &#39;sha256-{digest}&#39;" in policy
    assert "script-src" not in policy


def test_what_a_page_is_made_of_is_installed() -> None:
    """The wheel has the files that the patterns of pyproject.toml name."""
    pyproject = (Path(__file__).parents[3] / "pyproject.toml").read_text(encoding="utf-8")
    (listed,) = re.findall(r'^"imc\.pages" = \[(.*?)\]', pyproject, re.MULTILINE)
    patterns = re.findall(r'"(.*?)"', listed)
    files = {path.name for path in HERE.iterdir() if path.is_file() and path.suffix != ".py"}
    assert {*STYLE, *SCRIPTS, "page.html", "cluster.html", "head.html"} == files
    assert all(any(fnmatch.fnmatch(file, pattern) for pattern in patterns) for file in files)


def test_scripts_end_no_script_and_fetch_nothing() -> None:
    script = source(SCRIPTS)
    assert "</script" not in script.lower()
    assert "<!--" not in script
    assert not re.search(r"\bfetch\(|XMLHttpRequest|WebSocket|sendBeacon|import\(|eval\(|innerHTML|https?:", script)
