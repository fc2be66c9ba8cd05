"""What a person made of a run's clusters on its page: names, clusters that are one, clusters that are none.

The page gives it as one small JSON object, bound to the run:

    {"format": "imc-names", "version": 1, "model": "<digest>", "images": "<digest>", "clusters": 5,
     "names": {"0": "dogs"}, "merged": {"3": 0}, "wrong": [2], "moved": {"17": 4}}

``names`` are of clusters; ``merged`` says into which other one a cluster goes; ``wrong`` are clusters that are no
group; ``moved`` says to which cluster an image belongs instead, by its number.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from imc.errors import UserError
from imc.files.csv import FORMULA
from imc.files.json import read_json
from imc.files.run_places import MODEL, NAMES
from imc.text import JOINERS

FORMAT, VERSION = "imc-names", 1
LONGEST = 100  # characters
DIGEST = 16  # bytes
UNSEEN = ("Cc", "Cf", "Co", "Cs", "Zl", "Zp")  # categories of characters, as the page has them
MAPPINGS = ("names", "merged", "moved")


@dataclass(frozen=True)
class Names:
    """The names of a run's clusters; of clusters of which nothing is said, ``cluster 3`` and the like.

    Attributes:
        clusters: how many the run has.
        model, images: which run, and which images the numbers in ``moved`` are of (:func:`digest_of_images`).
        names, merged, wrong, moved: see the module.
    """

    clusters: int
    model: str = ""
    images: str = ""
    names: dict[int, str] = field(default_factory=dict)
    merged: dict[int, int] = field(default_factory=dict)
    wrong: frozenset[int] = frozenset()
    moved: dict[int, int] = field(default_factory=dict)

    def name(self, cluster: int) -> str | None:
        """The name of a cluster, or of the one that it is merged into; None of one that is marked wrong."""
        while cluster in self.merged:
            cluster = self.merged[cluster]
        return None if cluster in self.wrong else self.names.get(cluster, f"cluster {cluster}")

    @property
    def all(self) -> list[str | None]:
        """That of each cluster."""
        return [self.name(cluster) for cluster in range(self.clusters)]

    @property
    def classes(self) -> list[str]:
        """The different names, in the order of the clusters."""
        return list(dict.fromkeys(name for name in self.all if name is not None))

    def of_image(self, index: int, cluster: int) -> str | None:
        """The name for an image, by its number, that the model put into ``cluster``."""
        return self.name(self.moved.get(index, cluster))

    def to_json(self) -> dict[str, Any]:
        """As the page gives it."""
        bound = {"model": self.model, "images": self.images, "clusters": self.clusters}
        return {"format": FORMAT, "version": VERSION, **bound, **self.said()}

    def said(self) -> dict[str, Any]:
        """The same without what it is bound to."""
        mappings = {name: {str(key): value for key, value in getattr(self, name).items()} for name in MAPPINGS}
        return {**mappings, "wrong": sorted(self.wrong)}


def digest_of_model(run: Path) -> str:
    """What tells one trained model, whose clusters have their numbers, from another.

    Raises:
        UserError: the folder holds none.
    """
    try:
        return hashlib.blake2b((run / MODEL).read_bytes(), digest_size=DIGEST).hexdigest()
    except OSError as error:
        raise UserError(f"{run} holds no finished run: {MODEL}: {error.strerror}") from None


def digest_of_images(files: Sequence[str] | None, count: int) -> str:
    """What tells the images of one page, which have their numbers, from others: their names in order, or how many."""
    listed = json.dumps(count if files is None else list(files))
    return hashlib.blake2b(listed.encode(), digest_size=DIGEST).hexdigest()


def given_names(run: Path, clusters: int | None) -> Names | None:
    """The names that ``imc label`` left in the folder of a run; None where it left none.

    Raises:
        UserError: the file is damaged, or of another run.
    """
    path = run / NAMES
    return read_names(path, run, clusters or 0) if path.exists() else None


def read_names(path: Path, run: Path, clusters: int) -> Names:
    """The names in a file, for this run.

    Args:
        path: a file that the page of the run gave.
        run: the run's folder.
        clusters: how many it has.

    Raises:
        UserError: it is no such file, or one of another run.
    """
    content = read_json(path)
    if content.get("format") != FORMAT:
        raise UserError(f'{path} holds no names: it has no "format": "{FORMAT}", as what the page of imc report gives')
    if content.get("version") != VERSION:
        raise UserError(f"{path} is of version {content.get('version')!r}, and this imc reads version {VERSION}")
    if content.get("model") != digest_of_model(run):
        raise UserError(
            f"{path} names the clusters of another run than {run}, or of the one that was trained there before; the "
            "page that imc report writes gives names for this one"
        )
    if content.get("clusters") != clusters or not isinstance(content.get("images"), str):
        raise UserError(f"{path} is damaged: it does not say of how many clusters and of which images it is")
    return Names(
        clusters,
        content["model"],
        content["images"],
        {key: _name(path, value) for key, value in _mapping(path, content, "names", clusters).items()},
        _merged(path, _mapping(path, content, "merged", clusters), clusters),
        frozenset(_cluster(path, "wrong", value, clusters) for value in _list(path, content, "wrong")),
        {
            key: _cluster(path, "moved", value, clusters)
            for key, value in _mapping(path, content, "moved", None).items()
        },
    )


def _mapping(path: Path, content: dict[str, Any], name: str, below: int | None) -> dict[int, Any]:
    """A JSON object whose keys are numbers, of clusters where there is a limit."""
    given = content.get(name, {})
    if not isinstance(given, dict) or not all(key.isascii() and key.isdigit() and len(key) < 16 for key in given):
        raise UserError(f"{path} is damaged: {name} is no object whose keys are numbers")
    numbers = {int(key): value for key, value in given.items()}
    if below is not None and any(key >= below for key in numbers):
        raise UserError(f"{path} is damaged: {name} speaks of cluster {max(numbers)}, and there are {below}")
    return numbers


def _list(path: Path, content: dict[str, Any], name: str) -> list[Any]:
    given = content.get(name, [])
    if not isinstance(given, list):
        raise UserError(f"{path} is damaged: {name} is no list")
    return given


def _cluster(path: Path, name: str, value: Any, clusters: int) -> int:
    if type(value) is not int or not 0 <= value < clusters:
        raise UserError(f"{path} is damaged: {name} holds {value!r}, which is none of the {clusters} clusters")
    return value


def _merged(path: Path, given: dict[int, Any], clusters: int) -> dict[int, int]:
    merged = {key: _cluster(path, "merged", value, clusters) for key, value in given.items()}
    for start in merged:
        seen, cluster = {start}, start
        while cluster in merged:
            cluster = merged[cluster]
            if cluster in seen:
                raise UserError(f"{path} is damaged: cluster {start} is merged into itself")
            seen.add(cluster)
    return merged


def _name(path: Path, value: Any) -> str:
    if not isinstance(value, str) or not value.strip() or len(value) > LONGEST:
        raise UserError(f"{path} holds the name {value!r}; accepted are texts of 1 to {LONGEST} characters")
    name = value.strip()
    if name.startswith(FORMULA):
        raise UserError(
            f"{path} holds the name {name!r}; a name that begins with {' '.join(FORMULA)} would be a formula in a "
            "spreadsheet"
        )
    if any(unicodedata.category(character) in UNSEEN for character in name if character not in JOINERS):
        raise UserError(f"{path} holds the name {name!r}, with characters that cannot be shown")
    return name
