"""Gradients of words: to the features against PyTorch, to the pixels against differences."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from explain_models import VOCABULARY, tiny_captioner, tiny_image, tiny_model  # noqa: E402

from fastrnn import reference  # noqa: E402
from fastrnn.explain import pixel_gradients, word_gradients  # noqa: E402
from fastrnn.export import torch_module  # noqa: E402

IDS = [4, 5, 7, 4, 6]
START = VOCABULARY["<START>"]


def features_of(count: int = 3) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, 6))


@pytest.mark.parametrize("cell_type", ["rnn", "lstm"])
def test_log_probabilities_are_those_of_the_reference(cell_type):
    model, features = tiny_model(cell_type), features_of()
    twin = reference.CaptioningRNN(VOCABULARY, 6, 7, 8, cell_type, np.float64)
    twin.params = model.params
    captions = np.tile([START, *IDS], (3, 1))
    values, gradients = word_gradients(model, features, IDS)
    np.testing.assert_allclose(values, twin.word_log_probs(features, captions), rtol=1e-11)
    assert gradients.shape == (3, 5, 6)


@pytest.mark.parametrize("measure", ["log_prob", "score", "margin"])
@pytest.mark.parametrize("cell_type", ["rnn", "lstm"])
def test_gradients_are_those_of_torch(cell_type, measure):
    model, words, never = tiny_model(cell_type), [5, 5, 5, 8, 9], [3, 4]
    features = torch.tensor(features_of(), requires_grad=True)
    inputs = torch.tensor([START, *IDS[:-1]]).repeat(3, 1)
    scores = torch_module(model)(features, inputs)
    if isinstance(scores, tuple):
        scores = scores[0]
    for k, word in enumerate(words):
        own = scores[:, k, word]
        if measure == "log_prob":
            own = scores[:, k].log_softmax(-1)[:, word]
        elif measure == "margin":
            others = [v for v in range(10) if v not in (word, *never)]
            own = own - scores[:, k, others].max(-1).values
        (wanted,) = torch.autograd.grad(own.sum(), features, retain_graph=True)
        values, found = word_gradients(
            model, features.detach().numpy(), IDS, words=words, measure=measure, never=never
        )
        np.testing.assert_allclose(values[:, k], own.detach(), rtol=1e-10)
        np.testing.assert_allclose(found[:, k], wanted, rtol=1e-8, atol=1e-12)


def test_chosen_steps_are_rows_of_all():
    model, features = tiny_model(), features_of(90)  # more rows than a batch of the network has
    values, gradients = word_gradients(model, features, IDS)
    some, some_gradients = word_gradients(model, features, IDS, steps=[3, 0])
    np.testing.assert_allclose(some, values[:, [3, 0]], rtol=1e-12)
    np.testing.assert_allclose(some_gradients, gradients[:, [3, 0]], rtol=1e-10, atol=1e-14)
    assert word_gradients(model, features, [])[1].shape == (90, 0, 6)
    assert word_gradients(model, features[:0], IDS)[1].shape == (0, 5, 6)


@pytest.mark.parametrize("cell_type", ["rnn", "lstm"])
@pytest.mark.parametrize("pca", [True, False])
def test_gradients_to_pixels_are_differences(cell_type, pca):
    captioner = tiny_captioner(cell_type, np.float64)
    if not pca:  # the first features as they are
        captioner.pca.mean = np.zeros(10)
        captioner.pca.components = np.eye(6, 10)
    x = tiny_image().transpose(2, 0, 1)[None] / 128.0 - 1
    _, gradients = pixel_gradients(captioner, x, IDS)
    assert gradients.shape == (1, 5, 3, 12, 12)

    def values_at(pixels: np.ndarray) -> np.ndarray:
        """The log-probabilities by other code: the forward pass of the model alone."""
        features = captioner.network.features(pixels)
        projected = (features - captioner.pca.mean) @ captioner.pca.components.T
        return captioner.model.word_log_probs(projected, np.array([[START, *IDS]]))[0]

    step = 1e-5
    for place in ((0, 3, 4), (1, 0, 11), (2, 7, 7), (0, 11, 0)):
        above, below = x.copy(), x.copy()
        above[(0, *place)] += step
        below[(0, *place)] -= step
        wanted = (values_at(above) - values_at(below)) / (2 * step)
        assert np.abs(wanted).max() > 1e-5
        np.testing.assert_allclose(
            gradients[(0, slice(None), *place)], wanted, rtol=1e-5, atol=1e-9
        )


def test_gradients_of_a_batch_are_those_of_its_images():
    captioner = tiny_captioner(dtype=np.float64)
    x = np.stack([tiny_image(k).transpose(2, 0, 1) / 128.0 - 1 for k in range(19)])
    values, gradients = pixel_gradients(captioner, x, IDS, steps=[1, 4])
    for k in (0, 16, 18):
        value, gradient = pixel_gradients(captioner, x[k : k + 1], IDS, steps=[1, 4])
        np.testing.assert_allclose(values[k], value[0], rtol=1e-10)
        np.testing.assert_allclose(gradients[k], gradient[0], rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"features": np.zeros((2, 5))}, ValueError, "features has shape"),
        ({"ids": [4, 10]}, IndexError, "ids has a word id"),
        ({"words": [4]}, ValueError, "words has shape"),
        ({"steps": [5]}, IndexError, "steps has a step"),
        ({"measure": "loss"}, ValueError, "measure is 'loss'"),
    ],
)
def test_wrong_arguments_are_named(change, error, message):
    given = {"features": np.zeros((2, 6)), "ids": IDS, **change}
    with pytest.raises(error, match=message):
        word_gradients(tiny_model(), **given)


def test_a_network_without_gradients_is_refused():
    captioner = tiny_captioner()
    captioner.network._make_module = None
    with pytest.raises(ValueError, match="gradients of an ONNX model are not available"):
        pixel_gradients(captioner, tiny_image().transpose(2, 0, 1)[None] / np.float32(128), IDS)
