"""Long sequences and extreme values: results are NaN only where the twin's are."""

from __future__ import annotations

import numpy as np
import pytest
from equivalence import RULES, assert_equal, compiled, draw, draw_pair, run, twin

DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64])
CELLS = pytest.mark.parametrize("cell", ["rnn", "lstm"])
LONG = {"N": 3, "T": 10_000, "D": 4, "H": 5, "V": 7, "M": 3}
SHORT = {"N": 5, "T": 7, "D": 9, "H": 11, "V": 13, "M": 6}


def both(name, arguments, gradients=None):
    """Return the results of the compiled op and of its twin."""
    return [
        run(find, name, {k: np.copy(a) for k, a in arguments.items()}, gradients or {})
        for find in (compiled, twin)
    ]


@DTYPES
@CELLS
@pytest.mark.parametrize("ragged", [False, True])
def test_ten_thousand_steps(cell, dtype, ragged):
    arguments, gradients = draw(cell, LONG, dtype, np.random.default_rng(3))
    if ragged:
        arguments["lengths"] = np.array([10_000, 1, 5_001])
    found, wanted = both(cell, arguments, gradients)
    assert all(np.isfinite(a).all() for a in found)
    # rounding errors accumulate over so many steps in both
    for a, b in zip(found, wanted, strict=True):
        scale = np.abs(b).max()
        assert np.abs(a - b).max() <= (2e-4 if dtype == np.float32 else 1e-11) * scale


@DTYPES
@CELLS
@pytest.mark.parametrize("factor", [1e2, 1e4, 1e18, 1e30])
@pytest.mark.parametrize("argument", ["x", "h0", "Wx", "Wh", "b"])
def test_weights_that_explode(cell, dtype, factor, argument):
    """Saturated gates: the same values as the twin, with NaN and infinity in the same places."""
    arguments, gradients = draw(cell, SHORT, dtype, np.random.default_rng(3))
    arguments[argument] *= dtype(factor)
    found, wanted = both(cell, arguments, gradients)
    for a, b in zip(found, wanted, strict=True):
        assert not (np.isnan(a) & ~np.isnan(b)).any()
    # Otherwise rounding errors grow from step to step, or decide to which end a gate saturates.
    if argument == "b" or (factor <= 1e2 and argument != "Wh"):
        assert_equal([found[0]], [wanted[0]], floor=1.0)


@pytest.mark.parametrize("name", ["sigmoid", "tanh"])
@DTYPES
def test_functions_at_the_ends(name, dtype):
    from fastrnn._core import layers

    largest = np.finfo(dtype).max
    x = np.array([1e4, -1e4, 88.8, -88.8, 1e30, -1e30, largest, -largest, np.inf, -np.inf], dtype)
    with np.errstate(all="ignore"):
        wanted = np.tanh(x) if name == "tanh" else twin("sigmoid")(x)
    found = getattr(layers, name)(x)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=np.finfo(dtype).smallest_normal)
    assert np.isnan(getattr(layers, name)(np.array([np.nan], dtype))).all()


SCORES = {
    "huge": lambda x: x * 1e30,
    "huge and of one sign": lambda x: np.abs(x) * 1e30,
    "all the same and huge": lambda x: np.full_like(x, 1e30),
    "one huge": lambda x: np.where(np.arange(x.shape[-1]) == 3, 1e30, x),
    "one hugely negative": lambda x: np.where(np.arange(x.shape[-1]) == 3, -1e30, x),
    "the largest there is": lambda x: np.sign(x) * np.finfo(x.dtype).max,
    "one infinite": lambda x: np.where(np.arange(x.shape[-1]) == 3, np.inf, x),
    "one minus infinity": lambda x: np.where(np.arange(x.shape[-1]) == 3, -np.inf, x),
    "all minus infinity": lambda x: np.full_like(x, -np.inf),
    "denormal": lambda x: x * np.finfo(x.dtype).smallest_normal,
    "zero": np.zeros_like,
}


@DTYPES
@pytest.mark.parametrize("kind", SCORES)
@pytest.mark.parametrize("name", ["softmax_loss", "temporal_softmax_loss"])
def test_scores_at_the_ends(name, dtype, kind):
    for V in (5, 13, 301):
        arguments, _ = draw(name, SHORT | {"V": V}, dtype, np.random.default_rng(3))
        arguments["x"] = SCORES[kind](arguments["x"]).astype(dtype)
        found, wanted = both(name, arguments)
        if kind == "the largest there is" and dtype == np.float32:
            # the difference of two scores overflows float32, but not the loss, which is float64
            assert np.isfinite(found[0]) and found[0] > np.finfo(dtype).max
            found, wanted = found[1:], wanted[1:]
        assert_equal(found, wanted, floor=1.0)


@DTYPES
@CELLS
@pytest.mark.parametrize("kind", ["all NULL", "no words", "one word"])
def test_batches_without_words(cell, dtype, kind):
    sizes = SHORT | {"W": 6}
    model, twin_model, features, captions = draw_pair(sizes, cell, dtype)
    captions[:, 1:] = 0
    if kind == "no words":
        captions = captions[:, :1]
    elif kind == "one word":
        captions[2, 4] = 5
    (loss, grads), (wanted, wanted_grads) = (
        m.loss(features, captions) for m in (model, twin_model)
    )
    assert loss == pytest.approx(wanted, rel=1e-5) and (kind == "one word" or loss == 0)
    assert_equal([grads[k] for k in grads], [wanted_grads[k] for k in grads])


@DTYPES
@CELLS
@pytest.mark.parametrize("factor", [1e4, 1e15])
def test_captioner_whose_weights_explode(cell, dtype, factor):
    model, twin_model, features, captions = draw_pair(SHORT | {"W": 6}, cell, dtype)
    for m in (model, twin_model):
        m.params["W_vocab"] = m.params["W_vocab"] * dtype(factor)
    (loss, grads), (wanted, wanted_grads) = (
        m.loss(features, captions) for m in (model, twin_model)
    )
    assert loss == pytest.approx(wanted, rel=1e-3)
    for name, grad in grads.items():
        assert not (np.isnan(grad) & ~np.isnan(wanted_grads[name])).any()


@DTYPES
@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("scale", [1e-45, 1e-20, 1e15, 1e25])
def test_steps_at_the_ends(name, dtype, scale):
    """Gradients whose squares overflow or underflow."""
    arguments, _ = draw(name, SHORT, dtype, np.random.default_rng(3))
    with np.errstate(all="ignore"):
        arguments["dw"] = (arguments["dw"] * scale).astype(dtype)
    assert_equal(*both(name, arguments))
