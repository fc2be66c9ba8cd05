from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from imc.errors import UserError
from imc.files.run_places import MODEL, NAMES
from imc.runs.names import Names, digest_of_images, digest_of_model, given_names, read_names


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / MODEL).write_bytes(b"parameters")
    return tmp_path


def content(run: Path, **changes: Any) -> dict[str, Any]:
    names = Names(4, digest_of_model(run), "images", {0: "dogs"}, {3: 0}, frozenset([2]), {17: 1})
    return {**names.to_json(), **changes}


def read(run: Path, **changes: Any) -> Names:
    path = run / NAMES
    path.write_text(json.dumps(content(run, **changes)))
    return read_names(path, run, 4)


def test_what_is_written_is_read(run: Path) -> None:
    names = read(run)
    assert names.to_json() == content(run)
    assert names.all == ["dogs", "cluster 1", None, "dogs"]
    assert names.classes == ["dogs", "cluster 1"]
    assert [names.of_image(index, 0) for index in (16, 17)] == ["dogs", "cluster 1"]
    assert given_names(run, 4) == names
    (run / NAMES).unlink()
    assert given_names(run, 4) is None


def test_a_chain_of_merged_clusters_ends_in_one(run: Path) -> None:
    assert read(run, merged={"3": 1, "1": 0}, wrong=[]).all == ["dogs", "dogs", "cluster 2", "dogs"]
    assert read(run, merged={"0": 2}).all == [None, "cluster 1", None, "cluster 3"]  # into one that is wrong


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"format": "other"}, 'it has no "format": "imc-names"'),
        ({"version": 2}, "is of version 2, and this imc reads version 1"),
        ({"model": "0" * 32}, "names the clusters of another run than"),
        ({"clusters": 5}, "is damaged"),
        ({"images": None}, "is damaged"),
        ({"names": {"4": "cats"}}, "names speaks of cluster 4, and there are 4"),
        ({"names": {"-1": "cats"}}, "names is no object whose keys are numbers"),
        ({"names": {"\u0663": "cats"}}, "names is no object whose keys are numbers"),
        ({"names": ["cats"]}, "names is no object whose keys are numbers"),
        ({"names": {"0": 3}}, "accepted are texts of 1 to 100 characters"),
        ({"names": {"0": "  "}}, "accepted are texts of 1 to 100 characters"),
        ({"names": {"0": "x" * 101}}, "accepted are texts of 1 to 100 characters"),
        ({"names": {"0": "=1+1"}}, "would be a formula in a spreadsheet"),
        ({"names": {"0": "a\nb"}}, "characters that cannot be shown"),
        ({"names": {"0": "\u202egnp"}}, "characters that cannot be shown"),
        ({"merged": {"0": 4}}, "merged holds 4, which is none of the 4 clusters"),
        ({"merged": {"0": "1"}}, "merged holds '1'"),
        ({"merged": {"0": True}}, "merged holds True"),
        ({"merged": {"0": 0}}, "cluster 0 is merged into itself"),
        ({"merged": {"0": 1, "1": 3, "3": 0}}, "is merged into itself"),
        ({"wrong": {"0": 1}}, "wrong is no list"),
        ({"wrong": [9]}, "wrong holds 9"),
        ({"moved": {"0": -1}}, "moved holds -1"),
    ],
)
def test_what_is_not_of_this_run_is_one_sentence(changes: dict[str, Any], says: str, run: Path) -> None:
    with pytest.raises(UserError, match="names") as error:
        read(run, **changes)
    assert says in str(error.value)


def test_images_are_told_apart_by_their_names_in_order() -> None:
    digests = {digest_of_images(files, 2) for files in (None, ("a", "b"), ("b", "a"), ("a", "c"), ('a", "b', ""))}
    assert len(digests | {digest_of_images(None, 3)}) == 6
