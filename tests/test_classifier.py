"""CaptioningRNN: initial weights, loss and gradients, sampled captions, and errors."""

from __future__ import annotations

import numpy as np
import pytest
from coco_layout import WORDS, draw_captions

from fastrnn import reference
from fastrnn.classifiers.rnn import CaptioningRNN
from fastrnn.gradient_check import eval_numerical_gradient

WORD_TO_IDX = {word: i for i, word in enumerate(WORDS)}
CELLS = pytest.mark.parametrize("cell_type", ["rnn", "lstm"])
NAMES = ["W_embed", "W_proj", "b_proj", "Wx", "Wh", "b", "W_vocab", "b_vocab"]


def small_model(cell_type, dtype=np.float64, cls=CaptioningRNN, seed=231):
    """Return a model with weights large enough for each word to depend on the words before it."""
    np.random.seed(seed)
    model = cls(WORD_TO_IDX, 5, 6, 7, cell_type, dtype)
    for w in model.params.values():
        w += np.random.randn(*w.shape).astype(dtype) / 2
    return model


@CELLS
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_draws_are_the_courses(cell_type, dtype):
    V, D, W, H, k = len(WORDS), 5, 6, 7, 4 if cell_type == "lstm" else 1
    np.random.seed(11)
    model = CaptioningRNN(
        WORD_TO_IDX, input_dim=D, wordvec_dim=W, hidden_dim=H, cell_type=cell_type, dtype=dtype
    )
    after = np.random.rand()

    np.random.seed(11)
    expected = {"W_embed": np.random.randn(V, W) / 100}
    expected["W_proj"] = np.random.randn(D, H) / np.sqrt(D)
    expected["b_proj"] = np.zeros(H)
    expected["Wx"] = np.random.randn(W, k * H) / np.sqrt(W)
    expected["Wh"] = np.random.randn(H, k * H) / np.sqrt(H)
    expected["b"] = np.zeros(k * H)
    expected["W_vocab"] = np.random.randn(H, V) / np.sqrt(H)
    expected["b_vocab"] = np.zeros(V)
    assert np.random.rand() == after

    assert list(model.params) == NAMES and type(model.params) is dict
    for name, w in expected.items():
        assert model.params[name].dtype == dtype
        np.testing.assert_array_equal(model.params[name], w.astype(dtype))


def test_defaults_and_attributes():
    model = CaptioningRNN(WORD_TO_IDX)
    shapes = {name: w.shape for name, w in model.params.items()}
    V = len(WORDS)
    assert shapes == {
        "W_embed": (V, 128),
        "W_proj": (512, 128),
        "b_proj": (128,),
        "Wx": (128, 128),
        "Wh": (128, 128),
        "b": (128,),
        "W_vocab": (128, V),
        "b_vocab": (V,),
    }
    assert (model.cell_type, model.dtype) == ("rnn", np.float32)
    assert model.word_to_idx is WORD_TO_IDX
    assert model.idx_to_word == dict(enumerate(WORDS))
    assert (model._null, model._start, model._end) == (0, 1, 2)


@CELLS
def test_gradients_are_the_numeric_ones(cell_type, rng):
    model = small_model(cell_type)
    features, captions = rng.standard_normal((3, 5)), draw_captions(rng, 3)
    loss, grads = model.loss(features, captions)
    assert set(grads) == set(NAMES) and np.isfinite(loss)
    for name, w in model.params.items():
        numeric = eval_numerical_gradient(
            lambda _: model.loss(features, captions)[0], w, verbose=False
        )
        np.testing.assert_allclose(grads[name], numeric, rtol=1e-5, atol=1e-8, err_msg=name)


@CELLS
@pytest.mark.parametrize(("dtype", "rtol"), [(np.float64, 1e-12), (np.float32, 2e-5)])
def test_loss_is_the_references(cell_type, dtype, rtol, rng):
    model = small_model(cell_type, dtype)
    twin = small_model(cell_type, dtype, reference.CaptioningRNN)
    features = rng.standard_normal((8, 5)).astype(dtype)
    captions = draw_captions(rng, 8)
    captions[3, 2:5] = 0  # <NULL> in the middle of a caption
    loss, grads = model.loss(features, captions)
    expected_loss, expected = twin.loss(features, captions)
    assert loss == pytest.approx(expected_loss, rel=rtol)
    for name, grad in grads.items():
        assert grad.dtype == dtype and grad.shape == model.params[name].shape
        scale = np.abs(expected[name]).max()
        np.testing.assert_allclose(grad, expected[name], rtol=rtol, atol=rtol * scale)


@CELLS
def test_loss_of_empty_captions(cell_type):
    model = small_model(cell_type)
    loss, grads = model.loss(np.zeros((2, 5)), np.ones((2, 1), int))
    assert loss == 0 and all(not grad.any() for grad in grads.values())
    loss, grads = model.loss(np.zeros((0, 5)), np.ones((0, 4), int))
    assert loss == 0 and grads["Wx"].shape == model.params["Wx"].shape


