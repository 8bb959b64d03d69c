"""Decoding against its NumPy twin, exhaustive search and expected frequencies."""

from __future__ import annotations

import itertools
import signal
import time
from collections import Counter

import numpy as np
import pytest
from equivalence import vocabulary

import fastrnn
from fastrnn import decoding
from fastrnn._core import scheduled
from fastrnn.classifiers.rnn import CaptioningRNN
from fastrnn.reference import decoding as reference
from fastrnn.reference import rnn_layers

SIZES = {  # N, T, V, D, W, H
    "small": (5, 7, 11, 6, 4, 5),
    "ragged": (60, 9, 150, 32, 24, 36),
    "odd": (33, 6, 40, 7, 20, 33),
    "one": (1, 3, 5, 2, 2, 3),
}
CELLS = pytest.mark.parametrize("cell_type", ["rnn", "lstm"])
EVERY_SIZE = pytest.mark.parametrize("size", SIZES)


def draw_model(size, cell_type, dtype=np.float64, scale=3.0, seed=1):
    """Return features, and a model with large weights, so that its scores differ clearly."""
    N, _, V, D, W, H = SIZES[size]
    np.random.seed(seed)
    model = CaptioningRNN(vocabulary(V), D, W, H, cell_type, dtype)
    for name in model.params:
        model.params[name] *= scale
    model.params["W_embed"] *= 30
    model.params["b_vocab"][2] += 1.5  # so that some captions end and some do not
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
    rest = probability, 2**63 + 12345, 0
    wanted = reference.mix(model.params, features, captions, *rest, cell_type)
    for threads in (1, 2, 3):
        fastrnn.set_num_threads(threads)
        found = scheduled.mix(model.params, features, captions, *rest, cell_type)
        assert found.dtype == np.int32
        np.testing.assert_array_equal(found, wanted)
    if probability == 0:
        np.testing.assert_array_equal(found, captions[:, :-1] % SIZES[size][2])


def test_mixed_words_in_float32_are_nearly_all_those_of_float64(rng):
    model, features = draw_model("ragged", "lstm", np.float32)
    captions = draw_captions("ragged", rng)
    found = scheduled.mix(model.params, features, captions, 0.5, 7, 0, "lstm")
    params = {name: w.astype(np.float64) for name, w in model.params.items()}
    wanted = reference.mix(params, features.astype(np.float64), captions, 0.5, 7, 0, "lstm")
    assert (found == wanted).mean() > 0.99
    assert (found != captions[:, :-1] % 150).mean() > 0.05


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_words_are_mixed_in_and_drawn_as_often_as_they_should_be(dtype):
    """If the scores are only a bias, words are drawn from the softmax of the bias."""
    V, N, T = 300, 4000, 6
    model = CaptioningRNN(vocabulary(V), 3, 4, 5, "rnn", dtype)
    bias = np.random.default_rng(3).standard_normal(V)
    model.params["W_vocab"][:] = 0
    model.params["b_vocab"] = bias.astype(dtype)
    captions = np.full((N, T + 1), 1)
    inputs = scheduled.mix(model.params, np.ones((N, 3), dtype), captions, 0.4, 5, 0, "rnn")
    assert (inputs[:, 0] == 1).all()
    share = np.exp(bias) / np.exp(bias).sum()
    expected = 0.4 * share
    expected[1] += 0.6
    counts, trials = np.bincount(inputs[:, 1:].ravel(), minlength=V), N * (T - 1)
    chi_square = ((counts - trials * expected) ** 2 / (trials * expected)).sum()
    assert abs(chi_square - (V - 1)) < 5 * np.sqrt(2 * (V - 1))
    again = scheduled.mix(model.params, np.ones((N, 3), dtype), captions, 0.4, 6, 0, "rnn")
    assert (again != inputs).any()


def test_nothing_is_drawn_from_nan_scores(rng):
    model, features = draw_model("small", "rnn")
    captions = draw_captions("small", rng)
    model.params["b_vocab"][:] = np.nan
    mixed = scheduled.mix(model.params, features, captions, 1.0, 0, 0, "rnn")
    np.testing.assert_array_equal(mixed, captions[:, :-1] % 11)


