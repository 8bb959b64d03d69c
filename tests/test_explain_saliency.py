"""Saliency maps of words."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")

from explain_models import VOCABULARY, WORDS, tiny_captioner, tiny_image

from fastrnn.explain import pixel_gradients, saliency
from fastrnn.vision.images import open_image, prepare_image

CAPTION = "a dog runs a red cat"


def log_probs_of(captioner, pixels, caption=CAPTION):
    """The log-probabilities of the words by other code, from the network's input."""
    ids = [VOCABULARY[word] for word in caption.split()]
    features = captioner.pca.transform(captioner.network.features(pixels[None]))
    return captioner.model.word_log_probs(features, np.array([[VOCABULARY["<START>"], *ids]]))[0]


@pytest.mark.parametrize("cell_type", ["rnn", "lstm"])
def test_plain_maps_are_the_largest_gradients_of_the_channels(cell_type):
    captioner = tiny_captioner(cell_type)
    found = saliency(captioner, tiny_image(), CAPTION)
    assert found.maps.dtype == np.float32
    assert found.maps.shape == (6, 12, 12)
    assert found.words == found.caption == CAPTION.split()
    np.testing.assert_array_equal(found.image, tiny_image())
    x = prepare_image(open_image(tiny_image()), captioner.network.preprocessing)
    np.testing.assert_allclose(found.log_probs, log_probs_of(captioner, x), rtol=1e-4)
    ids = [VOCABULARY[word] for word in found.words]
    _, gradients = pixel_gradients(captioner, x[None], ids)
    wanted = np.maximum.reduce([abs(gradients[0, :, channel]) for channel in range(3)])
    np.testing.assert_allclose(found.maps, wanted, rtol=1e-6)


@pytest.mark.parametrize("image", range(3))
@pytest.mark.parametrize("cell_type", ["rnn", "lstm"])
def test_integrated_gradients_sum_to_the_change(cell_type, image):
    captioner = tiny_captioner(cell_type)
    found = saliency(captioner, tiny_image(image), CAPTION, "integrated")
    x = prepare_image(open_image(tiny_image(image)), captioner.network.preprocessing)
    gray = np.zeros_like(x)  # what is exactly gray for the network
    changes = log_probs_of(captioner, x) - log_probs_of(captioner, gray)
    assert np.abs(changes).max() > 1
    np.testing.assert_allclose(found.changes, changes, atol=1e-4)
    sums = found.maps.sum(axis=(1, 2), dtype=np.float64)
    assert (np.abs(sums - changes) <= 0.0101 * np.abs(changes) + 1e-4).all()
    np.testing.assert_allclose(found.errors, sums - found.changes, atol=1e-5)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("contrast", [0.5, 4, 60])
def test_small_changes_are_met_to_one_percent_too(contrast):
    """Not to 0.01 nats, which is a sixth of the smallest here."""
    captioner = tiny_captioner(contrast=contrast)
    least = np.inf
    for image in range(3):
        found = saliency(captioner, tiny_image(image), CAPTION, "integrated")
        assert (np.abs(found.errors) <= 0.0101 * np.abs(found.changes)).all()
        assert found.passes < 256
        least = min(least, np.abs(found.changes).min())
    assert least < 0.25 if contrast == 4 else least < 0.1


@pytest.mark.filterwarnings("error")
def test_a_change_below_the_rounding_of_float32_has_that_as_its_bound():
    captioner = tiny_captioner(contrast=0.02)
    pixels = np.full((12, 12, 3), 127, np.uint8)  # exactly gray
    found = saliency(captioner, pixels, CAPTION, "integrated")
    assert not found.maps.any() and not found.changes.any()
    assert found.passes == 15
    pixels[5, 5, 1] = 128
    found = saliency(captioner, pixels, CAPTION, "integrated")
    bound = np.maximum(0.01 * np.abs(found.changes), found.resolution)
    assert (np.abs(found.errors) <= 1.01 * bound + 1e-6).all()
    assert (found.resolution > 0.01 * np.abs(found.changes)).any()
    # what rounding leaves open is far below a change that anybody looks at
    assert (found.resolution > 0).all() and found.resolution.max() < 1e-5
    assert saliency(captioner, pixels, CAPTION).resolution is None


def test_the_resolution_is_the_difference_between_two_implementations():
    captioner = tiny_captioner()
    run = captioner.network._run
    captioner.network._run = lambda batch: run(batch) * np.float32(1 + 1e-4)
    found = saliency(captioner, tiny_image(), CAPTION, "integrated")
    assert found.resolution.max() > 1e-4
    bound = np.maximum(0.01 * np.abs(found.changes), found.resolution)
    assert (np.abs(found.errors) <= 1.01 * bound + 1e-6).all()


