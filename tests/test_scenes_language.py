"""Captions of scenes: generated, parsed, and checked against the scene."""

from __future__ import annotations

import numpy as np
import pytest

from fastrnn.data.scenes import COLORS, SIDE, SIZES, Scene, Shape, make_scene
from fastrnn.data.scenes.language import (
    Count,
    Listing,
    Naming,
    Place,
    Relation,
    Thing,
    caption_is_true,
    describe,
    parse_caption,
    words_of_the_language,
)

# A big red circle top left, a small blue square bottom right, a small green cross at the centre.
THREE = Scene(
    (
        Shape("circle", "red", "big", 12, 12, 8),
        Shape("square", "blue", "small", 36, 38, 4.5),
        Shape("cross", "green", "small", 24, 25, 4.5),
    )
)
# Two big yellow triangles side by side over a small red triangle.
TWINS = Scene(
    (
        Shape("triangle", "yellow", "big", 10, 12, 8),
        Shape("triangle", "yellow", "big", 34, 12, 8),
        Shape("triangle", "red", "small", 14, 38, 4.5),
    )
)


@pytest.mark.parametrize(
    "caption",
    [
        "a red circle is left of a blue square",
        "the small blue square is right of the big red circle",
        "the red circle is above a green cross",
        "the square is below the cross",
        "a big red circle is in the top left",
        "in the bottom right there is a small blue square",
        "a green cross is in the middle",
        "a blue square , a small green cross and a big red circle",
        "a red circle and a blue square",
        "there are three shapes",
        "there is one circle",
        "there is one red shape and one blue shape",
        "there are two small shapes and one big shape",
        "the green cross is small",
        "the circle is red",
    ],
)
def test_true_captions_of_three_things(caption):
    assert caption_is_true(caption, THREE)


@pytest.mark.parametrize(
    "caption",
    [
        "a red circle is right of a blue square",  # the other way round
        "a blue square is above a green cross",
        "a blue circle is left of a green cross",  # no such thing
        "a small red circle is left of a blue square",  # wrong size
        "a red circle is left of a red circle",  # one thing is not two
        "a red circle and a red circle",
        "the small shape is left of a blue square",  # two are small
        "a red circle is in the top right",
        "a red circle is in the middle",
        "a red circle , a blue square and a yellow cross",
        "there are two shapes",  # counts are exact
        "there is one small shape",
        "there are three shapes and one star",
        "the circle is blue",
        "the green cross is big",
    ],
)
def test_false_captions_of_three_things(caption):
    assert not caption_is_true(caption, THREE)


@pytest.mark.parametrize(
    ("caption", "true"),
    [
        ("two yellow triangles and a red triangle", True),
        ("two big yellow triangles and a small red triangle", True),
        ("a yellow triangle and a yellow triangle", True),
        ("three triangles and a red triangle", False),  # there is no fourth
        ("two triangles and a red triangle", False),  # there are three
        ("two small yellow triangles and a red triangle", False),
        ("there are three triangles", True),
        ("there are two yellow shapes and one red shape", True),
        ("there are two triangles", False),
        ("the yellow triangle is above a red triangle", False),  # which one?
        ("a yellow triangle is above the red triangle", True),
        ("a yellow triangle is right of a yellow triangle", True),
        ("a yellow triangle is below a yellow triangle", False),  # level with each other
        ("the yellow triangle is big", False),
    ],
)
def test_captions_of_twins(caption, true):
    assert caption_is_true(caption, TWINS) is true


@pytest.mark.parametrize(
    "caption",
    [
        "",
        "red circle",
        "a",
        "a red circle",
        "a circle red is left of a blue square",
        "a red circle is left a blue square",
        "a red circle is left of",
        "a red circle is left of a blue square and",
        "a red circle is red",  # only "the" is told the colour of
        "a circle is red",
        "the red circle is red",
        "there are one circle",
        "there is two circles",
        "there are two circle",
        "there is three shapes",
        "in the top there is a circle",
        "in the top left there is the red circle",
        "a red circle , a blue square",
        "one red circle and a blue square",
        "a red circle is in the top left <UNK>",
        "a purple circle and a blue square",
    ],
)
def test_ungrammatical_captions_are_refused(caption):
    with pytest.raises(ValueError):
        parse_caption(caption)
    assert not caption_is_true(caption, THREE)


def test_how_far_apart_and_how_far_from_the_middle():
    def at(*places: tuple[float, float]) -> Scene:
        kinds = ("circle", "square")
        pairs = zip(kinds[: len(places)], places, strict=True)
        return Scene(tuple(Shape(kind, "red", "big", x, y) for kind, (x, y) in pairs))

    for gap, true in ((1.9, False), (2.1, True)):
        scene = at((20, 20), (20 + gap, 20 + gap))
        for relation in ("left of", "above"):
            assert caption_is_true(f"a circle is {relation} a square", scene) is true
        for relation in ("right of", "below"):
            assert caption_is_true(f"a square is {relation} a circle", scene) is true
    for away, true in ((SIDE / 6 - 0.1, True), (SIDE / 6 + 0.1, False)):
        for place in ((SIDE / 2 + away, SIDE / 2), (SIDE / 2, SIDE / 2 - away)):
            assert caption_is_true("a circle is in the middle", at(place)) is true


def test_the_parse_names_what_is_claimed():
    red, square = Thing("circle", "red", "big", True), Thing("square", "blue")
    claim = Relation(red, "left of", square)
    assert parse_caption("the big red circle is left of a blue square") == (claim,)
    assert parse_caption("a blue square is in the top left") == (Place(square, "top left"),)
    assert parse_caption("the square is blue") == (
        Naming(Thing("square", definite=True), Thing(color="blue")),
    )
    assert parse_caption("there are two circles") == (Count(Thing("circle"), 2),)
    pair = Thing("circle", "red")
    assert parse_caption("a blue square and two red circles") == (
        Listing((square, pair, pair)),
        Count(pair, 2),
    )


def test_the_error_names_the_word():
    with pytest.raises(ValueError, match="word 3 of 'a red dog' is 'dog'"):
        parse_caption("a red dog")


def test_what_is_said_is_true_and_varied(rng):
    scenes = [make_scene(rng) for _ in range(400)]
    said = [describe(scene, rng) for scene in scenes]
    assert all(len(captions) == 5 for captions in said)
    untrue = [c for s, captions in zip(scenes, said, strict=True) for c in captions
              if not caption_is_true(c, s)]  # fmt: skip
    assert untrue == []
    flat = [caption for captions in said for caption in captions]
    assert len(set(flat)) > 800
    assert {type(parse_caption(c)[0]) for c in flat} == {Relation, Place, Listing, Count, Naming}
    used = {word for caption in flat for word in caption.split()}
    assert used <= set(words_of_the_language())


def test_captions_of_one_scene_are_rarely_true_of_another(rng):
    scenes = [make_scene(rng) for _ in range(300)]
    said = [describe(scene, rng) for scene in scenes]
    wrong = [c for captions in said[1:] for c in captions]
    others = [s for s in scenes[:-1] for _ in range(5)]
    assert np.mean([*map(caption_is_true, wrong, others)]) < 0.15


def test_the_world_is_not_trivial(rng):
    """No caption is true of most scenes, so a model cannot guess without the image."""
    scenes = [make_scene(rng) for _ in range(300)]
    said = {caption for scene in scenes[:60] for caption in describe(scene, rng)}
    assert max(np.mean([caption_is_true(c, s) for s in scenes]) for c in said) < 0.5
    assert len(COLORS) * len(SIZES) >= 8