def test_captions_that_cannot_be_mixed_into():
    model, features = draw_model("small", "rnn")
    with pytest.raises(IndexError, match="captions holds the id 11"):
        scheduled.mix(model.params, features, np.full((5, 3), 11), 0.5, 0, 0, "rnn")
    with pytest.raises(ValueError, match="captions has shape"):
        scheduled.mix(model.params, features, np.full((4, 3), 1), 0.5, 0, 0, "rnn")


# ---- Beam search ---------------------------------------------------------------------------------

OPTIONS = {
    "plain": {},
    "one": {"width": 1},
    "sum": {"length_penalty": 0.0, "n_best": 3},
    "wide": {"width": 7, "n_best": 7},
    "wider than the vocabulary": {"width": 170, "n_best": 2, "max_length": 3},
    "power": {"length_penalty": 0.8, "n_best": 3},
    "wu": {"length_penalty": 0.8, "length_rule": "wu", "n_best": 3},
    "reward": {"word_reward": 0.7, "n_best": 3},
    "no bigram twice": {"no_repeat_ngram": 2, "n_best": 3},
    "no word twice": {"no_repeat_ngram": 1, "n_best": 3},
    "without some words": {"suppress": ["<UNK>", "<NULL>", "<START>", "<UNK>"], "n_best": 3},
    "without an end": {"suppress": ["<END>"], "no_repeat_ngram": 1, "n_best": 3},
    "empty captions": {"min_length": 0, "n_best": 3},
    "five words": {"min_length": 5, "n_best": 3, "no_repeat_ngram": 3},
    "longer than the longest": {"min_length": 90, "suppress": ["<END>", "<UNK>"], "n_best": 3},
    "groups": {"width": 6, "groups": 3, "diversity": 0.7, "n_best": 6, "no_repeat_ngram": 2},
    "groups of one": {"width": 3, "groups": 3, "diversity": 2.0, "n_best": 3},
}


def assert_is_that_of_the_twin(found, wanted, exact=True):
    """Check that hypotheses and their order are the same, with zeros after their ends."""
    for n, pairs in enumerate(wanted):
        for k in range(found.ids.shape[1]):
            if k >= len(pairs):
                assert found.log_probs[n, k] == found.scores[n, k] == -np.inf
                assert not found.ids[n, k].any() and not found.word_log_probs[n, k].any()
                continue
            hypothesis, score = pairs[k]
            length = len(hypothesis.words)
            assert found.ids[n, k, :length].tolist() == [*hypothesis.words]
            assert not found.ids[n, k, length:].any()
            assert not found.word_log_probs[n, k, length:].any()
            close = {"rtol": 1e-12, "atol": 1e-12} if exact else {"rtol": 1e-4, "atol": 1e-4}
            words = found.word_log_probs[n, k, :length]
            np.testing.assert_allclose(words, hypothesis.word_log_probs, **close)
            np.testing.assert_allclose(found.log_probs[n, k], hypothesis.log_prob, **close)
            np.testing.assert_allclose(found.scores[n, k], score, **close)


def fields(decoded):
    return decoded.ids, decoded.word_log_probs, decoded.log_probs, decoded.scores


def assert_is_that_of_the_twin_for_any_threads(decode, wanted):
    """Check against the twin, and that results are bit-identical for any number of threads."""
    first = None
    for threads in (1, 2, 3):
        fastrnn.set_num_threads(threads)
        found = decode()
        assert_is_that_of_the_twin(found, wanted)
        first = first or found
        assert all((a == b).all() for a, b in zip(fields(first), fields(found), strict=True))


@CELLS
@pytest.mark.parametrize("size", ["small", "odd", "one"])
@pytest.mark.parametrize("options", OPTIONS)
def test_beam_search_is_that_of_the_twin(options, size, cell_type):
    model, features = draw_model(size, cell_type)
    options = {"max_length": 7} | OPTIONS[options]
    if size == "odd":
        features = features[:12]
    wanted = reference.beam_search(model, features, **options)
    assert_is_that_of_the_twin_for_any_threads(
        lambda: decoding.beam_search(model, features, **options), wanted
    )


