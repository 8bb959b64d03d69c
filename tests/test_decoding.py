"""Decoding against its NumPy twin, and against what mathematics says of it."""

from __future__ import annotations

import numpy as np
import pytest

import fastrnn
from fastrnn._core import decoder
from fastrnn.classifiers.rnn import CaptioningRNN
from fastrnn.reference import decoding as reference

SIZES = {  # N, T, V, D, W, H
    "small": (5, 7, 11, 6, 4, 5),
    "ragged": (60, 9, 150, 32, 24, 36),
    "odd": (33, 6, 40, 7, 20, 33),
    "one": (1, 3, 5, 2, 2, 3),
}
CELLS = pytest.mark.parametrize("cell_type", ["rnn", "lstm"])
EVERY_SIZE = pytest.mark.parametrize("size", SIZES)


@pytest.fixture(autouse=True)
def threads_afterwards():
    before = fastrnn.get_num_threads()
    yield
    fastrnn.set_num_threads(before)


def vocabulary(V):
    return {"<NULL>": 0, "<START>": 1, "<END>": 2, "<UNK>": 3, **{f"w{i}": i for i in range(4, V)}}


def draw_model(size, cell_type, dtype=np.float64, scale=3.0, seed=1):
    """A model whose weights are so large that its scores differ, and features."""
    N, _, V, D, W, H = SIZES[size]
    np.random.seed(seed)
    model = CaptioningRNN(vocabulary(V), D, W, H, cell_type, dtype)
    for name in model.params:
        model.params[name] *= scale
    model.params["W_embed"] *= 30
    features = np.random.default_rng(seed).standard_normal((N, D)).astype(dtype)
    return model, features


# ---- Scheduled sampling --------------------------------------------------------------------------


def draw_captions(size, rng):
    N, T, V, *_ = SIZES[size]
    captions = rng.integers(-V, V, (N, T + 1))
    for row in captions:
        row[rng.integers(0, T + 2) :] = 0
    return captions


@CELLS
@EVERY_SIZE
@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_mixed_words_are_those_of_the_twin(size, cell_type, probability, rng):
    model, features = draw_model(size, cell_type)
    captions = draw_captions(size, rng)
    rest = probability, 2**63 + 12345, 0, cell_type == "lstm"
    wanted = reference.mix(model.params, features, captions, *rest)
    for threads in (1, 2, 3):
        fastrnn.set_num_threads(threads)
        found = decoder.mix(model.params, features, captions, *rest)
        assert found.dtype == np.int32
        np.testing.assert_array_equal(found, wanted)
    if probability == 0:
        np.testing.assert_array_equal(found, captions[:, :-1] % SIZES[size][2])


def test_mixed_words_in_float32_are_nearly_all_those_of_float64(rng):
    model, features = draw_model("ragged", "lstm", np.float32)
    captions = draw_captions("ragged", rng)
    found = decoder.mix(model.params, features, captions, 0.5, 7, 0, True)
    params = {name: w.astype(np.float64) for name, w in model.params.items()}
    wanted = reference.mix(params, features.astype(np.float64), captions, 0.5, 7, 0, True)
    assert (found == wanted).mean() > 0.99
    assert (found != captions[:, :-1] % 150).mean() > 0.05


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_words_are_mixed_in_and_drawn_as_often_as_they_should_be(dtype):
    """A model that scores by its bias alone draws from the softmax of it."""
    V, N, T = 300, 4000, 6
    model = CaptioningRNN(vocabulary(V), 3, 4, 5, "rnn", dtype)
    bias = np.random.default_rng(3).standard_normal(V)
    model.params["W_vocab"][:] = 0
    model.params["b_vocab"] = bias.astype(dtype)
    captions = np.full((N, T + 1), 1)
    inputs = decoder.mix(model.params, np.ones((N, 3), dtype), captions, 0.4, 5, 0, False)
    assert (inputs[:, 0] == 1).all()
    share = np.exp(bias) / np.exp(bias).sum()
    expected = 0.4 * share
    expected[1] += 0.6
    counts, trials = np.bincount(inputs[:, 1:].ravel(), minlength=V), N * (T - 1)
    chi_square = ((counts - trials * expected) ** 2 / (trials * expected)).sum()
    assert abs(chi_square - (V - 1)) < 5 * np.sqrt(2 * (V - 1))
    again = decoder.mix(model.params, np.ones((N, 3), dtype), captions, 0.4, 6, 0, False)
    assert (again != inputs).any()


def test_captions_that_cannot_be_mixed_into():
    model, features = draw_model("small", "rnn")
    with pytest.raises(IndexError, match="captions holds the id 11"):
        decoder.mix(model.params, features, np.full((5, 3), 11), 0.5, 0, 0, False)
    with pytest.raises(ValueError, match="captions has shape"):
        decoder.mix(model.params, features, np.full((4, 3), 1), 0.5, 0, 0, False)
