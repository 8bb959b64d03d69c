"""The structure of the package: each module imports only from its own floor or from below."""

from __future__ import annotations

import ast
import importlib
import json
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import fastrnn

ROOT = Path(fastrnn.__file__).parent
FLOORS = [
    {"checks", "words", "files", "seeds"},
    {"_core", "reference", "data", "caption_tokens"},
    {"layers", "rnn_layers", "optim", "classifiers", "coco_utils", "image_utils",
     "gradient_check", "captioning_solver", "book"},
    {"decoding", "metrics", "rewards"},
    {"checkpoint", "runs", "runlock", "tensorboard"},
    {"evaluation"},
    {"training"},
    {"export", "report"},
    {"cli"},
    {"__main__"},
]  # fmt: skip
"""Modules and packages of fastrnn, lowest floor first."""
RAISE_ERRORS_OF_THE_TWIN = {"_core.layers", "_core.sequence"}
NAMES = json.loads((Path(__file__).parent / "recorded" / "public_names.json").read_text())


def module_of(path: Path) -> str:
    """Return the name of a module, without "fastrnn."."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


FILES = {
    module_of(path): path
    for path in sorted([*ROOT.rglob("*.py"), *ROOT.rglob("*.pyx")])
    if path != ROOT / "__init__.py"
}


def imports_of(module: str) -> Iterator[str]:
    """Yield the modules of fastrnn that a module imports, in functions too."""
    path = FILES[module]
    package = module.split(".") if path.stem == "__init__" else module.split(".")[:-1]
    if path.suffix == ".pyx":
        pattern = r"(?m)^\s*from (\.+)([\w.]*) c?import \(?([\w, ]+)"
        found = [(len(m[1]), m[2], re.findall(r"(\w+)", m[3])) for m in
                 re.finditer(pattern, path.read_text())]  # fmt: skip
    else:
        found = []
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level:
                found.append((node.level, node.module or "", [a.name for a in node.names]))
            elif isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "fastrnn":
                inside = node.module.removeprefix("fastrnn").removeprefix(".")
                found.append((len(package) + 1, inside, [a.name for a in node.names]))
            elif isinstance(node, ast.Import):
                found += [
                    (len(package) + 1, "", [a.name.removeprefix("fastrnn.")])
                    for a in node.names
                    if a.name.startswith("fastrnn.")
                ]
    for level, name, members in found:
        base = [*package[: len(package) - level + 1], *filter(None, name.split("."))]
        for member in members:
            inner = ".".join([*base, member])
            target = inner if inner in FILES else ".".join(base)
            if target and target != module:
                yield target


def floor_of(module: str) -> int:
    top = module.split(".")[0]
    found = [number for number, floor in enumerate(FLOORS) if top in floor]
    assert len(found) == 1, f"{top} has no floor in FLOORS"
    return found[0]


IMPORTS = {module: set(imports_of(module)) for module in FILES}


@pytest.mark.parametrize("module", FILES)
def test_imports_go_down(module):
    for target in IMPORTS[module]:
        assert floor_of(target) <= floor_of(module), f"{module} imports {target}"
        if target.split(".")[0] == "cli":
            assert module.split(".")[0] in ("cli", "__main__"), f"{module} imports {target}"


@pytest.mark.parametrize("module", FILES)
def test_production_does_not_import_the_oracle(module):
    if module.split(".")[0] != "reference" and module not in RAISE_ERRORS_OF_THE_TWIN:
        assert not any(target.split(".")[0] == "reference" for target in IMPORTS[module])


def test_the_oracle_imports_no_production_code():
    for module in FILES:
        if module.split(".")[0] == "reference":
            for target in IMPORTS[module]:
                assert target.split(".")[0] in ("reference", *FLOORS[0]), f"{module}: {target}"


def test_imports_have_no_circle():
    list(TopologicalSorter(IMPORTS).static_order())


def test_the_graph_is_read():
    assert "files" in IMPORTS["data.layout"]
    assert "data.layout" in IMPORTS["coco_utils"]
    assert "checks" in IMPORTS["_core.sequence"]
    assert "data.scenes.draw" in IMPORTS["data.scenes"]
    assert "runs" in IMPORTS["report.page"]


@pytest.mark.parametrize("module", NAMES)
def test_former_names_can_be_imported(module):
    found = importlib.import_module(module)
    missing = [name for name in NAMES[module] if not hasattr(found, name)]
    assert missing == []
