"""Triton's interpreter in half of its time: it patches triton.language anew at every call of a device function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from triton import language
from triton.runtime import interpreter


def patch_once_a_launch() -> None:
    """Patch the modules that functions call once in each launch of a kernel."""
    patch: Callable[[Any], Any] = interpreter._patch_lang
    patched: set[str] = set()  # names of modules, by which functions know triton.language, since the launch began

    def patch_once(function: Any) -> Any:
        begins = not patched
        names = {m.__name__ for m in function.__globals__.values() if m is language or m is language.core}
        if names <= patched:
            return None
        scope = patch(function)
        patched.update(names)
        if begins:
            restore = scope.restore
            scope.restore = lambda: (patched.clear(), restore())
        return scope

    interpreter._patch_lang = patch_once
