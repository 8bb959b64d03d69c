"""The drawing of the imports in the documentation is that of the source."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
if not DOCS.is_dir():
    pytest.skip("the documentation is not here", allow_module_level=True)
sys.path.insert(0, str(DOCS))

import draw_house  # noqa: E402


def test_the_drawing_of_the_house_is_that_of_the_imports():
    """If not: ``python docs/draw_house.py``."""
    drawn = draw_house.draw(draw_house.read_graph(ROOT / "fastrnn"))
    assert draw_house.PICTURE.read_text(encoding="utf-8") == drawn


def test_every_part_of_the_house_is_explained():
    page = (DOCS / "changing_the_code.rst").read_text(encoding="utf-8")
    parts = draw_house.read_graph(ROOT / "fastrnn").keys() - {draw_house.KERNELS, "_core"}
    assert not [part for part in sorted(parts) if f"``{part}``" not in page]


def test_imports_are_read_from_the_source(tmp_path):
    package = tmp_path / "fastrnn"
    (package / "_core").mkdir(parents=True)
    (package / "lower.py").write_text("import os\n")
    (package / "upper.py").write_text(
        "from . import lower\n\n\ndef f():\n    from ._core.loops import g\n"
    )
    (package / "_core" / "loops.pyx").write_text(
        'from .arrays cimport data\nfrom .. import lower\ncdef extern from "fastrnn.h":\n    pass\n'
    )
    (package / "_core" / "arrays.pyx").write_text("x = 1\n")
    assert draw_house.read_graph(package) == {
        "src_c": set(),
        "lower": set(),
        "_core": {"lower", "src_c"},
        "upper": {"lower", "_core"},
    }


def test_floors_circles_and_long_ways():
    graph = {"a": {"b", "c"}, "b": {"c"}, "c": {"d"}, "d": {"c"}, "e": set()}
    joined = draw_house.without_circles(graph)
    assert joined == {"a": {"b", "c, d"}, "b": {"c, d"}, "c, d": set(), "e": set()}
    assert draw_house.shortened(joined)["a"] == {"b"}
    assert draw_house.floors_of(joined) == [["c, d", "e"], ["b"], ["a"]]
