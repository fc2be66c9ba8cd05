"""One HTML page that stands alone: style, figures and thumbnails lie inside it, nothing is fetched."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imc.text import visible

THUMBNAIL = 96  # longest side, pixels
PIXELATED = 48  # images up to this side are shown with visible pixels
JPEG_QUALITY = 85

STYLE = """
:root { color-scheme: light; --ink: #1a1a1a; --muted: #5f6368; --line: #e2e4e8; --tint: #f6f7f9; --accent: #1f5fa8; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 62rem; color: var(--ink); background: #fff;
       font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: .5rem 0; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .75rem; padding-top: .75rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 0 0 .25rem; }
p { margin: .5rem 0; max-width: 45rem; }
a { color: var(--accent); }
nav { display: flex; flex-wrap: wrap; gap: .25rem 1rem; }
.muted, figcaption { color: var(--muted); font-size: .875rem; }
.numbers { display: grid; grid-template-columns: repeat(auto-fit, minmax(8rem, 1fr)); gap: .75rem; margin: 1rem 0; }
.numbers div { background: var(--tint); border-radius: .5rem; padding: .6rem .8rem; }
.numbers b { display: block; font-size: 1.4rem; font-variant-numeric: tabular-nums; }
.numbers span { color: var(--muted); font-size: .8125rem; }
figure { margin: 1rem 0; }
figure > img { display: block; max-width: 100%; height: auto; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .3rem .75rem .3rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--muted); font-weight: 600; }
td.number, th.number { text-align: right; }
.cluster { border: 1px solid var(--line); border-radius: .5rem; padding: .75rem; margin: .75rem 0; }
.row { display: grid; grid-template-columns: repeat(auto-fill, minmax(3rem, 1fr));
       gap: .25rem; margin: .25rem 0 .5rem; }
.row img { display: block; width: 100%; aspect-ratio: 1; object-fit: cover; border-radius: .2rem; background: #eee; }
.row img.pixelated { image-rendering: pixelated; }
@media (min-width: 48rem) { .row { grid-template-columns: repeat(12, 1fr); } }
summary { cursor: pointer; color: var(--accent); }
"""


def escape(text: str) -> str:
    """Plain text as HTML: nothing in it is markup, and characters that a page may not hold are shown escaped."""
    return html.escape(visible(text))


def page(title: str, lead: str, sections: Iterable[tuple[str, str]]) -> str:
    """The whole document.

    Args:
        title: of the page, plain text.
        lead: HTML before the first section.
        sections: (heading as plain text, HTML); those without HTML are left out.
    """
    links, bodies = [], []
    for heading, body in sections:
        if body:
            anchor = heading.lower().replace(" ", "-")
            links.append(tag("a", escape(heading), href=f"#{anchor}"))
            bodies.append(tag("section", tag("h2", escape(heading), id=anchor) + "\n" + body + "\n"))
    head = (
        '<meta charset="utf-8">\n<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<title>{escape(title)}</title>\n<link rel="icon" href="data:,">\n<style>{STYLE}</style>\n'
    )
    header = tag("header", tag("h1", escape(title)) + "\n" + lead + "\n" + tag("nav", "\n".join(links)))
    body = header + "\n" + tag("main", "\n".join(bodies))
    return f'<!DOCTYPE html>\n<html lang="en">\n<head>\n{head}</head>\n<body>\n{body}\n</body>\n</html>\n'


def tag(name: str, content: str = "", **attributes: str | int | None) -> str:
    """An element: its content is HTML, its attributes are plain text (``class_`` is ``class``; None leaves one out)."""
    given = "".join(
        f' {key.rstrip("_")}="{escape(str(value))}"' for key, value in attributes.items() if value is not None
    )
    return f"<{name}{given}>" if name == "img" else f"<{name}{given}>{content}</{name}>"


def paragraph(text: str, *, muted: bool = False) -> str:
    """A paragraph of plain text."""
    return tag("p", escape(text), class_="muted" if muted else None)


def numbers(values: Sequence[tuple[str, str]]) -> str:
    """Tiles of (value, what it is)."""
    tiles = (tag("div", tag("b", escape(value)) + tag("span", escape(name))) for value, name in values)
    return tag("div", "".join(tiles), class_="numbers")


def figure(path: Path, alt: str, caption: str = "") -> str:
    """A PNG file inside the page.

    Args:
        path: the file.
        alt: what it shows, for those who do not see it.
        caption: printed under it.
    """
    with Image.open(path) as image:
        width, height = image.size
    # Shown at half its size, so that it is sharp; known beforehand, so that the page does not jump while it loads.
    content = tag("img", src=_data("png", path.read_bytes()), alt=alt, width=width // 2, height=height // 2)
    return tag("figure", content + (tag("figcaption", escape(caption)) if caption else ""))


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table; a column of numbers (its first row decides) is set flush right. None is a hyphen."""
    body = [list(row) for row in rows]
    first = body[0] if body else [""] * len(header)
    classes = ["number" if isinstance(value, (int, float)) else None for value in first]

    def line(name: str, values: Sequence[Any]) -> str:
        texts = (escape("-" if value is None else str(value)) for value in values)
        return tag("tr", "".join(tag(name, text, class_=kind) for text, kind in zip(texts, classes, strict=True)))

    content = tag("thead", line("th", header)) + tag("tbody", "".join(line("td", row) for row in body))
    return tag("div", tag("table", content), class_="scroll")


def thumbnails(images: Iterable[tuple[NDArray[np.uint8], str]]) -> str:
    """A row of small images, wrapped where the screen is narrow.

    Args:
        images: (uint8 [H, W, C], what it is) of each.
    """
    return tag("div", "".join(_thumbnail(pixels, alt) for pixels, alt in images), class_="row")


def _thumbnail(pixels: NDArray[np.uint8], alt: str) -> str:
    image = Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels)
    buffer = io.BytesIO()
    if max(image.size) <= PIXELATED:
        image.save(buffer, "PNG", optimize=True)
        return tag("img", src=_data("png", buffer.getvalue()), alt=alt, title=alt, class_="pixelated")
    image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    image.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return tag("img", src=_data("jpeg", buffer.getvalue()), alt=alt, title=alt)


def _data(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
