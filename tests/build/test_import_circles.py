"""The modules of a package import downwards: no circle, those included that an import inside a function closes."""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def statements(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """The imports that run; not those under TYPE_CHECKING."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.Import, ast.ImportFrom)):
            yield child
        elif not (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"):
            yield from statements(child)


def imports(package: str) -> dict[str, set[str]]:
    """Module -> the modules of the package that it takes something from. The names that a package's __init__ gathers
    from its modules are those modules' own."""
    files = {".".join(p.relative_to(ROOT).with_suffix("").parts): p for p in (ROOT / package).rglob("*.py")}
    files = {name.removesuffix(".__init__"): path for name, path in files.items()}
    graph: dict[str, set[str]] = {}
    for name, path in files.items():
        found = graph.setdefault(name, set())
        for statement in statements(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(statement, ast.Import):
                found |= {alias.name for alias in statement.names} & files.keys()
            elif statement.module in files:
                parts = {f"{statement.module}.{alias.name}" for alias in statement.names}
                found |= parts & files.keys() or {statement.module}
    return graph


@pytest.mark.parametrize("package", ["imc_kernels"])
def test_no_circle(package: str) -> None:
    graph = imports(package)
    assert len(graph) > 30
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail("a circle of imports: " + " <- ".join(error.args[1]))
