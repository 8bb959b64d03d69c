"""Cross-references: the names that docstrings say, wherever they are documented, and files.

* `` `name` `` links to what a public function, class or constant of that name is documented as,
  from wherever it was imported. It is code without a link if there is no such name, for example a
  parameter. A name of fastrnn that is not documented gives a warning.
* ``:src:`bench/work.py``` is a file of the repository, which must exist. It is a link where the
  address of the repository is known.
"""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.pycode import ModuleAnalyzer
from sphinx.util import logging
from sphinx.util.docutils import SphinxRole

LOGGER = logging.getLogger(__name__)
ROOT = Path(__file__).resolve().parents[2]


@functools.cache
def imports_of(module: str) -> dict[str, tuple[str, str]]:
    """Return what a module imports by ``from``: its name to the module and the name there."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return {}
    found = {}
    package = module if spec.submodule_search_locations else module.rpartition(".")[0]
    for node in ast.parse(Path(spec.origin).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = importlib.util.resolve_name("." * node.level + base, package)
            for alias in node.names:
                found[alias.asname or alias.name] = (base, alias.name)
    return found


def origin(module: str, name: str) -> tuple[str, str]:
    """Return the module that defines what another calls `name`, and its name there."""
    while name in imports_of(module) and imports_of(module)[name][0].startswith("fastrnn"):
        module, name = imports_of(module)[name]
    return module, name


def split(full_name: str) -> tuple[str, str, str] | None:
    """Return the module, the name in it and the rest (``.method``), if there is such an object."""
    parts = full_name.split(".")
    for length in range(len(parts), 0, -1):
        module_name = ".".join(parts[:length])
        try:
            found: Any = importlib.import_module(module_name)
        except ImportError:
            continue
        for part in parts[length:]:
            if not hasattr(found, part):
                return None
            found = getattr(found, part)
        rest = parts[length:]
        return module_name, rest[0] if rest else "", ".".join(["", *rest[1:]])
    return None


def key_of(full_name: str) -> tuple[str, str, str] | None:
    """Return the same for every name of the same object."""
    found = split(full_name)
    if found is None or not found[1]:
        return found
    module, name, rest = found
    return (*origin(module, name), rest)


def find_documented(app: Sphinx, env: Any, node: Any, contnode: Any) -> Any:
    """Resolve a reference to a Python object by the object, not by the name."""
    if node.get("refdomain") != "py":
        return None
    target = node["reftarget"]
    module, class_ = node.get("py:module") or "", node.get("py:class") or ""
    places = [f"{module}.{class_}.", f"{module}.", ""] if class_ else [f"{module}.", ""]
    if not all(part.isidentifier() for part in target.split(".")):
        return contnode
    known = documented_names(app)
    for place in places:
        name = f"{place}{target}".lstrip(".")
        if not name.startswith("fastrnn"):
            continue
        key = key_of(name)
        documented = known.get(key)
        if not documented and (key is not None or "." in target):
            # An attribute without an entry of its own is described in the entry of its class.
            owner = key_of(name.rpartition(".")[0])
            documented = known.get(owner) if owner is not None and owner[1] else None
            if documented and class_ and place == places[0]:
                return contnode  # the entry that is being read
        if documented:
            return env.domains.python_domain.resolve_xref(
                env, node["refdoc"], app.builder, "obj", documented[0], node, contnode
            )
        if key is not None and (key[1] or "." in target):
            return None  # there is such an object, but it is not public
    return None if target.startswith("fastrnn.") else contnode


def documented_names(app: Sphinx) -> dict[tuple[str, str, str], list[str]]:
    """Return the documented names of each object: first the one of the module that defines it."""
    if not hasattr(app, "fastrnn_documented"):
        found: dict[tuple[str, str, str], list[str]] = {}
        for name in app.env.domains.python_domain.objects:
            key = key_of(name)
            if key is not None:
                found.setdefault(key, []).append(name)
        for key, names in found.items():
            names.sort(key=lambda name: (not key[0].startswith(name.rpartition(".")[0]), len(name)))
        app.fastrnn_documented = found
    return app.fastrnn_documented


def describe_constant(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Give a constant the docstring that stands where it is defined, not that of its type."""
    found = split(name) if what == "data" else None
    if found is not None:
        module, constant = origin(found[0], found[1])
        documented = ModuleAnalyzer.for_module(module).find_attr_docs()
        lines[:] = documented.get(("", constant), [])
        if not any(lines):
            LOGGER.warning("%s has no docstring", name)


def skip_modules(
    app: Sphinx, what: str, name: str, obj: Any, skip: bool, options: Any
) -> bool | None:
    """Leave out modules among the names of a module, such as ``np``."""
    return True if isinstance(obj, ModuleType) else None


class SourceRole(SphinxRole):
    """``:src:`path```: a file of the repository."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """Return the path, as a link if the address of the repository is known."""
        if not (ROOT / self.text).exists():
            message = self.inliner.reporter.warning(f"there is no {self.text}", line=self.lineno)
            return [nodes.literal("", self.text)], [message]
        text = nodes.literal("", self.text)
        repository = self.config.html_theme_options.get("github_url")
        if not repository:
            return [text], []
        address = f"{repository}/blob/main/{self.text}"
        return [nodes.reference("", "", text, refuri=address)], []


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect the extension."""
    app.connect("missing-reference", find_documented)
    app.connect("autodoc-process-docstring", describe_constant, priority=100)
    app.connect("autodoc-skip-member", skip_modules)
    app.add_role("src", SourceRole())
    return {"parallel_read_safe": True, "parallel_write_safe": True}
