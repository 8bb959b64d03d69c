"""Products in bfloat16 against `fastrnn.reference`, which rounds the operands in NumPy."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from equivalence import (
    MODELS,
    SIZES,
    assert_rounded_alike,
    check_rounded_model,
    compiled,
    draw,
    draw_captions,
    draw_model,
    loss_and_gradients,
    rms,
    rounded_pair,
    twin,
)

from fastrnn import decoding, set_num_threads
from fastrnn._core import runtime, scheduled
from fastrnn.classifiers import rnn as classifier
from fastrnn.classifiers.rnn import CaptioningWorkspace, Regularisation
from fastrnn.reference import bfloat16
from fastrnn.reference import decoding as twins

CELLS = pytest.mark.parametrize("cell", ["rnn", "lstm"])
ISAS = ["baseline", "avx2", "avx512", "avx512_bf16"]  # in increasing order
LARGE = {"N": 60, "T": 4, "D": 130, "H": 300, "V": 5, "M": 5}  # threads share the columns


def run_layer(find, cell, arguments, dh, **keywords):
    h, cache = find(f"{cell}_forward")(**arguments, **keywords)
    return [h, *find(f"{cell}_backward")(dh, cache)]


# ---- Rounding ------------------------------------------------------------------------------------


def edges() -> np.ndarray:
    """Floats of every exponent and sign at, above and below the halves of the last place."""
    upper = np.arange(0, 0x10000, 17, dtype=np.uint32) << 16
    lower = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], dtype=np.uint32)
    return (upper[:, None] | lower).ravel().view(np.float32)


def test_rounding_of_the_twin_is_to_nearest_even():
    """By arithmetic in float64: the nearest multiple of the last place, ties to even."""
    x = edges()
    x = x[np.isfinite(x) & ((x == 0) | (np.abs(x) >= np.finfo(np.float32).smallest_normal))]
    x = x[np.abs(x) < 3.3e38]
    place = np.exp2(np.floor(np.log2(np.where(x == 0, 1, np.abs(x.astype(np.float64))))) - 7)
    np.testing.assert_array_equal(bfloat16.round_to_bfloat16(x), np.round(x / place) * place)


def test_rounding_of_special_values():
    x = np.array([np.inf, -np.inf, np.nan, 3.4e38, -3.4e38, 1e-40, -1e-40, 0.0, -0.0], np.float32)
    got = bfloat16.round_to_bfloat16(x)
    np.testing.assert_array_equal(got, [np.inf, -np.inf, np.nan, np.inf, -np.inf, 0, 0, 0, 0])
    np.testing.assert_array_equal(np.signbit(got)[[5, 6, 7, 8]], [False, True, False, True])
    low_nan = np.array([0x7F800001, 0xFF800001], np.uint32).view(np.float32)  # no upper half
    assert np.isnan(bfloat16.round_to_bfloat16(low_nan)).all()


def rounded_by_row(x):
    """Round by the path of the time loop: dx of a step whose weights are 1 is its rounded dh."""
    n = len(x)
    one, zero = np.ones((1, 1), np.float32), np.zeros((n, 1), np.float32)
    _, cache = compiled("rnn_forward")(
        zero[:, None], zero, one, 0 * one, np.zeros(1, np.float32), precision="bfloat16"
    )
    return compiled("rnn_backward")(x[:, None, None], cache)[0].ravel()


def rounded_as_tile(x):
    """Round while rows are packed: dWx of one token is the outer product of x and dh."""
    n = len(x)
    zeros = [np.zeros(s, np.float32) for s in ((1, 1), (n, 1), (1, 1), (1,))]
    _, cache = compiled("rnn_forward")(x[None, None], *zeros, precision="bfloat16")
    return compiled("rnn_backward")(np.ones((1, 1, 1), np.float32), cache)[2].ravel()


def rounded_as_panel(x):
    """Round while columns are packed: dWx of one token whose x is 1 is its rounded dh."""
    found = []
    for part in np.array_split(x, len(x) // 40):
        n = len(part)
        zeros = [np.zeros(s, np.float32) for s in ((1, n), (1, n), (n, n), (n,))]
        one = np.ones((1, 1, 1), np.float32)
        _, cache = compiled("rnn_forward")(one, *zeros, precision="bfloat16")
        found.append(compiled("rnn_backward")(part[None, None], cache)[2].ravel())
    return np.concatenate(found)


@pytest.mark.parametrize("path", [rounded_by_row, rounded_as_tile, rounded_as_panel])
def test_every_path_rounds_as_the_twin(path):
    x = edges()
    if path is not rounded_by_row:  # a NaN would spread to other results
        x = x[np.isfinite(x)]
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(path(x), bfloat16.round_to_bfloat16(x))


# ---- Layers --------------------------------------------------------------------------------------


@CELLS
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("sizes", [*SIZES, LARGE], ids=lambda s: "x".join(map(str, s.values())))
def test_layer_against_the_twin(cell, sizes, ragged):
    arguments, gradients = draw(cell, sizes, np.float32, np.random.default_rng(1), ragged)
    dh = gradients["dh"]
    expected = run_layer(twin, cell, arguments, dh, precision="bfloat16")
    exact = run_layer(twin, cell, arguments, dh)
    got = run_layer(compiled, cell, arguments, dh, precision="bfloat16")
    if sizes["H"] > 1:
        assert_rounded_alike(got, expected, exact)
    for a, b in zip(got, exact, strict=True):
        assert rms(a - b) <= 0.02 * rms(b) + 1e-6


@CELLS
def test_products_round_their_operands(cell):
    """In the first step, all operands are arguments, so only the order of sums is open."""
    arguments, _ = draw(cell, SIZES[3] | {"T": 1}, np.float32, np.random.default_rng(2))
    got, _ = compiled(f"{cell}_forward")(**arguments, precision="bfloat16")
    exact, _ = compiled(f"{cell}_forward")(**arguments)
    rounded = {
        name: a if name == "b" else bfloat16.round_to_bfloat16(a) for name, a in arguments.items()
    }
    expected, _ = compiled(f"{cell}_forward")(
        **{name: a.astype(np.float64) for name, a in rounded.items()}
    )
    assert np.abs(got - expected).max() < 1e-6 < 1e-4 < np.abs(exact - expected).max()


@CELLS
@pytest.mark.parametrize("sizes", [SIZES[3], SIZES[4], LARGE], ids=lambda s: f"N{s['N']}")
def test_threads_do_not_change_a_bit(cell, sizes):
    results = []
    for threads in (1, 2, 3, 7):
        set_num_threads(threads)
        arguments, gradients = draw(cell, sizes, np.float32, np.random.default_rng(3), True)
        found = run_layer(compiled, cell, arguments, gradients["dh"], precision="bfloat16")
        results.append([a.tobytes() for a in found])
    set_num_threads(1)
    assert all(found == results[0] for found in results)


@CELLS
def test_lengths_of_all_steps_change_nothing(cell):
    arguments, gradients = draw(cell, SIZES[3], np.float32, np.random.default_rng(4))
    dense = run_layer(compiled, cell, arguments, gradients["dh"], precision="bfloat16")
    N, T, _ = arguments["x"].shape
    arguments["lengths"] = np.full(N, T)
    ragged = run_layer(compiled, cell, arguments, gradients["dh"], precision="bfloat16")
    for a, b in zip(dense, ragged, strict=True):
        np.testing.assert_array_equal(a, b)


@CELLS
def test_float32_is_the_default(cell):
    arguments, gradients = draw(cell, SIZES[3], np.float32, np.random.default_rng(5))
    default = run_layer(compiled, cell, arguments, gradients["dh"])
    for a, b in zip(
        default, run_layer(compiled, cell, arguments, gradients["dh"], precision="float32"),
        strict=True,
    ):  # fmt: skip
        np.testing.assert_array_equal(a, b)
    wide = {name: a.astype(np.float64) for name, a in arguments.items()}
    assert compiled(f"{cell}_forward")(**wide, precision="float32")[0].dtype == np.float64


@CELLS
@pytest.mark.parametrize("empty", ["N", "T", "D", "N T", "D T", "D lengths", "lengths"])
def test_empty_axes(cell, empty):
    sizes = SIZES[3] | dict.fromkeys(empty.replace("lengths", "M").split(), 0)
    arguments, gradients = draw(cell, sizes, np.float32, np.random.default_rng(10))
    if "lengths" in empty:
        arguments["lengths"] = np.zeros(sizes["N"], int)
    dh = gradients["dh"]
    got, expected = (
        run_layer(find, cell, arguments, dh, precision="bfloat16") for find in (compiled, twin)
    )
    for a, b in zip(got, expected, strict=True):
        assert a.shape == b.shape
        assert rms(a - b) <= 2e-3 * rms(b)


@CELLS
def test_cache_serves_twice_and_outlives_changes_of_the_result(cell):
    arguments, gradients = draw(cell, SIZES[3], np.float32, np.random.default_rng(11))
    h, cache = compiled(f"{cell}_forward")(**arguments, precision="bfloat16")
    first = compiled(f"{cell}_backward")(gradients["dh"], cache)
    h[...] = np.nan
    for a, b in zip(first, compiled(f"{cell}_backward")(gradients["dh"], cache), strict=True):
        np.testing.assert_array_equal(a, b)


@CELLS
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_inf_flow(cell, bad):
    arguments, gradients = draw(cell, SIZES[3], np.float32, np.random.default_rng(6))
    arguments["x"][3, 1, 5] = bad
    with np.errstate(all="ignore"):
        got = run_layer(compiled, cell, arguments, gradients["dh"], precision="bfloat16")
        expected = run_layer(twin, cell, arguments, gradients["dh"], precision="bfloat16")
    np.testing.assert_array_equal(np.isnan(got[0]), np.isnan(expected[0]))
    others = np.arange(len(got[0])) != 3
    assert np.isfinite(got[0][others]).all()
    if np.isnan(bad):
        assert np.isnan(got[0][3, 1:]).all()


@CELLS
@pytest.mark.parametrize("find", [compiled, twin], ids=["compiled", "twin"])
def test_errors(cell, find):
    arguments, gradients = draw(cell, SIZES[1], np.float32, np.random.default_rng(7))
    forward, backward = find(f"{cell}_forward"), find(f"{cell}_backward")
    with pytest.raises(ValueError, match="precision is 'half'; expected one of float32, bfloat16"):
        forward(**arguments, precision="half")
    with pytest.raises(ValueError, match="precision is None"):
        forward(**arguments, precision=None)
    arguments["b"] = arguments["b"].astype(np.float64)
    with pytest.raises(TypeError, match="precision is 'bfloat16', but the dtype is float64"):
        forward(**arguments, precision="bfloat16")
    arguments["b"] = arguments["b"].astype(np.float32)
    _, cache = forward(**arguments, precision="bfloat16")
    with pytest.raises(TypeError, match="float64"):
        backward(gradients["dh"].astype(np.float64), cache)


@CELLS
def test_gradients_are_those_of_the_function(cell):
    """Numeric gradients of the float64 layer, which the rounding blurs by about 1/256."""
    sizes = {"N": 3, "T": 3, "D": 5, "H": 6, "V": 5, "M": 5}
    arguments, gradients = draw(cell, sizes, np.float64, np.random.default_rng(8))
    dh, step = gradients["dh"], 1e-6
    names = ("x", "h0", "Wx", "Wh", "b")
    single = {name: a.astype(np.float32) for name, a in arguments.items()}
    found = run_layer(compiled, cell, single, dh.astype(np.float32), precision="bfloat16")[1:]
    for name, gradient in zip(names, found, strict=True):
        numeric = np.zeros_like(arguments[name])
        for place in np.ndindex(numeric.shape):
            before = arguments[name][place]
            sums = []
            for sign in (1, -1):
                arguments[name][place] = before + sign * step
                sums.append(float((compiled(f"{cell}_forward")(**arguments)[0] * dh).sum()))
            arguments[name][place] = before
            numeric[place] = (sums[0] - sums[1]) / (2 * step)
        assert rms(gradient - numeric) <= 0.02 * rms(numeric), name


# ---- The captioner -------------------------------------------------------------------------------


REGULARISED = [
    None,
    Regularisation(embed_dropout=0.3, seed=3),
    Regularisation(vocab_dropout=0.3, label_smoothing=0.1, seed=4),
]


@CELLS
@pytest.mark.parametrize("sizes", MODELS, ids=lambda s: f"N{s['N']}")
@pytest.mark.parametrize("regularisation", REGULARISED, ids=["plain", "embed", "vocab"])
def test_captioner_against_the_twin(cell, sizes, regularisation):
    weights = np.random.default_rng(12).standard_normal(sizes["N"])
    check_rounded_model(sizes, cell, regularisation=regularisation, weights=weights)


@CELLS
def test_threads_and_workspaces_do_not_change_a_bit_of_the_captioner(cell):
    results = []
    for threads in (1, 2, 3, 7):
        set_num_threads(threads)
        model, _, features, captions, _ = rounded_pair(MODELS[2], cell)
        workspace = CaptioningWorkspace()
        for _ in range(2):
            found = loss_and_gradients(model, features, captions, workspace=workspace)
            results.append([a.tobytes() for a in found])
        model.precision = "float32"  # the workspace serves both
        model.loss(features, captions, workspace=workspace)
        model.precision = "bfloat16"
        found = loss_and_gradients(model, features, captions, workspace=workspace)
        results.append([a.tobytes() for a in found])
    set_num_threads(1)
    assert all(found == results[0] for found in results)


@CELLS
def test_float32_before_and_after_is_the_same(cell):
    model, _, features, captions, _ = rounded_pair(MODELS[1], cell)
    rounded = loss_and_gradients(model, features, captions)
    model.precision = "float32"
    exact = loss_and_gradients(model, features, captions)
    fresh, _, _ = draw_model(classifier, MODELS[1], cell, np.float32)
    for a, b in zip(exact, loss_and_gradients(fresh, features, captions), strict=True):
        np.testing.assert_array_equal(a, b)
    assert rounded[0] != exact[0]


@CELLS
@pytest.mark.parametrize("count", [1, 3, 20])
def test_decoding_against_the_twin(cell, count):
    """Captions, and their log-probabilities to rounding errors of bfloat16 at a boundary."""
    sizes = MODELS[2]
    model, other, features, captions, _ = rounded_pair(sizes, cell)
    features, captions = features[:count], captions[:count]
    T, null = 6, 0
    greedy, beams = model.sample(features, T), decoding.beam_search(model, features, 3, T)
    drawn = decoding.sample(model, features, T, count=2)
    mixed = scheduled.mix(model.params, features, captions, 0.5, 1, null, cell, "bfloat16")
    same = [
        *(greedy == other.sample(features, T)).all(axis=1),
        *(mixed == twins.mix(other.params, features, captions, 0.5, 1, null, cell, "bfloat16"))
        .all(axis=1),
    ]  # fmt: skip
    for n, row in enumerate(twins.beam_search(other, features, 3, T)):
        words, log_probs = row[0][0][:2]
        same.append(beams.ids[n, 0, : len(words)].tolist() == [*words])
        if same[-1]:
            got = beams.word_log_probs[n, 0, : len(words)]
            np.testing.assert_allclose(got, log_probs, rtol=2e-3, atol=2e-3)
    for n, row in enumerate(twins.sample(other, features, T, count=2)):
        same += [drawn.ids[n, k, : len(h.words)].tolist() == [*h.words] for k, h in enumerate(row)]
    assert np.mean(same) > 0.85
    exact = decoding.beam_search(draw_model(classifier, sizes, cell, np.float32)[0], features, 3, T)
    assert not np.array_equal(exact.log_probs, beams.log_probs)


@CELLS
def test_log_probs_of_one_caption_do_not_depend_on_the_others(cell):
    model, _, features, captions, _ = rounded_pair(MODELS[2], cell)
    together = model.word_log_probs(features, captions)
    for n in (0, 50, 102):
        alone = model.word_log_probs(features[n : n + 1], captions[n : n + 1])
        np.testing.assert_array_equal(alone[0], together[n])
    loss, _ = model.loss(features, captions)
    assert -together.sum() / len(features) == pytest.approx(loss, rel=1e-5)


def test_model_of_float64_is_refused():
    model, features, rng = draw_model(classifier, MODELS[1], "lstm", np.float64)
    captions = draw_captions(MODELS[1], rng)
    model.precision = "bfloat16"
    message = "precision is 'bfloat16', but the dtype is float64; expected float32"
    for call in (
        lambda: model.loss(features, captions),
        lambda: model.word_log_probs(features, captions),
        lambda: model.sample(features, 3),
        lambda: decoding.beam_search(model, features, 2, 3),
        lambda: decoding.sample(model, features, 3),
    ):
        with pytest.raises(TypeError, match=message):
            call()


def test_features_of_float64_are_converted():
    model, _, features, captions, _ = rounded_pair(MODELS[1], "lstm")
    wide = features.astype(np.float64)
    assert model.loss(wide, captions)[0] == model.loss(features, captions)[0]
    np.testing.assert_array_equal(model.sample(wide, 4), model.sample(features, 4))
    beams = [decoding.beam_search(model, f, 2, 4).log_probs for f in (wide, features)]
    np.testing.assert_array_equal(*beams)


def test_large_offset_of_the_features_does_no_harm():
    """The projection is not rounded: an offset that W_proj's bias takes back changes little."""
    model, _, features, captions, _ = rounded_pair(MODELS[1], "lstm")
    before, _ = model.loss(features, captions)
    model.params["b_proj"] -= 1000 * model.params["W_proj"].sum(axis=0)
    after, _ = model.loss(features + np.float32(1000), captions)
    assert after == pytest.approx(before, rel=1e-3)


