"""Text in figures: drawn as it is written, whoever chose it, and in fonts that have its characters."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec

from imc.pages.plain_matplotlib import Figure, Text, findfont, fontManager, get_font, rc_context, rcParamsDefault
from imc.text import visible

LONGEST_NAME, LONGEST_TITLE = 32, 100  # characters
FONT = "DejaVu Sans"  # comes with matplotlib
Arguments = ParamSpec("Arguments")


def in_plain_style(draw: Callable[Arguments, None]) -> Callable[Arguments, None]:
    """Draw as matplotlib comes, whatever the user's own settings of it are, and no text as a formula."""
    style = {name: value for name, value in rcParamsDefault.items() if name not in ("backend", "backend_fallback")}

    @functools.wraps(draw)
    def drawn(*args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
        with rc_context({**style, "text.parse_math": False}):
            draw(*args, **kwargs)

    return drawn


def drawable(text: str, length: int = LONGEST_NAME) -> str:
    """A text that someone else chose, as it is drawn: on one line, not too long, with glyphs for all of it."""
    text = visible(text)
    if len(text) > length:
        text = f"{text[: length // 2 - 1]}…{text[-(length // 2) :]}"
    unknown = _fonts_for(text)[1]
    return "".join(x.encode("unicode_escape").decode() if ord(x) in unknown else x for x in text)


def choose_fonts(figure: Figure) -> None:
    """Let a figure's texts take what matplotlib's own font lacks from other fonts of the machine."""
    texts = figure.findobj(Text)
    fonts, _ = _fonts_for("".join(text.get_text() for text in texts))
    if len(fonts) > 1:
        for text in texts:
            text.set_fontfamily(fonts)


def _fonts_for(text: str) -> tuple[list[str], frozenset[int]]:
    """The names of fonts that have the glyphs of a text, matplotlib's own first, and the characters that none has."""
    names, missing = [FONT], frozenset(map(ord, text)) - _glyphs(findfont(FONT))
    for font in fontManager.ttflist if missing else ():
        if font.style == "normal" and not font.name.replace(" ", "").startswith("LastResort"):
            found = missing & _glyphs(font.fname)
            names += [font.name] * bool(found)
            missing -= found
    return names, missing


@functools.cache
def _glyphs(path: str) -> frozenset[int]:
    try:
        return frozenset(get_font(path).get_charmap())
    except (OSError, RuntimeError):  # a file that is gone, or that the reader of fonts does not take
        return frozenset()