def test_the_cases_of_the_twin_are_worth_comparing():
    """Some captions end early, some late and some never, and the groups differ."""
    model, features = draw_model("odd", "lstm")
    found = decoding.beam_search(model, features, 6, 7, n_best=6, groups=3, diversity=0.7)
    lengths = (found.word_log_probs != 0).sum(axis=2)
    assert len(np.unique(lengths)) > 4
    ended = (found.ids == 2).any(axis=2)
    assert 0.2 < ended.mean() < 0.95
    together = decoding.beam_search(model, features, 6, 7, n_best=6, groups=3, diversity=0.0)
    assert (found.ids != together.ids).any()


@CELLS
def test_beam_search_in_float32_is_nearly_that_of_float64(cell_type):
    model, features = draw_model("ragged", cell_type, np.float32)
    found = decoding.beam_search(model, features, 4, 9, n_best=4, length_penalty=0.5)
    model.params = {name: w.astype(np.float64) for name, w in model.params.items()}
    wanted = decoding.beam_search(model, features, 4, 9, n_best=4, length_penalty=0.5)
    same = (found.ids == wanted.ids).all(axis=(1, 2))
    assert same.mean() > 0.9
    np.testing.assert_allclose(
        found.word_log_probs[same], wanted.word_log_probs[same], rtol=1e-4, atol=1e-4
    )


@CELLS
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", SIZES)
def test_a_width_of_one_is_greedy(size, dtype, cell_type):
    model, features = draw_model(size, cell_type, dtype)
    for threads in (1, 2):
        fastrnn.set_num_threads(threads)
        for rows in {1, 2, len(features)}:
            wanted = model.sample(features[:rows], 12, stop_at_end=True)
            found = decoding.beam_search(model, features[:rows], 1, 12, min_length=0)
            np.testing.assert_array_equal(found.ids[:, 0], wanted)
            again = decoding.greedy(model, features[:rows], 12, min_length=0)
            assert all((a == b).all() for a, b in zip(fields(found), fields(again), strict=True))


@CELLS
@pytest.mark.parametrize("least", [0, 1, 2])
def test_a_wide_beam_equals_exhaustive_search(cell_type, least):
    """Compare with all captions of up to 4 words, each scored by the layers of the twin."""
    T, V = 4, 5
    np.random.seed(4)
    model = CaptioningRNN(vocabulary(V), 3, 4, 6, cell_type, np.float64)
    for name in model.params:
        model.params[name] *= 3
    features = np.random.default_rng(2).standard_normal((3, 3))
    every = [
        words
        for length in range(1, T + 1)
        for words in itertools.product(range(V), repeat=length)
        if 2 not in words[:-1] and (words[-1] == 2 or length == T)
    ]
    p = model.params
    forward = {"rnn": rnn_layers.rnn_forward, "lstm": rnn_layers.lstm_forward}[cell_type]
    wanted = []
    for row in features:
        scored = []
        for words in every:
            x = p["W_embed"][[1, *words[:-1]]][None]
            h, _ = forward(x, (row @ p["W_proj"] + p["b_proj"])[None], p["Wx"], p["Wh"], p["b"])
            scores = h[0] @ p["W_vocab"] + p["b_vocab"]
            log_probs = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
            total = log_probs[range(len(words)), words].sum()
            scored.append((total / len(words) ** 0.7, total, words))
        assert np.exp([total for _, total, _ in scored]).sum() == pytest.approx(1)
        scored = [found for found in scored if len([w for w in found[2] if w != 2]) >= least]
        wanted.append(sorted(scored, reverse=True))
    found = decoding.beam_search(
        model, features, V**T, T, n_best=len(every) + 1, length_penalty=0.7, min_length=least
    )
    for n in range(len(features)):
        for k, (score, total, words) in enumerate(wanted[n]):
            assert found.ids[n, k].tolist() == [*words, *[0] * (T - len(words))]
            assert found.scores[n, k] == pytest.approx(score, rel=1e-12)
            assert found.log_probs[n, k] == pytest.approx(total, rel=1e-12)
        assert found.scores[n, len(wanted[n])] == -np.inf


