"""The rooms of the trainer: each imports from those before it, and only those about a whole run see all options."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest

import imc.train
from imc.config import Config
from imc.data import Images

ROOT = Path(imc.__file__).parent
# From the lowest to the highest; the commands and what they share lie above them all.
ROOMS = (
    *("files", "command_line", "machine", "data", "models", "features", "methods", "training"),
    *("config", "runs", "scores", "handover", "pages"),
)
BELOW_ALL = {"errors", "metrics", "text"}  # files beside the rooms that every room may use
SEE_THE_WHOLE = {"config", "runs", "pages"}  # resolve it, save it, and tell what a run was


def files_of(room: str) -> list[tuple[Path, ast.Module]]:
    return [(path, ast.parse(path.read_text())) for path in sorted((ROOT / room).rglob("*.py"))]


def imported(tree: ast.Module) -> set[str]:
    """The parts of imc that a file imports from, at its head or in a function."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "imc":
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("imc."):
            names.add(str(node.module).split(".")[1])
        elif isinstance(node, ast.Import):
            names |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("imc.")}
    return names


def test_every_room_has_its_place() -> None:
    assert {path.parent.name for path in ROOT.glob("*/__init__.py")} == set(ROOMS)


def test_every_room_has_its_tests() -> None:
    """In a folder of its name; the commands and what lies beside the rooms are tested beside the folders."""
    here = Path(__file__).parent
    assert {path.parent.relative_to(here).parts[0] for path in here.glob("*/**/test_*.py")} == set(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_from_those_before_it(room: str) -> None:
    allowed = {*ROOMS[: ROOMS.index(room) + 1], *BELOW_ALL}
    above = {path.name: imported(tree) - allowed for path, tree in files_of(room)}
    assert {name: rooms for name, rooms in above.items() if rooms} == {}


@pytest.mark.parametrize("room", [room for room in ROOMS if room not in SEE_THE_WHOLE])
def test_a_room_takes_a_part_of_the_configuration(room: str) -> None:
    for path, tree in files_of(room):
        taken = [node for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id == "Config"]
        assert not taken, f"{path} takes the whole configuration in line {taken[0].lineno}"


def test_what_a_run_is_made_of_is_handed_its_part_alone(tiny: Config, digits: Images, monkeypatch: Any) -> None:
    """A whole configuration passes for any of its parts, so the type checker cannot tell."""
    names = ("open_data", "choose_images", "_build", "_neighbours", "place", "_source", "Loop")
    handed: dict[str, list[object]] = {}

    def watched(name: str, function: Any) -> Any:
        def call(*arguments: object, **more: object) -> Any:
            handed[name] = [*arguments, *more.values()]
            return function(*arguments, **more)

        return call

    for name in names:
        monkeypatch.setattr(imc.train, name, watched(name, getattr(imc.train, name)))
    imc.train.train(tiny, digits, report=False)
    assert handed.keys() == set(names)
    assert not [name for name, given in handed.items() if any(isinstance(one, Config) for one in given)]
