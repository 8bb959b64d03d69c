"""Image features of scenes."""

from __future__ import annotations

import numpy as np
import pytest

from fastrnn.data.scenes import Scene, Shape, draw_scenes, make_scene
from fastrnn.data.scenes.features import describe_pictures


def test_features_show_place_colour_and_number(rng):
    def features(*shapes):
        return describe_pictures(draw_scenes([Scene(shapes)], rng))[0]

    left = features(Shape("circle", "red", "big", 12, 24, 8))
    right = features(Shape("circle", "red", "big", 36, 24, 8))
    blue = features(Shape("circle", "blue", "big", 12, 24, 8))
    both = features(
        Shape("circle", "red", "big", 12, 24, 8), Shape("circle", "blue", "big", 36, 24, 8)
    )
    # The channel of red comes first: x is its first number.
    assert left[0] < -0.5 < 0.5 < right[0]
    assert abs(blue[0]) < 0.1
    # Blue is the sixth of eight channels, beyond the half circle where angles turn negative.
    assert blue[5 * 13] < -0.5
    # The last number counts things.
    assert both[-1] - left[-1] == pytest.approx(1, abs=0.6)


def test_features_do_not_depend_on_the_batch(rng):
    images = draw_scenes([make_scene(rng) for _ in range(9)], rng)
    np.testing.assert_allclose(
        describe_pictures(images, batch=4), describe_pictures(images, batch=9), rtol=2e-5, atol=1e-5
    )


@pytest.mark.parametrize(
    ("images", "error"),
    [
        (np.zeros((2, 48, 48), np.uint8), ValueError),
        (np.zeros((2, 48, 48, 4), np.uint8), ValueError),
        (np.zeros((2, 48, 48, 3), np.float32), TypeError),
    ],
)
def test_pictures_of_another_kind_are_refused(images, error):
    with pytest.raises(error, match="images has"):
        describe_pictures(images)