def test_a_tolerance_is_kept():
    captioner = tiny_captioner("rnn")
    coarse, fine = (
        saliency(captioner, tiny_image(), CAPTION, "integrated", tolerance=tolerance)
        for tolerance in (0.2, 0.001)
    )
    assert coarse.passes < fine.passes
    change = np.abs(fine.changes)
    assert (np.abs(fine.errors) <= 0.00102 * change).all()
    assert (np.abs(coarse.errors) <= 0.202 * change).all()
    assert (np.abs(coarse.errors) > 0.00102 * change).any()


def test_integrated_gradients_are_the_integral():
    captioner = tiny_captioner()
    found = saliency(captioner, tiny_image(), CAPTION, "integrated")
    x = prepare_image(open_image(tiny_image()), captioner.network.preprocessing)
    places = ((np.arange(2000) + 0.5) / 2000).astype(np.float32)[:, None, None, None]
    ids = [VOCABULARY[word] for word in found.words]
    _, gradients = pixel_gradients(captioner, places * x, ids)
    wanted = (gradients.mean(axis=0) * x).sum(axis=1)
    assert np.abs(found.maps - wanted).max() < 0.02 * np.abs(wanted).max()


def test_a_path_with_a_jump_is_divided_where_the_jump_is():
    smooth = saliency(tiny_captioner(contrast=0.5), tiny_image(), CAPTION, "integrated")
    steep = saliency(tiny_captioner(contrast=60), tiny_image(), CAPTION, "integrated")
    assert smooth.passes < steep.passes <= 256
    with pytest.warns(RuntimeWarning, match="after 9 images"):
        few = saliency(
            tiny_captioner(contrast=60), tiny_image(), CAPTION, "integrated", max_passes=11
        )
    assert few.passes == 9
    fewest = saliency(tiny_captioner(), tiny_image(), CAPTION, "integrated", max_passes=3)
    assert fewest.passes == 3


def test_smooth_maps_are_those_of_the_mean_gradient():
    captioner = tiny_captioner()
    plain = saliency(captioner, tiny_image(), CAPTION)
    still = saliency(captioner, tiny_image(), CAPTION, "smooth", noise=0, samples=3)
    np.testing.assert_allclose(still.maps, plain.maps, rtol=1e-4, atol=1e-6)
    first = saliency(captioner, tiny_image(), CAPTION, "smooth", samples=4)
    again = saliency(captioner, tiny_image(), CAPTION, "smooth", samples=4)
    other = saliency(captioner, tiny_image(), CAPTION, "smooth", samples=4, seed=1)
    np.testing.assert_array_equal(first.maps, again.maps)
    assert np.abs(first.maps - other.maps).max() > 0.01 * first.maps.max()
    # More copies come closer to the mean over the noise.
    many = saliency(captioner, tiny_image(), CAPTION, "smooth", samples=400, seed=2)
    more = saliency(captioner, tiny_image(), CAPTION, "smooth", samples=100, seed=3)
    assert np.abs(more.maps - many.maps).mean() < 0.6 * np.abs(first.maps - many.maps).mean()


def test_chosen_words_have_the_maps_of_all():
    captioner = tiny_captioner()
    every = saliency(captioner, tiny_image(), CAPTION)
    some = saliency(captioner, tiny_image(), CAPTION, steps=[5, 1])
    assert some.words == ["cat", "dog"]
    assert some.steps == [5, 1]
    assert some.caption == CAPTION.split()
    np.testing.assert_allclose(some.maps, every.maps[[5, 1]], rtol=1e-4, atol=1e-7)


def test_by_default_the_words_are_those_of_the_greedy_caption():
    captioner = tiny_captioner()
    own = captioner([tiny_image()])[0].captions[0]
    assert own.words
    found = saliency(captioner, tiny_image())
    assert found.words == own.words
    np.testing.assert_allclose(np.exp(found.log_probs), own.probabilities, rtol=1e-4)
    assert saliency(captioner, tiny_image(), own).words == own.words
    assert saliency(captioner, tiny_image(), own.ids).words == own.words
    assert saliency(captioner, tiny_image(), "").maps.shape == (0, 12, 12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"caption": "a zebra"}, "caption has 'zebra'"),
        ({"caption": "a <END>"}, "caption has '<end>'"),
        ({"caption": [len(WORDS)]}, "caption has the word id 10"),
        ({"method": "deep"}, "method is 'deep'; expected plain, smooth, integrated"),
        ({"steps": [6]}, "steps has 6"),
        ({"samples": 0}, "samples is 0"),
        ({"max_passes": 2}, "max_passes is 2; expected at least 3"),
        ({"tolerance": 0}, "tolerance is 0"),
        ({"noise": float("nan")}, "noise is nan"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    given = {"caption": CAPTION, **change}
    with pytest.raises(ValueError, match=message):
        saliency(tiny_captioner(), tiny_image(), **given)
