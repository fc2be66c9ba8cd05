"""Which sub-folders of a user's folder are its train and its test split."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from imc.data.files import refusal
from imc.text import counted, inflected, printable

TRAINING = ("train", "training")
HELD_OUT = ("test", "testing", "val", "valid", "validation", "dev")  # the first that is there is the test split
BESIDE = 3  # folders beside the splits that are named
# In any case, as a word by itself: seg_train, train2017, TrainSet and testset have one, restrained and contest none.
WORDS = "|".join(sorted((*TRAINING, *HELD_OUT), key=len, reverse=True))
CAPITAL = "(?<=[a-z])(?=[A-Z])"
THINGS = "(?=(?i:sets?|data|images?|imgs?)(?![A-Za-z]))"
WORD = re.compile(rf"(?:(?<![A-Za-z])|{CAPITAL})(?i:({WORDS}))(?:(?![A-Za-z])|{CAPITAL}|{THINGS})")
RULE = (
    f"splits are two folders of one name, but for the word {' or '.join(TRAINING)} in one and "
    f"{', '.join(HELD_OUT[:-1])} or {HELD_OUT[-1]} in the other"
)


def find_splits(folder: Path, folders: Sequence[str], images: int) -> tuple[tuple[str, ...], list[str]]:
    """The sub-folders of the train and the test split, and what to say of them.

    Two sub-folders are the splits where their names are the same, in any case, but for one word: train and test,
    training_set and test_set, train2017 and val2017. The pair of the words alone comes before others. ``train`` or
    ``training`` alone is all there is where nothing lies beside it.

    Args:
        folder: the user's.
        folders: names of its sub-folders, in order.
        images: how many images lie beside them.

    Returns:
        The names, () for a folder that is not split; and sentences.

    Raises:
        UserError: two sub-folders could be the same split.
    """
    words = {name: word for name in folders if (word := _word(name))}
    rests = {rest for word, rest in words.values() if word in TRAINING}
    paired = sorted(rests & {rest for word, rest in words.values() if word in HELD_OUT}, key=len)
    if not paired and len(folders) == 1 and not images and folders[0].lower() in TRAINING:
        return (folders[0],), [f"took {folders[0]!r} as train"]
    if not paired:
        names = _listed([repr(name) for name in words])
        return (), [f"read {names} as any other {inflected(len(words), 'folder{s}')}: {RULE}"] if words else []
    if paired[0]:
        _require_one(folder, [name for name, (word, rest) in words.items() if rest in paired and word in TRAINING])
    pair = [(word, name) for name, (word, rest) in words.items() if rest == paired[0]]
    train = [name for word, name in pair if word in TRAINING]
    first = min((word for word, _ in pair if word in HELD_OUT), key=HELD_OUT.index)
    test = [name for word, name in pair if word == first]
    _require_one(folder, train)
    _require_one(folder, test)
    parts = (train[0], test[0])
    if os.path.samefile(folder / parts[0], folder / parts[1]):
        raise refusal(folder, f"{parts[0]!r} and {parts[1]!r} are one folder, by a link")
    return parts, [f"took {parts[0]!r} as train and {parts[1]!r} as test", *_left_out(parts, folders, images)]


def splits_below(files: Sequence[str]) -> list[str]:
    """What to say of paths in which folders further down have the names of splits, and are read like any others."""
    places: dict[tuple[str, str], set[str]] = {}
    for path in files:
        above, *names = path.split(os.sep)[:-1] or [""]
        for depth, name in enumerate(names):
            if name.lower() in (*TRAINING, *HELD_OUT):
                place = os.sep.join([above, *names[:depth]])
                places.setdefault((place, "train" if name.lower() in TRAINING else "test"), set()).add(name)
    for place, role in places:
        if role == "train" and (place, "test") in places:
            names = sorted(places[place, "train"] | places[place, "test"])
            listed = _listed([repr(os.path.join(printable(place), name)) for name in names])
            return [f"read {listed} as any other folders, since splits lie in the folder that is given itself"]
    return []


def _word(name: str) -> tuple[str, str] | None:
    """The word of a split in a name and what else the name is, both in lower case; None without one, or with two."""
    found = list(WORD.finditer(name))
    if len(found) != 1:
        return None
    start, end = found[0].span(1)
    rest = name[:start] + "*" + name[end:]
    return found[0].group(1).lower(), "" if rest == "*" else rest.lower()


def _require_one(folder: Path, names: Sequence[str]) -> None:
    if len(names) > 1:
        raise refusal(folder, f"{' and '.join(map(repr, names))} could both be one split; rename or move one of them")


def _left_out(parts: Sequence[str], folders: Sequence[str], images: int) -> list[str]:
    beside = [repr(name) for name in folders if name not in parts]
    beside = [*beside[:BESIDE], *([counted(len(beside) - BESIDE, "folder{s} more")] if len(beside) > BESIDE else [])]
    beside += [counted(images, "image{s}")] if images else []
    return [f"left out what lies beside: {', '.join(beside)}"] if beside else []


def _listed(texts: Sequence[str]) -> str:
    shown = [*texts[:BESIDE], *([f"{len(texts) - BESIDE} more"] if len(texts) > BESIDE else [])]
    return " and ".join(filter(None, [", ".join(shown[:-1]), *shown[-1:]]))