def test_log_probabilities_are_those_of_the_loss():
    """The loss of the captions found is minus the sum of their log-probabilities, divided by N."""
    model, features = draw_model("small", "lstm")
    found = decoding.beam_search(model, features, 3, 6, suppress=["<NULL>"])
    captions = np.concatenate([np.ones((5, 1), int), found.ids[:, 0]], axis=1)
    loss, _ = model.loss(features, captions)
    assert found.log_probs.sum() == pytest.approx(-5 * loss, rel=1e-12)
    np.testing.assert_allclose(found.word_log_probs.sum(axis=2), found.log_probs, rtol=1e-12)


def test_equal_scores_go_to_the_better_hypothesis_and_the_lower_id():
    model = CaptioningRNN(vocabulary(7), 3, 4, 5, "rnn", np.float32)
    for w in model.params.values():
        w[...] = 0
    found = decoding.beam_search(model, np.ones((2, 3)), 3, 2, n_best=3, suppress=["<END>"])
    assert found.ids.tolist() == [[[0, 0], [0, 1], [0, 3]]] * 2
    apart = {"groups": 3, "diversity": 1.0, "suppress": ["<END>"]}
    found = decoding.beam_search(model, np.ones((2, 3)), 3, 1, n_best=3, **apart)
    assert found.ids.tolist() == [[[0], [1], [3]]] * 2
    # three hypotheses end at the same step, when only two more are needed
    model.params["b_vocab"][2] = 1
    found = decoding.beam_search(
        model, np.ones((2, 3)), 3, 4, n_best=3, length_penalty=0, min_length=0
    )
    assert found.ids[:, :, :2].tolist() == [[[2, 0], [0, 2], [1, 2]]] * 2


@pytest.mark.parametrize("n", [1, 2, 3])
def test_no_ngram_is_repeated(n):
    model, features = draw_model("odd", "rnn")
    model.params["b_vocab"][2] = -50
    before = decoding.beam_search(model, features, 4, 14, n_best=4)
    found = decoding.beam_search(model, features, 4, 14, n_best=4, no_repeat_ngram=n)

    def most(decoded):
        captions = decoded.ids.reshape(-1, 14).tolist()
        return max(
            max(Counter(zip(*(c[i:] for i in range(n)), strict=False)).values()) for c in captions
        )

    assert most(before) > 1
    assert most(found) == 1


def test_suppress_unk():
    model, features = draw_model("small", "lstm")
    model.params["b_vocab"][3] += 5
    assert (decoding.greedy(model, features, 8).ids == 3).any()
    for found in (
        decoding.greedy(model, features, 8, suppress_unk=True),
        decoding.beam_search(model, features, 3, 8, n_best=3, suppress_unk=True),
        decoding.sample(model, features, 8, count=9, suppress_unk=True),
    ):
        assert not (found.ids == 3).any()


def test_the_probability_of_a_word_is_that_of_the_model_whatever_the_minimum_length():
    model, features = draw_model("small", "lstm")
    model.params["b_vocab"][2] += 9
    free = decoding.greedy(model, features, 6, min_length=0)
    assert (free.ids[:, 0, 0] == 2).all(), "the model prefers to say nothing"
    for least in (1, 4, 60):
        found = decoding.greedy(model, features, 6, min_length=least)
        words = (found.ids[:, 0] != 2) & (found.word_log_probs[:, 0] != 0)
        assert (words.sum(axis=1) == min(least, 6)).all()
        np.testing.assert_allclose(np.exp(free.word_log_probs[:, 0, 0]), 1, atol=0.01)
        captions = np.concatenate([np.ones((5, 1), int), found.ids[:, 0]], axis=1)
        np.testing.assert_allclose(
            found.word_log_probs[:, 0].sum(axis=1), model.word_log_probs(features, captions).sum(1)
        )
    drawn = decoding.sample(model, features, 6, count=50)
    assert (drawn.ids[:, :, 0] != 2).all()


