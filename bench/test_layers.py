"""Time every layer and update rule, compiled and in NumPy."""

from __future__ import annotations

import pytest

from bench.calls import LAYERS, RULES, library, prepare
from bench.shapes import SHAPES

SIZES = [(name, "float32") for name in SHAPES] + [("cs231n", "float64"), ("coco", "float64")]


@pytest.mark.parametrize("implementation", ["fastrnn", "reference"])
@pytest.mark.parametrize(("shape", "dtype"), SIZES)
@pytest.mark.parametrize("function", [*LAYERS, *RULES])
def test_layer(benchmark, function: str, shape: str, dtype: str, implementation: str) -> None:
    benchmark.group = f"{function} {shape} {dtype}"
    benchmark(prepare(library(implementation), function, SHAPES[shape], dtype))
