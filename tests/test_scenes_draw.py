"""Scenes: where their shapes are, and how they are rendered."""

from __future__ import annotations

import numpy as np
import pytest

from fastrnn.data.scenes import SIDE, Scene, Shape, draw_scenes, make_scene


def test_things_are_apart_and_inside(rng):
    for _ in range(200):
        shapes = make_scene(rng).shapes
        assert 1 <= len(shapes) <= 3
        for i, a in enumerate(shapes):
            assert 1.2 * a.radius <= min(a.x, a.y, SIDE - a.x, SIDE - a.y)
            for b in shapes[:i]:
                assert np.hypot(a.x - b.x, a.y - b.y) > 1.2 * (a.radius + b.radius)


def test_a_shape_is_drawn_where_it_is_said_to_be(rng):
    for color, strongest in (("red", 0), ("green", 1), ("blue", 2)):
        scene = Scene((Shape("square", color, "big", 14, 34, 8),))
        image = draw_scenes([scene], rng)[0].astype(int)
        assert image.shape == (SIDE, SIDE, 3)
        assert image[34, 14].argmax() == strongest
        contrast = image.max(axis=2) - image.min(axis=2) > 80
        rows, columns = np.nonzero(contrast)
        assert abs(columns.mean() + 0.5 - 14) < 0.5
        assert abs(rows.mean() + 0.5 - 34) < 0.5
        # A square of half width 0.88 r.
        assert contrast.sum() == pytest.approx((2 * 0.88 * 8) ** 2, rel=0.15)


def test_areas_are_those_of_the_shapes(rng):
    areas = {"circle": np.pi, "square": (2 * 0.88) ** 2, "triangle": 3 * np.sqrt(3) * 0.36,
             "cross": 2 * 2 * 0.68 - 0.68**2}  # fmt: skip
    for kind, area in areas.items():
        scene = Scene((Shape(kind, "red", "big", 24, 24, 9),))
        image = draw_scenes([scene], rng)[0].astype(int)
        drawn = (image.max(axis=2) - image.min(axis=2) > 80).sum()
        assert drawn == pytest.approx(area * 81, rel=0.15), kind