class Rang(Exception):
    """What the handler of a signal raises."""


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this platform has no timers")
@pytest.mark.parametrize("rows", [1, 400], ids=["few rows", "many rows"])
@pytest.mark.parametrize("decode", ["beam_search", "sample"])
def test_a_signal_stops_a_search_at_once(decode, rows):
    """The search takes a minute; the exception of the handler leaves it, and the next one works."""
    model = CaptioningRNN(vocabulary(3000), 16, 64, 512, "lstm", np.float32)
    model.params["b_vocab"][2] = -1000
    features = np.random.default_rng(0).standard_normal((rows, 16)).astype(np.float32)
    much = {"max_length": 300_000 // rows}
    if decode == "beam_search":
        much = {"max_length": 40_000 // rows, "width": 4 if rows == 1 else 200}

    def ring(*_: object) -> None:
        raise Rang

    before = signal.signal(signal.SIGALRM, ring)
    try:
        for threads in (1, 2):
            fastrnn.set_num_threads(threads)
            signal.setitimer(signal.ITIMER_REAL, 0.3)
            began = time.perf_counter()
            with pytest.raises(Rang):
                getattr(decoding, decode)(model, features, **much)
            assert time.perf_counter() - began < 5
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    small, few = draw_model("small", "lstm")
    wanted = reference.beam_search(small, few, 3, 7)
    assert_is_that_of_the_twin(decoding.beam_search(small, few, 3, 7), wanted)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this platform has no timers")
def test_a_signal_whose_handler_raises_nothing_changes_no_bit():
    model, features = draw_model("ragged", "lstm", np.float32)
    options = {"width": 30, "max_length": 60, "n_best": 4, "suppress": ["<END>"]}
    wanted = decoding.beam_search(model, features, **options)
    seen = []
    before = signal.signal(signal.SIGALRM, lambda *_: seen.append(None))
    try:
        for _ in range(50):
            signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
            found = decoding.beam_search(model, features, **options)
            signal.setitimer(signal.ITIMER_REAL, 0)
            assert all((a == b).all() for a, b in zip(fields(found), fields(wanted), strict=True))
            if len(seen) > 20:
                break
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert seen


def test_captions_without_words_are_those_of_the_twin():
    """If all words are suppressed or max_length is 0, the empty caption has a score."""
    model, features = draw_model("small", "rnn")
    for options in ({"max_length": 0}, {"suppress": list(model.word_to_idx)}):
        wanted = reference.beam_search(model, features, **options)
        assert wanted[0][0][0].words == ()
        assert_is_that_of_the_twin(decoding.beam_search(model, features, **options), wanted)


@CELLS
@pytest.mark.parametrize("rows", [1, 5])
def test_suppressed_word_with_a_negative_id(rows, cell_type):
    model, features = draw_model("small", cell_type)
    model.word_to_idx["w10"] = -1
    model.params["b_vocab"][10] += 5
    features = features[:rows]
    assert (decoding.greedy(model, features, 6).ids == 10).any()
    wanted = reference.beam_search(model, features, 3, 6, n_best=3, suppress=["w10"])
    found = decoding.beam_search(model, features, 3, 6, n_best=3, suppress=["w10"])
    assert_is_that_of_the_twin(found, wanted)
    assert not (found.ids == 10).any()


def test_diversity_makes_captions_differ():
    model, features = draw_model("ragged", "lstm", scale=1.5)
    model.params["b_vocab"][2] = -20  # avoid <END> as first word: it gets no diversity penalty

    def distinct(**options):
        found = decoding.beam_search(model, features, 4, 9, n_best=4, **options)
        first = found.ids[:, :, 0]
        return np.mean([len(set(row)) for row in first.tolist()])

    assert distinct(groups=4, diversity=0.0) == 1
    assert distinct(groups=4, diversity=0.5) < distinct(groups=4, diversity=5.0) == 4


# ---- Drawn captions ------------------------------------------------------------------------------

DRAWS = {
    "plain": {},
    "cold": {"temperature": 0.4},
    "hot": {"temperature": 3.0},
    "top_k": {"top_k": 5},
    "more than there are": {"top_k": 10**6},
    "top_p": {"top_p": 0.7},
    "hot top_p": {"top_p": 0.97, "temperature": 4.0},
    "both": {"top_p": 0.8, "top_k": 4, "temperature": 1.3},
    "no word twice": {"no_repeat_ngram": 1, "suppress": ["<UNK>"]},
    "nothing left": {"no_repeat_ngram": 1, "suppress": ["<END>"], "top_p": 0.9},
}


@CELLS
@pytest.mark.parametrize("size", ["small", "odd", "one"])
@pytest.mark.parametrize("options", DRAWS)
def test_draws_are_those_of_the_twin(options, size, cell_type):
    model, features = draw_model(size, cell_type)
    features = features[:12]
    options = {"count": 3, "max_length": 6, "seed": 2**40 + 3} | DRAWS[options]
    wanted = [
        [(h, h.log_prob) for h in row] for row in reference.sample(model, features, **options)
    ]
    assert_is_that_of_the_twin_for_any_threads(
        lambda: decoding.sample(model, features, **options), wanted
    )


def test_top_p_of_a_long_tail_is_that_of_the_twin():
    """The words that make up top_p are more than the core examines in one pass."""
    V = 2000
    np.random.seed(5)
    model = CaptioningRNN(vocabulary(V), 3, 4, 5, "lstm", np.float64)
    features = np.random.default_rng(5).standard_normal((8, 3))
    for top_p in (0.5, 0.9, 1 - 1e-15):
        wanted = reference.sample(model, features, 3, top_p=top_p, seed=9)
        found = decoding.sample(model, features, 3, top_p=top_p, seed=9)
        assert_is_that_of_the_twin(found, [[(h, h.log_prob) for h in row] for row in wanted])


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, range(6)),
        ({"top_k": 3}, [5, 1, 3]),
        ({"top_p": 0.75}, [5, 1]),
        ({"top_p": 0.81}, [5, 1, 3]),
        ({"top_p": 0.75, "top_k": 1}, [5]),
        ({"top_p": 0.8, "temperature": 2.0}, [5, 1, 3, 0]),
    ],
)
def test_words_are_drawn_as_often_as_they_should_be(options, kept):
    share = np.array([0.08, 0.3, 0.04, 0.1, 0.03, 0.45])
    model = CaptioningRNN(vocabulary(6), 3, 4, 5, "rnn", np.float32)
    model.params["W_vocab"][:] = 0
    model.params["b_vocab"] = np.log(share).astype(np.float32)
    found = decoding.sample(
        model, np.ones((4000, 3), np.float32), 1, count=2, min_length=0, **options
    )
    expected = np.zeros(6)
    kept = [*kept]
    expected[kept] = share[kept] ** (1 / options.get("temperature", 1))
    expected /= expected.sum()
    counts = np.bincount(found.ids.ravel(), minlength=6)
    assert (counts[expected == 0] == 0).all()
    assert (np.abs(counts / 8000 - expected) <= 5 * np.sqrt(expected / 8000)).all()
    np.testing.assert_allclose(found.log_probs, np.log(share)[found.ids[:, :, 0]], rtol=1e-5)


