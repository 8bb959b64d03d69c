"""The built-in world: what is drawn, what is said of it, and the data set that it becomes."""

from __future__ import annotations

import h5py
import numpy as np
import pytest

from fastrnn.coco_utils import decode_captions, read_captioning_directory
from fastrnn.data.features import PCA, describe_pictures, features_of
from fastrnn.data.layout import SPECIAL_WORDS, encode_captions
from fastrnn.data.scene_data import make_scenes, read_scenes, write_scenes
from fastrnn.data.scene_language import (
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
from fastrnn.data.scenes import COLORS, SIDE, SIZES, Scene, Shape, draw_scenes, make_scene

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


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A small data set of scenes, on disk."""
    place = tmp_path_factory.mktemp("scenes")
    write_scenes(place, num_train=60, num_val=20, seed=3, size=24)
    return place


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


def test_the_seed_decides_everything():
    first, again, other = (make_scenes(20, 5, seed) for seed in (1, 1, 2))
    for split in ("train", "val"):
        assert first[split].scenes == again[split].scenes
        assert first[split].captions == again[split].captions
        np.testing.assert_array_equal(first[split].images, again[split].images)
        assert first[split].scenes != other[split].scenes


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


def test_pca_agrees_with_the_singular_vectors(rng):
    x = rng.standard_normal((200, 6)) * [9, 5, 3, 2, 1, 0.5] + 4
    z = PCA.fit(x, 3).transform(x)
    _, _, rows = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
    expected = (x - x.mean(axis=0)) @ rows[:3].T
    expected /= expected.std(axis=0)
    for k in range(3):
        assert abs(np.corrcoef(z[:, k], expected[:, k])[0, 1]) == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(z.std(axis=0), 1, rtol=1e-4)


def test_pca_does_not_blow_up_what_is_constant():
    x = np.outer(np.arange(10.0), [1, 2, 0])
    z = PCA.fit(x, 3).transform(x)
    assert np.isfinite(z).all()
    np.testing.assert_allclose(z[:, 1:], 0, atol=1e-3)


def test_pca_of_what_is_next_to_nothing_and_its_signs(rng):
    x = rng.standard_normal((500, 3)) * [1.0, 0.1, 1e-5]
    pca = PCA.fit(x, 3)
    # The last is divided by a hundredth of the largest deviation, not by its own.
    np.testing.assert_allclose(pca.transform(x).std(axis=0), [1, 1, 1e-3], rtol=0.2)
    for row in pca.components:
        assert row[np.abs(row).argmax()] > 0


def test_pca_refuses_what_it_cannot_fit(tmp_path):
    with pytest.raises(ValueError, match="x has shape"):
        PCA.fit(np.zeros((0, 4)), 2)
    with pytest.raises(ValueError, match="size is 0"):
        PCA.fit(np.zeros((4, 4)), 0)
    with pytest.raises(ValueError, match="x has shape"):
        PCA.fit(np.ones((4, 4)), 2).transform(np.ones((4, 5)))
    (tmp_path / "pca.npz").write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match=r"pca\.npz"):
        PCA.load(tmp_path / "pca.npz")
    np.savez(tmp_path / "pca.npz", mean=np.zeros(4))
    with pytest.raises(ValueError, match=r"pca\.npz: has no 'components'"):
        PCA.load(tmp_path / "pca.npz")
    with pytest.raises(FileNotFoundError):
        PCA.load(tmp_path / "none.npz")


def test_the_directory_reads_back(directory):
    data = read_captioning_directory(directory)
    assert data["train_features"].shape == (60, 24)
    assert data["val_features"].dtype == np.float32
    assert len(data["train_captions"]) == 300
    np.testing.assert_array_equal(np.bincount(data["val_image_idxs"]), np.full(20, 5))
    scenes = read_scenes(directory)
    texts = [
        " ".join(word for word in text.split() if word not in ("<START>", "<END>"))
        for text in decode_captions(data["val_captions"], data["idx_to_word"])
    ]
    told = [scenes[i] for i in data["val_image_idxs"]]
    assert len(texts) == 100
    assert all(map(caption_is_true, texts, told))
    assert all((directory / url).is_file() for url in data["val_urls"])
    assert read_captioning_directory(directory, pca_features=False)["val_features"].shape[1] == 105


def test_a_picture_from_disk_has_the_features_of_the_data_set(directory):
    from PIL import Image

    data = read_captioning_directory(directory)
    images = np.stack([np.asarray(Image.open(directory / url)) for url in data["val_urls"]])
    found = features_of(images, PCA.load(directory / "pca.npz"))
    np.testing.assert_allclose(found, data["val_features"], rtol=1e-3, atol=1e-3)


def test_threads_do_not_change_the_data(directory, tmp_path):
    write_scenes(tmp_path, num_train=60, num_val=20, seed=3, size=24, threads=2)
    ours, theirs = (read_captioning_directory(d) for d in (directory, tmp_path))
    np.testing.assert_array_equal(ours["train_captions"], theirs["train_captions"])
    np.testing.assert_allclose(ours["val_features"], theirs["val_features"], rtol=1e-3, atol=1e-3)


def test_scenes_that_cannot_be_read(tmp_path):
    assert read_scenes(tmp_path) is None
    for content in ('[[{"kind": "circle"}]]', "{", "3", "[[3]]"):
        (tmp_path / "val_scenes.json").write_text(content)
        with pytest.raises(ValueError, match=r"val_scenes\.json"):
            read_scenes(tmp_path)


def test_an_empty_set_is_refused():
    with pytest.raises(ValueError, match="num_val is 0"):
        make_scenes(3, 0, seed=1)


def test_captions_become_ids():
    words = {word: i for i, word in enumerate([*SPECIAL_WORDS, "a", "red", "circle"])}
    ids = encode_captions(["a red circle", "a dog", "a red red red circle"], words, 3)
    assert ids.dtype == np.int32
    np.testing.assert_array_equal(ids, [[1, 4, 5, 6, 2], [1, 4, 3, 2, 0], [1, 4, 5, 5, 2]])


def test_files_are_plain_hdf5(directory):
    with h5py.File(directory / "coco2014_captions.h5") as file:
        assert set(file) == {"train_captions", "train_image_idxs", "val_captions", "val_image_idxs"}
        assert file["train_captions"].dtype == np.int32


def test_the_world_is_not_trivial(rng):
    """No caption is true of most scenes, so that none can be said without looking."""
    scenes = [make_scene(rng) for _ in range(300)]
    said = {caption for scene in scenes[:60] for caption in describe(scene, rng)}
    assert max(np.mean([caption_is_true(c, s) for s in scenes]) for c in said) < 0.5
    assert len(COLORS) * len(SIZES) >= 8
