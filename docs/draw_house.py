"""Draw which part of the package imports which, from the source: ``python docs/draw_house.py``.

Writes ``docs/pictures/house.svg``. A part is a module or a package directly below ``fastrnn``; the
parts of a circle share a box. Each box is above everything that it imports. An arrow is left out
where a longer way leads to the same part.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from graphlib import TopologicalSorter
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "pictures" / "house.svg"
KERNELS = "src_c"
Graph = dict[str, set[str]]

CYTHON_IMPORT = re.compile(
    r"^[ \t]*from[ \t]+(\.+)(\w*)[\w.]*[ \t]+c?import[ \t]+(\([^)]*\)|[^\n]*)", re.MULTILINE
)


def imports_of_python(source: str, package: tuple[str, ...]) -> set[str]:
    """Return the full names of what a module of `package` imports."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            name = ".".join([*base, *filter(None, [node.module])])
            found |= {f"{name}.{alias.name}" for alias in node.names}
    return found


def imports_of_cython(source: str, package: tuple[str, ...]) -> set[str]:
    """Return the full names of what a Cython module of `package` imports by a relative import."""
    found = set()
    for dots, module, names in CYTHON_IMPORT.findall(source):
        base = ".".join([*package[: len(package) - len(dots) + 1], *filter(None, [module])])
        found |= {f"{base}.{name}" for name in re.findall(r"\w+", names)}
    return found


def read_graph(package: Path) -> Graph:
    """Return the parts of the package, and which others each of them imports."""
    graph: Graph = {KERNELS: set()}
    for path in sorted(p for kind in ("py", "pyx", "pxd") for p in package.rglob(f"*.{kind}")):
        place = path.relative_to(package).with_suffix("").parts
        if place[0] in ("__init__", "__main__"):
            continue
        imported = graph.setdefault(place[0], set())
        source = path.read_text(encoding="utf-8")
        read = imports_of_python if path.suffix == ".py" else imports_of_cython
        for name in read(source, (package.name, *place[:-1])):
            parts = name.split(".")
            if parts[0] == package.name and len(parts) > 1:
                imported.add(parts[1])
        if re.search(r"cdef extern from \"fastrnn\.h\"", source):
            imported.add(KERNELS)
    return {part: (names & graph.keys()) - {part} for part, names in graph.items()}


def reachable(graph: Graph, start: str) -> set[str]:
    """Return the parts that `start` imports, directly or not."""
    found: set[str] = set()
    waiting = [*graph[start]]
    while waiting:
        part = waiting.pop()
        if part not in found:
            found.add(part)
            waiting += graph[part]
    return found


def without_circles(graph: Graph) -> Graph:
    """Join the parts of each circle into one, named "a, b"."""
    reach = {part: reachable(graph, part) for part in graph}
    name_of = {
        part: ", ".join(sorted({part} | {p for p in reach[part] if part in reach[p]}))
        for part in graph
    }
    joined: Graph = {name: set() for name in name_of.values()}
    for part, others in graph.items():
        joined[name_of[part]] |= {name_of[other] for other in others} - {name_of[part]}
    return joined


def shortened(graph: Graph) -> Graph:
    """Leave out each import of a part that another import leads to as well."""
    reach = {part: reachable(graph, part) for part in graph}
    return {
        part: {o for o in others if not any(o in reach[other] for other in others)}
        for part, others in graph.items()
    }


def floors_of(graph: Graph) -> list[list[str]]:
    """Return the parts of each floor, the lowest first: the longest way down from each part."""
    floor: dict[str, int] = {}
    for part in TopologicalSorter(graph).static_order():
        floor[part] = max((floor[other] + 1 for other in graph[part]), default=0)
    return [sorted(p for p in floor if floor[p] == k) for k in range(max(floor.values()) + 1)]


def arrange(floors: list[list[str]], graph: Graph) -> list[list[str]]:
    """Order the parts of each floor so that the arrows are short."""
    users = {part: {user for user in graph if part in graph[user]} for part in graph}
    place = {part: (i + 0.5) / len(row) for row in floors for i, part in enumerate(row)}

    def middle(part: str, neighbours: Iterable[str]) -> float:
        near = [place[other] for other in sorted(neighbours)]  # a sum depends on its order
        return sum(near) / len(near) if near else place[part]

    for _ in range(20):
        for row in floors:
            row.sort(key=lambda part: (middle(part, graph[part] | users[part]), part))
            place |= {part: (i + 0.5) / len(row) for i, part in enumerate(row)}
    return floors


NARROWEST, BOX, FLOOR, GAP = 740, 30, 74, 10
STYLE = """
text { font: 14px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; fill: #1f2933;
  text-anchor: middle; }
rect { fill: #eef3f8; stroke: #56708a; }
.compiled { fill: #fdeee9; stroke: #c8442c; }
.oracle { fill: #ffffff; stroke-dasharray: 5 3; }
path { fill: none; stroke: #8a9bad; }
marker path { fill: #8a9bad; stroke: none; }
"""


def width_of(part: str) -> float:
    return 8.5 * len(part) + 20


def draw(graph: Graph) -> str:
    """Return the drawing as SVG."""
    graph = without_circles(graph)
    arrows = shortened(graph)
    floors = arrange(floors_of(graph), arrows)
    height = FLOOR * len(floors) - FLOOR + BOX + 20
    width = max(NARROWEST, *(sum(map(width_of, row)) + GAP * (len(row) + 1) for row in floors))
    at: dict[str, tuple[float, float]] = {}
    for k, row in enumerate(floors):
        gap = (width - sum(map(width_of, row))) / (len(row) + 1)
        x = gap
        for part in row:
            at[part] = (x + width_of(part) / 2, height - 10 - BOX / 2 - k * FLOOR)
            x += width_of(part) + gap
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height}" '
        f'width="{width:.0f}" height="{height}">',
        "<title>Which part of fastrnn imports which</title>",
        f"<style>{STYLE}</style>",
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto"><path d="M0 0 8 4 0 8z"/></marker></defs>',
    ]
    for part in sorted(arrows):
        for other in sorted(arrows[part]):
            (x, y), (to_x, to_y) = at[part], at[other]
            y, to_y = y + BOX / 2, to_y - BOX / 2
            bend = min(40, (to_y - y) / 2)
            lines.append(
                f'<path d="M{x:.0f} {y:.0f}C{x:.0f} {y + bend:.0f} {to_x:.0f} {to_y - bend:.0f} '
                f'{to_x:.0f} {to_y - 1:.0f}" marker-end="url(#head)"/>'
            )
    for part in sorted(at):
        (x, y), wide = at[part], width_of(part)
        kind = {"_core": "compiled", KERNELS: "compiled", "reference": "oracle"}.get(part, "part")
        lines.append(
            f'<rect class="{kind}" x="{x - wide / 2:.0f}" y="{y - BOX / 2:.0f}" width="{wide:.0f}" '
            f'height="{BOX}" rx="5"/><text x="{x:.0f}" y="{y + 5:.0f}">{escape(part)}</text>'
        )
    return "\n".join([*lines, "</svg>", ""])


if __name__ == "__main__":
    PICTURE.write_text(draw(read_graph(ROOT / "fastrnn")), encoding="utf-8")
