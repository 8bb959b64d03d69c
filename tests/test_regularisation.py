"""Dropout, label smoothing, caption weights, clipping and averages against their NumPy twins."""

from __future__ import annotations

import numpy as np
import pytest
from equivalence import draw_pair

import fastrnn
from fastrnn import optim, reference
from fastrnn.classifiers.rnn import CaptioningWorkspace, Regularisation
from fastrnn.reference import random

SETTINGS = {
    "word vectors": {"embed_dropout": 0.3},
    "vocabulary": {"vocab_dropout": 0.5},
    "smoothing": {"label_smoothing": 0.1},
    "sampling": {"scheduled_sampling": 0.5},
    "all": {
        "embed_dropout": 0.4,
        "vocab_dropout": 0.25,
        "label_smoothing": 0.2,
        "scheduled_sampling": 0.25,
    },
}
SIZES = {
    "small": {"N": 5, "T": 7, "V": 11, "D": 6, "W": 4, "H": 5},
    "ragged": {"N": 60, "T": 12, "V": 150, "D": 40, "W": 36, "H": 48},
    "empty batch": {"N": 0, "T": 3, "V": 5, "D": 2, "W": 2, "H": 3},
    "no steps": {"N": 4, "T": 0, "V": 5, "D": 2, "W": 2, "H": 3},
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("cell_type", ["rnn", "lstm"])
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("size", SIZES)
def test_the_regularised_loss_is_the_twins(size, setting, cell_type, dtype):
    model, twin, features, captions = draw_pair(SIZES[size], cell_type, dtype)
    how = Regularisation(**SETTINGS[setting], seed=12345678901234567)
    tolerance = 1e-12 if dtype == np.float64 else 1e-5
    wanted_loss, wanted = twin.loss(features, captions, regularisation=how)
    first, workspace = None, CaptioningWorkspace()
    for threads in (1, 2, 3):
        fastrnn.set_num_threads(threads)
        loss, grads = model.loss(features, captions, regularisation=how)
        assert loss == pytest.approx(wanted_loss, rel=tolerance, abs=tolerance)
        for name, grad in grads.items():
            assert grad.dtype == wanted[name].dtype
            scale = np.abs(wanted[name]).max(initial=0)
            np.testing.assert_allclose(grad, wanted[name], rtol=0, atol=4 * tolerance * scale)
        first = first or grads
        _, again = model.loss(features, captions, regularisation=how, workspace=workspace)
        for name in grads:
            assert (grads[name] == first[name]).all(), "bits depend on threads"
            assert (again[name] == first[name]).all(), "bits depend on the workspace"


def test_gradients_of_the_twin_are_the_numerical_ones(rng):
    _, twin, features, captions = draw_pair(SIZES["small"], "lstm", np.float64)
    how = {
        "weights": np.array([1, -0.5, 2, 0, 1]),
        "regularisation": Regularisation(
            embed_dropout=0.3, vocab_dropout=0.4, label_smoothing=0.1, seed=3
        ),
    }
    _, grads = twin.loss(features, captions, **how)
    for name, w in twin.params.items():
        for index in rng.choice(w.size, min(w.size, 12), replace=False):
            place = np.unravel_index(index, w.shape)
            kept, losses = w[place], []
            for step in (1e-5, -1e-5):
                w[place] = kept + step
                losses.append(twin.loss(features, captions, **how)[0])
            w[place] = kept
            assert grads[name][place] == pytest.approx((losses[0] - losses[1]) / 2e-5, abs=1e-8)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("cell_type", ["rnn", "lstm"])
@pytest.mark.parametrize("setting", [{}, SETTINGS["smoothing"], SETTINGS["all"]])
@pytest.mark.parametrize("size", SIZES)
def test_weighted_captions_are_the_twins(size, setting, cell_type, dtype, rng):
    model, twin, features, captions = draw_pair(SIZES[size], cell_type, dtype)
    weights = rng.standard_normal(len(captions)).astype(np.float32)
    weights[::7] = 0
    how = Regularisation(**setting, seed=9)
    tolerance = 1e-12 if dtype == np.float64 else 1e-5
    wanted_loss, wanted = twin.loss(features, captions, weights=weights, regularisation=how)
    for threads in (1, 2):
        fastrnn.set_num_threads(threads)
        loss, grads = model.loss(features, captions, weights=weights, regularisation=how)
        # terms have both signs, so rounding is relative to their size, not to their sum
        assert loss == pytest.approx(wanted_loss, rel=tolerance, abs=20 * tolerance)
        for name, grad in grads.items():
            scale = np.abs(wanted[name]).max(initial=0)
            np.testing.assert_allclose(grad, wanted[name], rtol=0, atol=10 * tolerance * scale)


def test_integer_weights_equal_repeated_captions(rng):
    model, twin, features, captions = draw_pair(SIZES["small"], "lstm", np.float64)
    times = np.array([0, 1, 3, 2, 1])
    rows = np.repeat(np.arange(5), times)
    for network in (model, twin):
        loss, grads = network.loss(features, captions, weights=times)
        wanted_loss, wanted = network.loss(features[rows], captions[rows])
        assert 5 * loss == pytest.approx(7 * wanted_loss, rel=1e-12)
        for name, grad in grads.items():
            np.testing.assert_allclose(5 * grad, 7 * wanted[name], rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize(
    ("weights", "error", "message"),
    [
        (np.ones(4), ValueError, r"weights has shape \(4,\); expected \(N\) = \(5\)"),
        (np.ones((5, 1)), ValueError, r"weights has shape \(5, 1\)"),
        (np.full(5, np.nan), ValueError, "weights holds nan"),
        (["1"] * 5, TypeError, "weights has dtype <U1"),
    ],
)
def test_weights_are_checked(weights, error, message, rng):
    model, twin, features, captions = draw_pair(SIZES["small"], "lstm", np.float64)
    for network in (model, twin):
        with pytest.raises(error, match=message):
            network.loss(features, captions, weights=weights)


def test_smoothing_is_that_of_the_definition(rng):
    model, twin, features, captions = draw_pair(SIZES["small"], "rnn", np.float64)
    captions = rng.integers(1, 11, captions.shape)
    # With W_vocab = 0, the scores are the biases.
    for network in (model, twin):
        network.params["W_vocab"][:] = 0
        network.params["b_vocab"][:] = np.linspace(-1, 2, 11)
    log_probs = np.linspace(-1, 2, 11) - np.log(np.exp(np.linspace(-1, 2, 11)).sum())
    q = 0.9 * np.eye(11)[captions[:, 1:]] + 0.1 / 11
    wanted = -(q * log_probs).sum() / len(captions)
    for network in (model, twin):
        loss, _ = network.loss(
            features, captions, regularisation=Regularisation(label_smoothing=0.1)
        )
        assert loss == pytest.approx(wanted, rel=1e-12)


def test_dropout_drops_its_share_and_keeps_the_mean():
    for rate in (0.1, 0.5, 0.9):
        mask = random.dropout_mask(random.stream_seed(5, random.EMBED), 40, 20, 100, rate)
        assert abs((mask == 0).mean() - rate) < 4 * (rate * (1 - rate) / mask.size) ** 0.5
        assert set(np.unique(mask)) == {0, 1 / (1 - rate)}
    # neighbors along any axis, and draws with another seed, are not correlated
    n = 64
    draws = random.uniform(9, np.arange(n)[:, None], np.arange(n)[None], n)
    others = random.uniform(10, np.arange(n)[:, None], np.arange(n)[None], n)
    for here, there in (
        (draws[1:], draws[:-1]),
        (draws[:, 1:], draws[:, :-1]),
        (draws[:, :, 1:], draws[:, :, :-1]),
        (draws, others),
    ):
        assert abs(np.corrcoef(here.ravel(), there.ravel())[0, 1]) < 0.01
    assert abs(np.histogram(draws, 16, (0, 1))[0] / draws.size - 1 / 16).max() < 0.002


def test_a_rate_of_zero_changes_no_bit():
    model, _, features, captions = draw_pair(SIZES["ragged"], "lstm", np.float32)
    loss, grads = model.loss(features, captions)
    same_loss, same = model.loss(features, captions, regularisation=Regularisation(seed=7))
    assert loss == same_loss
    assert all((grads[name] == same[name]).all() for name in grads)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("cell_type", ["rnn", "lstm"])
@pytest.mark.parametrize("size", ["small", "empty batch", "no steps"])
def test_word_log_probs(size, cell_type, dtype):
    model, twin, features, captions = draw_pair(SIZES[size], cell_type, dtype)
    found = model.word_log_probs(features, captions)
    tolerance = 1e-12 if dtype == np.float64 else 1e-5
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, twin.word_log_probs(features, captions), atol=10 * tolerance)
    assert (found[captions[:, 1:] == 0] == 0).all()
    loss, _ = model.loss(features, captions)
    assert -found.sum() / max(len(captions), 1) == pytest.approx(loss, rel=1e-12)
    np.testing.assert_array_equal(
        found, model.word_log_probs(features, captions, workspace=CaptioningWorkspace())
    )


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [
        ("embed_dropout", 1.0, ValueError),
        ("vocab_dropout", -0.1, ValueError),
        ("label_smoothing", float("nan"), ValueError),
        ("scheduled_sampling", 1.5, ValueError),
        ("seed", -1, ValueError),
        ("seed", 0.5, TypeError),
        ("seed", True, TypeError),
        ("embed_dropout", "half", TypeError),
        ("embed_dropout", True, TypeError),
        ("embed_dropout", 0.5j, TypeError),
    ],
)
def test_settings_are_checked_by_name(field, value, error):
    with pytest.raises(error, match=f"^{field} is "):
        Regularisation(**{field: value})


