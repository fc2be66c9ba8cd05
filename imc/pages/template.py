"""HTML from the templates beside this file, by Jinja2, which comes with torch.

A library and no own functions that put tags together: what a page looks like is then written as a page, and escaping
is the rule of one place. Every text that a template prints is escaped, and characters that a page may not hold, or
that would turn its writing direction, are shown escaped (:func:`imc.text.visible`).

A page stands alone: its styles and scripts lie in it, and its policy (Content-Security-Policy) forbids the browser any
others, by their digests, and all that a network would bring.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import io
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup
from PIL import Image

from imc.text import counted, inflected, visible

HERE = Path(__file__).parent
STYLE = ("page.css",)
SCRIPTS = ("names.js", "images.js", "map.js", "page.js")  # one script, in this order


def render(template: str, *, scripts: bool = True, local: bool = False, **values: Any) -> str:
    """A page.

    Args:
        template: its name.
        scripts: whether it has the scripts.
        local: whether files beside the page are shown in it.
        values: what the template prints; texts are no HTML, unless they are :class:`markupsafe.Markup`.
    """
    style, script = source(STYLE), source(SCRIPTS) if scripts else ""
    allowed = {"default-src": "'none'", "img-src": "data: blob: file:" + " 'self'" * local, "style-src": _digest(style)}
    if scripts:
        allowed["script-src"] = _digest(script)
    policy = "; ".join(
        f"{kind} {what}" for kind, what in {**allowed, "base-uri": "'none'", "form-action": "'none'"}.items()
    )
    return (
        _environment()
        .get_template(template)
        .render(policy=policy, style=Markup(style), script=Markup(script), **values)
    )


def embedded(content: bytes) -> str:
    """An image file, PNG or JPEG, as an address that holds it."""
    kind = "png" if content.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def shown_size(content: bytes, scale: int = 1) -> dict[str, int]:
    """Width and height at which an image file is shown, known beforehand so that the page does not jump.

    Args:
        scale: pixels of the file for one of the page.
    """
    with Image.open(io.BytesIO(content)) as image:
        return {"width": image.width // scale, "height": image.height // scale}


def source(names: tuple[str, ...]) -> str:
    """The files of these names, one after the other; scripts share nothing with the page but what they put there."""
    return "\n".join((HERE / name).read_text(encoding="utf-8") for name in names)


def _digest(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        finalize=lambda value: value if isinstance(value, Markup) else visible(str(value)),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(counted=counted, inflected=inflected, json=htmlsafe_json_dumps)
    return environment
