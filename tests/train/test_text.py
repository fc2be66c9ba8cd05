"""Numbers of things in words: in the singular for one, in every sentence of the package."""

from __future__ import annotations

import ast
import itertools
import re
from pathlib import Path

import pytest

import imc
from imc.text import counted, inflected

# What there may be one of. Not clusters, of which every run has two, nor sizes such as bytes that are given as limits.
NOUNS = "images|labels|classes|updates|epochs|runs|heads|threads|tensors|folders|files|channels|features"
PLURAL = re.compile(rf" (?:(?!has|holds)\w+ )?(?:{NOUNS})\b(?! it$)")


@pytest.mark.parametrize(
    ("count", "words", "text"),
    [
        (0, "image{s}", "0 images"),
        (1, "image{s}", "1 image"),
        (2, "image{s}", "2 images"),
        (1, "class{es}", "1 class"),
        (1234567, "class{es}", "1,234,567 classes"),
        (1, "update{s} {is|are} few", "1 update is few"),
        (40, "update{s} {is|are} few", "40 updates are few"),
        (1, "HEIC image{s}, which need{s|} a reader", "1 HEIC image, which needs a reader"),
        (3, "HEIC image{s}, which need{s|} a reader", "3 HEIC images, which need a reader"),
        (1, "empty", "1 empty"),
    ],
)
def test_a_number_and_what_it_counts(count: int, words: str, text: str) -> None:
    assert counted(count, words) == text
    assert text.endswith(inflected(count, words))


def test_no_sentence_joins_a_number_to_a_plural_by_itself() -> None:
    found = []
    for path in Path(imc.__path__[0]).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            parts = node.values if isinstance(node, ast.JoinedStr) else []
            for number, words in itertools.pairwise(parts):
                joined = isinstance(number, ast.FormattedValue) and isinstance(words, ast.Constant)
                joined = joined and not ast.unparse(number.value).startswith("counted(")
                if joined and PLURAL.match(words.value) and "images of 8x8" not in words.value:  # the digits
                    found.append(f"{path.name}:{node.lineno}: {ast.unparse(number.value)}{words.value}")
    assert not found, "write it with imc.text.counted: " + "; ".join(found)