def test_settings_may_be_numpy_scalars():
    model, _, features, captions = draw_pair(SIZES["small"], "rnn", np.float64)
    losses = [
        model.loss(features, captions, regularisation=how)[0]
        for how in (
            Regularisation(embed_dropout=0.5, scheduled_sampling=0.5, seed=3),
            Regularisation(embed_dropout=np.float32(0.5), scheduled_sampling=0.5, seed=np.int64(3)),
        )
    ]
    assert losses[0] == losses[1]


# -- Clipping and averages


def some_gradients(rng, dtype):
    grads = {name: rng.standard_normal(shape).astype(dtype)
             for name, shape in {"W": (300, 401), "b": (7,), "none": (0, 3)}.items()}  # fmt: skip
    grads["strided"] = rng.standard_normal((20, 30)).astype(dtype)[::2, ::3]
    size = np.dtype(dtype).itemsize
    grads["unaligned"] = np.zeros(50 * size + 1, np.uint8)[1:].view(dtype)
    grads["unaligned"][:] = 3 * rng.standard_normal(50)
    return grads


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_clipping_is_the_twins(dtype, rng):
    grads = some_gradients(rng, dtype)
    mine, twins = ({name: g.copy() for name, g in grads.items()} for _ in range(2))
    mine["strided"] = grads["strided"]  # not a copy, so that it is not contiguous
    mine["unaligned"] = grads["unaligned"]
    optim.clip_by_value(mine, 0.5)
    reference.clip_by_value(twins, 0.5)
    for name in grads:
        np.testing.assert_array_equal(mine[name], twins[name])
        assert np.abs(mine[name]).max(initial=0) <= 0.5


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("limit", [1.0, 1e6])
def test_clipping_by_norm_is_the_twins(limit, dtype):
    found = []
    for threads in (1, 2):
        fastrnn.set_num_threads(threads)
        mine, twins = (some_gradients(np.random.default_rng(5), dtype) for _ in range(2))
        norm = optim.clip_by_norm(mine, limit)
        tolerance = 1e-13 if dtype == np.float64 else 1e-6
        assert norm == pytest.approx(reference.clip_by_norm(twins, limit), rel=tolerance)
        for name in twins:
            np.testing.assert_allclose(mine[name], twins[name], rtol=2 * tolerance)
        after = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in mine.values()))
        assert after == pytest.approx(min(norm, limit), rel=1e-6)
        found.append(norm)
    assert found[0] == found[1]