def test_draws_depend_on_seed_and_place_alone():
    model, features = draw_model("ragged", "lstm", np.float32, scale=1.0)
    found = decoding.sample(model, features, 9, count=3, seed=4)
    for rows, count in ((60, 1), (60, 2), (20, 3)):
        fewer = decoding.sample(model, features[:rows], 9, count=count, seed=4)
        np.testing.assert_array_equal(fewer.ids, found.ids[:rows, :count])
        np.testing.assert_array_equal(fewer.log_probs, found.log_probs[:rows, :count])
    assert (decoding.sample(model, features, 9, count=3, seed=5).ids != found.ids).mean() > 0.3
    assert len({tuple(row) for row in found.ids[:, 0].tolist()}) > 50


def test_an_improbable_word_is_not_drawn_because_all_numbers_are_zero():
    """The hash of the seed 0, the first image, the first step and the first draw was 0."""
    model = CaptioningRNN(vocabulary(6), 3, 4, 5, "rnn", np.float32)
    model.params["b_vocab"][:] = [-30, -20, 0, 0, 0, 0]
    for decode in (decoding.sample, reference.sample):
        found = decode(model, np.ones((1, 3), np.float32), 4)
        words = found.ids if decode is decoding.sample else found[0][0].words
        assert np.ravel(words)[0] >= 2