@CELLS
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sample_is_greedy(cell_type, dtype, rng):
    """Compare word by word with the formulas of the cells, written out here."""
    model = small_model(cell_type, dtype)
    model.params["W_embed"] *= 3
    features = rng.standard_normal((6, 5)).astype(dtype)
    captions = model.sample(features, max_length=12)
    assert captions.shape == (6, 12) and captions.dtype == np.int32

    p, H = model.params, 7
    h = features @ p["W_proj"] + p["b_proj"]
    c = np.zeros_like(h)
    words = np.full(6, WORD_TO_IDX["<START>"])
    for t in range(12):
        a = p["W_embed"][words] @ p["Wx"] + h @ p["Wh"] + p["b"]
        if cell_type == "rnn":
            h = np.tanh(a)
        else:
            i, f, o = (1 / (1 + np.exp(-a[:, k * H : (k + 1) * H])) for k in range(3))
            c = f * c + i * np.tanh(a[:, 3 * H :])
            h = o * np.tanh(c)
        words = (h @ p["W_vocab"] + p["b_vocab"]).argmax(axis=1)
        np.testing.assert_array_equal(captions[:, t], words, err_msg=f"column {t}")
    assert len(np.unique(captions)) > 3  # otherwise the test would be weak


@CELLS
def test_sample_stops_at_end_only_when_told(cell_type, rng):
    model = small_model(cell_type)
    model.params["b_vocab"][WORD_TO_IDX["<END>"]] += 1.5
    features = rng.standard_normal((30, 5))
    runs_on = model.sample(features, 15)
    stops = model.sample(features, 15, stop_at_end=True)
    ends = (runs_on == 2).argmax(axis=1)
    finished = (runs_on == 2).any(axis=1)
    assert finished.sum() > 5 and len(np.unique(ends[finished])) > 1
    after = finished[:, None] & (np.arange(15) > ends[:, None])
    assert (runs_on[after] != 0).any()
    np.testing.assert_array_equal(stops, np.where(after, 0, runs_on))


def test_sample_length(rng):
    model = small_model("lstm")
    assert model.sample(np.zeros((2, 5))).shape == (2, 30)
    assert model.sample(np.zeros((2, 5)), max_length=0).shape == (2, 0)
    assert model.sample(np.zeros((0, 5)), max_length=4).shape == (0, 4)
    assert model.sample(np.zeros((0, 5)), 4, stop_at_end=True).shape == (0, 4)


def test_constructor_refuses():
    with pytest.raises(ValueError, match=r'^Invalid cell_type "gru"$'):
        CaptioningRNN(WORD_TO_IDX, cell_type="gru")
    with pytest.raises(KeyError, match="<NULL>"):
        CaptioningRNN({"cat": 0})
    with pytest.raises(TypeError, match=r"dtype.*int64"):
        CaptioningRNN(WORD_TO_IDX, dtype=np.int64)
    for name in ("input_dim", "wordvec_dim", "hidden_dim"):
        with pytest.raises(ValueError, match=f"{name} .*0"):
            CaptioningRNN(WORD_TO_IDX, **{name: 0})


@CELLS
@pytest.mark.parametrize(
    ("features", "captions", "error", "says"),
    [
        (np.zeros((3, 4)), np.ones((3, 4), int), ValueError, r"features.*\(3, 4\).*D = 5"),
        (np.zeros(5), np.ones((1, 4), int), ValueError, r"features.*\(5,\)"),
        (np.zeros((3, 5)), np.ones((2, 4), int), ValueError, r"captions.*\(2, 4\).*N = 3"),
        (np.zeros((3, 5)), np.ones(3, int), ValueError, r"captions.*\(3,\)"),
        (np.zeros((3, 5)), np.ones((3, 0), int), ValueError, r"captions.*\(3, 0\)"),
        (np.zeros((3, 5)), np.ones((3, 4)), TypeError, "captions.*float64"),
        (np.zeros((3, 5), complex), np.ones((3, 4), int), TypeError, "complex"),
        (np.zeros((3, 5)), np.full((3, 4), 11), IndexError, "11"),
        (np.zeros((3, 5)), np.full((3, 4), -12), IndexError, "-12"),
        (np.zeros((3, 5)), np.array([[1, 1, 11]] * 3), IndexError, "11"),
    ],
)
def test_loss_refuses(cell_type, features, captions, error, says):
    with pytest.raises(error, match=says):
        small_model(cell_type).loss(features, captions)


def test_sample_refuses():
    model = small_model("rnn")
    with pytest.raises(ValueError, match=r"features.*\(2, 4\)"):
        model.sample(np.zeros((2, 4)))
    with pytest.raises(ValueError, match=r"max_length.*-1"):
        model.sample(np.zeros((2, 5)), max_length=-1)
    without = CaptioningRNN({"<NULL>": 0, "cat": 1}, input_dim=5)
    with pytest.raises(ValueError, match="<START>"):
        without.sample(np.zeros((2, 5)))
    endless = CaptioningRNN({"<NULL>": 0, "<START>": 1}, input_dim=5)
    assert endless.sample(np.zeros((2, 5)), 3).shape == (2, 3)
    with pytest.raises(ValueError, match="<END>"):
        endless.sample(np.zeros((2, 5)), 3, stop_at_end=True)