def test_the_squares_of_gradients_may_be_too_large_for_their_dtype():
    mine, twins = ({"W": np.full(1000, -1e30, np.float32), "b": np.ones(3)} for _ in range(2))
    assert optim.clip_by_norm(mine, 5.0) == pytest.approx(1e30 * 1000**0.5, rel=1e-6)
    reference.clip_by_norm(twins, 5.0)
    for name in twins:
        np.testing.assert_allclose(mine[name], twins[name], rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_averages_are_the_twins(dtype, rng):
    mean, w = rng.standard_normal((2, 130, 77)).astype(dtype)
    for view in (np.s_[:], np.s_[::2, ::3]):
        mine, twins = mean.copy()[view], mean.copy()[view]
        assert optim.average(mine, w[view], 0.1) is mine
        reference.average(twins, w[view], 0.1)
        np.testing.assert_allclose(mine, twins, atol=1e-15 if dtype == np.float64 else 3e-7)


@pytest.mark.parametrize("module", [optim, reference])
def test_errors_of_clipping_and_averages(module):
    grads = {"W": np.ones(3)}
    with pytest.raises(ValueError, match="limit is 0"):
        module.clip_by_value(grads, 0)
    with pytest.raises(ValueError, match="limit is -1"):
        module.clip_by_norm(grads, -1)
    with pytest.raises(TypeError, match=r"W.*int64"):
        module.clip_by_norm({"W": np.ones(3, dtype=np.int64)}, 1)
    grads["W"].flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        module.clip_by_value(grads, 1)
    with pytest.raises(ValueError, match=r"w has shape \(2,\); expected the shape of mean"):
        module.average(np.ones(3), np.ones(2), 0.5)
    with pytest.raises(ValueError, match="mean is read-only"):
        module.average(grads["W"], np.ones(3), 0.5)
