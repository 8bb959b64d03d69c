"""Imports between the modules of the package: they go down the floors, and there is no circle."""

from __future__ import annotations

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import fastrnn

PACKAGE = Path(fastrnn.__file__).resolve().parent
FLOORS = [
    ("environment", "messages"),
    ("checks", "words", "seeds", "extras", "files", "remote", "terminal"),
    ("decoding", "forcing", "metrics", "rewards", "runlock", "vision"),
    ("runs", "checkpoint"),
    ("evaluation", "captioner"),
    ("training",),
    ("report", "export", "explain"),
    ("serve",),
    ("cli",),
]
"""From below. Modules and packages that are not named here may be imported from anywhere."""


def imports_of(path: Path) -> dict[str, bool]:
    """Return the modules of the package that a file imports, and whether at once."""
    parts = ("fastrnn", *path.relative_to(PACKAGE).with_suffix("").parts)
    found: dict[str, bool] = {}
    tree = ast.parse(path.read_text(encoding="utf-8"))
    at_once = {id(node) for node in tree.body}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            base = ".".join(parts[: len(parts) - node.level]) if node.level else ""
            base = ".".join(filter(None, (base, node.module or "")))
            names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            place = PACKAGE.parent / name.replace(".", "/")
            if name.startswith("fastrnn.") and (
                place.is_dir() or place.with_suffix(".py").exists()
            ):
                found[name] = found.get(name, False) or id(node) in at_once
    return found


FILES = sorted(PACKAGE.rglob("*.py"))
IMPORTS = {
    ".".join(("fastrnn", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(
        ".__init__"
    ): imports_of(path)
    for path in FILES
}


def floor_of(module: str) -> int | None:
    name = module.split(".")[1] if "." in module else ""
    return next((k for k, names in enumerate(FLOORS) if name in names), None)


@pytest.mark.parametrize("module", IMPORTS)
def test_imports_go_down(module):
    floor = floor_of(module)
    for name in IMPORTS[module]:
        other = floor_of(name)
        if floor is not None and other is not None:
            assert other <= floor, f"{module} imports {name}"
        if other == len(FLOORS) - 1:
            assert module in ("fastrnn.__main__", "fastrnn.cli") or floor == other, name


STATEMENT = re.compile(r"^[ \t]*(?:from\s.*)?\bc?import\s+(?:\([^)]*\)|.*)", re.MULTILINE)


def imports_the_reference(source: str) -> bool:
    return any(re.search(r"\breference\b", found) for found in STATEMENT.findall(source))


@pytest.mark.parametrize("kind", ["py", "pyi", "pyx", "pxd"])
def test_nothing_imports_the_reference(kind):
    """The NumPy twins are the oracle of the tests: production does not run them."""
    paths = [
        path for path in PACKAGE.rglob(f"*.{kind}") if PACKAGE / "reference" not in path.parents
    ]
    if kind in ("pyx", "pxd") and not paths:
        pytest.skip("not in the source tree")  # a wheel has no sources of the core
    assert len(paths) > 5
    assert not [path for path in paths if imports_the_reference(path.read_text(encoding="utf-8"))]


@pytest.mark.parametrize(
    "source",
    [
        "import fastrnn.reference\n",
        "if x:\n    from ..reference import layers as twin\n",
        "from ..reference.layers cimport f\n",
        "from .. import (\n    checks,\n    reference,\n)\n",
    ],
)
def test_an_import_of_the_reference_is_recognised(source):
    assert imports_the_reference(source)


def test_the_checks_can_be_imported_from_the_reference():
    import fastrnn.checks
    import fastrnn.reference.checks

    assert fastrnn.reference.checks.as_floats is fastrnn.checks.as_floats


def test_there_is_no_circle():
    graph = {
        module: [name for name, at_once in names.items() if at_once and name != module]
        for module, names in IMPORTS.items()
    }
    # A package imports its modules, and they import one another: not the package.
    for package in [name for name in graph if (PACKAGE.parent / name.replace(".", "/")).is_dir()]:
        for module in graph:
            if module.startswith(f"{package}."):
                graph[module] = [name for name in graph[module] if name != package]
    assert len([*TopologicalSorter(graph).static_order()]) >= len(graph) > 50