def test_equal_scores_are_kept_by_the_lower_id():
    model = CaptioningRNN(vocabulary(9), 3, 4, 5, "rnn", np.float64)
    for w in model.params.values():
        w[...] = 0
    for options in ({"top_k": 3}, {"top_p": 0.3}):
        found = decoding.sample(model, np.ones((60, 3)), 1, min_length=0, **options)
        assert np.unique(found.ids).tolist() == [0, 1, 2]


def test_a_temperature_near_zero_is_greedy():
    for dtype in (np.float32, np.float64):
        model, features = draw_model("odd", "lstm", dtype)
        wanted = decoding.greedy(model, features, 8)
        for temperature in (1e-6, 1e-300):
            found = decoding.sample(model, features, 8, temperature=temperature)
            np.testing.assert_array_equal(found.ids, wanted.ids)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_high_temperature_draws_all_words_alike(dtype):
    model, features = draw_model("odd", "lstm", dtype)
    wanted = decoding.sample(model, features, 8, temperature=1e20, suppress=["w9"])
    assert len(np.unique(wanted.ids)) == 39
    found = decoding.sample(model, features, 8, temperature=1e300, suppress=["w9"])
    np.testing.assert_array_equal(found.ids, wanted.ids)


# ---- Results -------------------------------------------------------------------------------------


def test_captions_are_text():
    ids = np.array([[[4, 5, 2], [4, 0, 5]], [[2, 0, 0], [0, 0, 0]]], dtype=np.int32)
    log_probs = np.array([[-1.0, -2.0], [-1.0, -np.inf]])
    decoded = decoding.Decoded(ids, np.zeros((2, 2, 3)), log_probs, log_probs)
    words = {0: "<NULL>", 2: "<END>", 4: "a", 5: "dog"}
    assert decoded.captions(words) == [["a dog", "a dog"], [""]]


@pytest.mark.parametrize("decode", [decoding.greedy, decoding.beam_search, decoding.sample])
def test_nothing_to_decode(decode):
    model, features = draw_model("small", "lstm")
    empty = decode(model, features[:0], max_length=4)
    assert [f.shape for f in fields(empty)] == [(0, 1, 4), (0, 1, 4), (0, 1), (0, 1)]
    assert empty.captions(model.idx_to_word) == []
    wordless = decode(model, features, max_length=0)
    assert wordless.ids.shape == (5, 1, 0)
    assert (wordless.log_probs == 0).all()
    assert wordless.captions(model.idx_to_word) == [[""]] * 5
    found = decode(model, features)
    assert found.ids.dtype == np.int32 and found.ids.shape == (5, 1, 30)
    assert all(f.dtype == np.float64 for f in fields(found)[1:])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_features_of_another_kind(dtype):
    model, features = draw_model("small", "lstm", dtype)
    wanted = decoding.beam_search(model, features, 3, 6)
    for other in (np.asfortranarray(features), features[::-1][::-1], features.tolist()):
        found = decoding.beam_search(model, other, 3, 6)
        np.testing.assert_array_equal(found.ids, wanted.ids)