# ---- Instruction sets ----------------------------------------------------------------------------


def hash_of_products() -> str:
    """Return a hash of rounded numbers and of products of many shapes.

    A product is dx of an RNN whose state is zero, so its operands are dh and Wx.
    """
    rng, digest, x = np.random.default_rng(9), hashlib.sha256(), edges()
    x = x[np.isfinite(x)]
    with np.errstate(all="ignore"):
        for path in (rounded_by_row, rounded_as_tile, rounded_as_panel):
            digest.update(path(x).tobytes())
    for N, D, H in [(1, 1, 1), (3, 7, 5), (14, 33, 64), (29, 200, 131), (101, 70, 129)]:
        dh = rng.standard_normal((N, 1, H), np.float32)
        Wx = rng.standard_normal((D, H), np.float32)
        zeros = [np.zeros(s, np.float32) for s in ((N, 1, D), (N, H))]
        weights = Wx, np.zeros((H, H), np.float32), np.zeros(H, np.float32)
        _, cache = compiled("rnn_forward")(*zeros, *weights, precision="bfloat16")
        digest.update(compiled("rnn_backward")(dh, cache)[0].tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("isa", ISAS)
def test_products_are_the_same_bits_with_every_instruction_set(isa):
    if ISAS.index(isa) > ISAS.index(runtime.isa()):
        pytest.skip(f"this processor or build has no {isa}")
    here = Path(__file__).resolve().parent
    paths = [str(here), str(Path(runtime.__file__).parents[2]), *sys.path]
    code = (
        "import test_core_bfloat16 as t\n"
        "for cell in ('rnn', 'lstm'): t.test_layer_against_the_twin(cell, t.SIZES[4], True)\n"
        "print(t.hash_of_products())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"FASTRNN_MAX_ISA": isa, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [hash_of_products()]