# ---- Bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("decode", "options", "error", "message"),
    [
        ("beam_search", {"width": 0}, ValueError, "width is 0; expected at least 1"),
        ("beam_search", {"width": 2.0}, TypeError, "width is 2.0; expected an integer"),
        ("beam_search", {"width": True}, TypeError, "width is True; expected an integer"),
        ("beam_search", {"n_best": 4}, ValueError, "n_best is 4; expected at most width = 3"),
        ("beam_search", {"n_best": 0}, ValueError, "n_best is 0; expected at least 1"),
        ("beam_search", {"groups": 2}, ValueError, "groups is 2; expected a divisor of width = 3"),
        ("beam_search", {"groups": 0}, ValueError, "groups is 0; expected at least 1"),
        ("beam_search", {"diversity": -1}, ValueError, "diversity is -1.0; expected at least 0"),
        ("beam_search", {"diversity": "1"}, TypeError, "diversity is '1'; expected a number"),
        ("beam_search", {"word_reward": np.True_}, TypeError, r"word_reward is .*True.*; expected"),
        ("beam_search", {"length_penalty": np.nan}, ValueError, "length_penalty is nan; expected"),
        ("beam_search", {"length_rule": "bert"}, ValueError, "length_rule is 'bert'; expected"),
        ("beam_search", {"word_reward": np.inf}, ValueError, "word_reward is inf; expected a"),
        ("beam_search", {"no_repeat_ngram": -1}, ValueError, "no_repeat_ngram is -1; expected at"),
        ("beam_search", {"min_length": -1}, ValueError, "min_length is -1; expected at least 0"),
        ("sample", {"min_length": 1.5}, TypeError, "min_length is 1.5; expected an integer"),
        ("beam_search", {"max_length": -1}, ValueError, "max_length is -1; expected at least 0"),
        ("beam_search", {"suppress": ["zebra"]}, ValueError, "suppress: .* no 'zebra'"),
        ("beam_search", {"suppress": "dog"}, TypeError, "suppress is 'dog'; expected a list"),
        ("greedy", {"no_repeat_ngram": 1.5}, TypeError, "no_repeat_ngram is 1.5; expected an"),
        ("sample", {"temperature": 0}, ValueError, "temperature is 0.0; expected"),
        ("sample", {"temperature": np.inf}, ValueError, "temperature is inf; expected a finite"),
        ("sample", {"top_p": 0}, ValueError, r"top_p is 0.0; expected a number in \(0, 1\]"),
        ("sample", {"top_p": 1.1}, ValueError, r"top_p is 1.1; expected a number in \(0, 1\]"),
        ("sample", {"top_k": -1}, ValueError, "top_k is -1; expected at least 0"),
        ("sample", {"count": 0}, ValueError, "count is 0; expected at least 1"),
        ("sample", {"seed": -1}, ValueError, "seed is -1; expected at least 0"),
        ("sample", {"seed": 2**64}, ValueError, "seed is 18446744073709551616; expected"),
        ("sample", {"seed": None}, TypeError, "seed is None; expected an integer"),
    ],
)  # fmt: skip
def test_bad_options_are_named(decode, options, error, message):
    model, features = draw_model("small", "rnn")
    with pytest.raises(error, match=message):
        getattr(decoding, decode)(model, features, **options)


@pytest.mark.parametrize("decode", [decoding.greedy, decoding.beam_search, decoding.sample])
def test_bad_models_and_features_are_named(decode):
    model, features = draw_model("small", "rnn")
    with pytest.raises(ValueError, match=r"features has shape \(5, 5\); expected \(N, D\)"):
        decode(model, features[:, :5])
    with pytest.raises(TypeError, match="features has dtype <U1"):
        decode(model, [["a"]])
    for bad in (np.nan, np.inf):
        with pytest.raises(ValueError, match="scores of the words are not finite"):
            decode(model, np.where(np.arange(5)[:, None] == 3, bad, features))
    for missing in ("<START>", "<END>", "<UNK>"):
        words = {word: i for word, i in model.word_to_idx.items() if word != missing}
        other = CaptioningRNN(words, 6, 4, 5, "rnn")
        with pytest.raises(ValueError, match=f"word_to_idx has no '{missing}'"):
            decode(other, features, suppress_unk=missing == "<UNK>")
    model.params["b_vocab"] = np.zeros(3)
    with pytest.raises(ValueError, match="b_vocab has shape"):
        decode(model, features)


def test_words_with_a_score_of_minus_infinity_are_never_found():
    model, features = draw_model("small", "rnn")
    model.params["b_vocab"][4:] = -np.inf
    found = decoding.beam_search(model, features, 3, 5, n_best=3)
    assert found.ids.max() < 4
    assert (decoding.sample(model, features, 5, count=20, temperature=9.0).ids < 4).all()
    model.params["b_vocab"][:] = -np.inf
    with pytest.raises(ValueError, match="not finite"):
        decoding.greedy(model, features)
