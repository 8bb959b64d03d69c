"""Every compiled op against its twin in `fastrnn.reference`.

Both give the same values, dtypes and shapes, or raise the same exception, for arguments of any
memory layout. Results are bit-identical for any number of threads.
"""

from __future__ import annotations

import numpy as np
import pytest
from equivalence import (
    IDS,
    MODELS,
    OPS,
    RAGGED,
    RULES,
    SIZES,
    assert_equal,
    cases,
    check_model,
    check_op,
    compiled,
    draw,
    run,
    run_model,
    shape_of,
    twin,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fastrnn
from fastrnn import layers, rnn_layers
from fastrnn.classifiers import rnn as classifier

EVERY_OP = pytest.mark.parametrize("name", OPS)
DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64])
# derandomized, so that a failure is caused by a change of the code
DRAWN = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)


# ---- Memory layouts of an argument ---------------------------------------------------------------


def strided(a):
    wide = np.full([2 * n + 1 for n in a.shape], 77).astype(a.dtype)
    view = wide[tuple(slice(1, None, 2) for _ in a.shape)]
    view[...] = a
    return view


def reversed_(a):
    back = (slice(None, None, -1),) * a.ndim
    return a[back].copy()[back]


def transposed(a):
    if a.ndim < 2:
        return a.copy()
    return np.ascontiguousarray(np.swapaxes(a, 0, 1)).swapaxes(0, 1)


def read_only(a):
    a = a.copy()
    a.flags.writeable = False
    return a


def unaligned(a):
    memory = np.zeros(a.nbytes + 1, dtype=np.uint8)
    view = np.ndarray(a.shape, dtype=a.dtype, buffer=memory, offset=1)
    view[...] = a
    return view


LAYOUTS = {
    "C": np.copy,
    "Fortran": np.asfortranarray,
    "strided": strided,
    "reversed": reversed_,
    "transposed": transposed,
    "read-only": read_only,
    "unaligned": unaligned,
    "byte-swapped": lambda a: a.astype(a.dtype.newbyteorder()),
    "list": lambda a: a.tolist(),
    "broadcast": lambda a: np.broadcast_to(a[:1], a.shape),
}

FLOATS = ["<f4", "<f4", "<f8", "<f8", "<i8", "<i4", "u1", "?", "<f2"]
INTEGERS = ["<i8", "<i4", "<i2", "i1"]
MASKS = ["?", "<f8", "<f4", "<i8", "u1"]


def with_one(a, place, value):
    """Return a copy with one id replaced; arrays of floats are not changed."""
    a = a.copy()
    if a.size and a.dtype.kind == "i":
        a.flat[place] = np.clip(value, *np.array([np.iinfo(a.dtype).min, np.iinfo(a.dtype).max]))
    return a


FLAWS = {
    "another axis": lambda a: a[..., None],
    "an axis too few": lambda a: a[0] if a.ndim and len(a) else np.zeros(()),
    "longer": lambda a: np.zeros([n + 1 for n in a.shape], dtype=a.dtype),
    "longer at the end": lambda a: np.zeros((*a.shape[:-1], a.shape[-1] + 1), dtype=a.dtype),
    "shorter": lambda a: a[1:],
    "complex": lambda a: a.astype(complex),
    "object": lambda a: a.astype(object),
    "text": lambda a: a.astype(str),
    "long double": lambda a: a.astype(np.longdouble),
    "half": lambda a: a.astype(np.float16),
    "float": lambda a: a.astype(float),
    "bool": lambda a: a.astype(bool),
    "too large": lambda a: with_one(a, -1, 1000),
    "too small": lambda a: with_one(a, 0, -1000),
    "None": lambda a: None,
}


@st.composite
def calls(draw_, name):
    """Draw arguments and gradients of an op in some dtypes and layouts; one may be invalid.

    Returns a function that makes them anew, so that two ops do not share them.
    """
    small = st.sampled_from([0, 1, 1, 2, 3, 5, 8, 17])
    sizes = {axis: draw_(small, label=axis) for axis in "TDHVM"}
    sizes["N"] = draw_(st.sampled_from([0, 1, 1, 2, 3, 5, 17, 65]), label="N")
    ragged = name in RAGGED and draw_(st.booleans(), label="ragged")
    seed = draw_(st.integers(0, 2**32 - 1), label="seed")
    arguments, gradients = draw(name, sizes, np.float64, np.random.default_rng(seed), ragged)

    uniform = draw_(st.sampled_from(["<f4", "<f8", None]), label="dtype of all")
    plain = draw_(st.booleans(), label="plain layouts")
    forms = {}
    for argument in (*arguments, *gradients):
        if (name, argument) in IDS or argument == "lengths":
            dtype = draw_(st.sampled_from(INTEGERS), label=f"dtype of {argument}")
        elif argument == "mask":
            dtype = draw_(st.sampled_from(MASKS), label="dtype of mask")
        else:
            dtype = uniform or draw_(st.sampled_from(FLOATS), label=f"dtype of {argument}")
            if argument in ("m", "v", "velocity", "cache") and not uniform:
                dtype = "<f8"  # the reference requires state in the dtype of the weights
            if argument == "w" and name in RULES and not uniform:
                dtype = draw_(st.sampled_from(["<f8", "<f8", "<i8", ">f8"]), label="dtype of w")
        layout = (
            "C" if plain else draw_(st.sampled_from(list(LAYOUTS)), label=f"layout of {argument}")
        )
        if layout == "list" and argument in ("m", "v", "velocity", "cache"):
            layout = "C"
        forms[argument] = np.dtype(dtype), layout
    flawed, flaw = None, None
    if draw_(st.integers(0, 9), label="flawed below 3") < 3:
        candidates = [a for a in forms if a not in ("m", "v", "velocity", "cache")]
        flawed = draw_(st.sampled_from(candidates), label="flawed")
        # weights in another dtype than their state are valid, but the twin rounds differently
        flaws = [f for f in FLAWS if not (name in RULES and f == "float")]
        flaw = draw_(st.sampled_from(flaws), label="flaw")

    def make():
        made = []
        for group in (arguments, gradients):
            made.append({})
            for argument, value in group.items():
                dtype, layout = forms[argument]
                with np.errstate(all="ignore"):
                    value = np.abs(value) if dtype == np.uint8 else value
                    value = value.astype(dtype)
                    if argument == flawed:
                        value = FLAWS[flaw](value)
                if isinstance(value, np.ndarray):
                    value = LAYOUTS[layout](value) if value.ndim else value
                made[-1][argument] = value
        return made

    return make


def outcome(find, name, arguments, gradients):
    """Return (results, None), or (None, the exception)."""
    try:
        return run(find, name, arguments, gradients), None
    except Exception as error:
        return None, error


def hold_against_twin(name, make):
    """Both return equal results or raise the same exception, and do not change their arguments."""
    results = []
    for find in (compiled, twin):
        arguments, gradients = make()
        untouched = {**arguments, **gradients}
        if name in RULES:
            untouched.pop("w")
        kept = {k: np.copy(a) for k, a in untouched.items()}
        results.append(outcome(find, name, arguments, gradients))
        for argument, value in untouched.items():
            np.testing.assert_array_equal(value, kept[argument], argument)
        if find is compiled and results[0][0] is not None and name not in RULES:
            hold_own_memory(results[0][0], {**arguments, **gradients})
    (got, raised), (expected, expected_error) = results
    assert type(raised) is type(expected_error), f"{raised!r} where the twin has {expected_error!r}"
    if raised is None:
        # in a small array, all values may be near zero by cancellation
        exact = name in RULES or name.endswith("loss") or name == "sigmoid"
        assert_equal(got, expected, floor=0 if exact else 0.5)
    elif name not in RULES:  # for read-only weights, the message is NumPy's
        # the first word is the argument; the names of the parts of a cache may differ
        assert str(raised).split()[0].strip(",:") == str(expected_error).split()[0].strip(",:")


def hold_own_memory(results, inputs):
    arrays = [a for a in results if isinstance(a, np.ndarray)]
    for k, a in enumerate(arrays):
        assert a.flags.c_contiguous and a.flags.writeable and a.flags.owndata and a.dtype.isnative
        for other in [*arrays[:k], *inputs.values()]:
            assert not np.shares_memory(a, other)


@EVERY_OP
def test_drawn_calls(name):
    @DRAWN
    @given(calls(name))
    def compare(make):
        hold_against_twin(name, make)

    compare()


@DTYPES
@pytest.mark.parametrize(("name", "sizes", "ragged"), cases())
def test_every_path(name, sizes, ragged, dtype):
    check_op(name, sizes, ragged, dtype)


@DTYPES
@pytest.mark.parametrize("cell_type", ["rnn", "lstm"])
@pytest.mark.parametrize("sizes", MODELS)
def test_captioner(sizes, cell_type, dtype):
    check_model(sizes, cell_type, dtype)


@EVERY_OP
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout(name, layout, rng):
    """All arguments of an op in one memory layout, in both dtypes."""
    sizes = {"N": 6, "T": 4, "D": 9, "H": 7, "V": 11, "M": 10}
    for dtype in (np.float32, np.float64):
        arguments, gradients = draw(name, sizes, dtype, rng, ragged=name in RAGGED)

        def make(arguments=arguments, gradients=gradients):
            return [
                {k: LAYOUTS[layout](a) for k, a in group.items()}
                for group in (arguments, gradients)
            ]

        if layout == "list" and name in RULES:
            continue  # a list cannot be updated in place
        hold_against_twin(name, make)


@EVERY_OP
@pytest.mark.parametrize("flaw", FLAWS)
def test_every_flaw(name, flaw, rng):
    """Each argument and gradient in turn has this flaw."""
    sizes = {"N": 3, "T": 4, "D": 5, "H": 6, "V": 7, "M": 2}
    arguments, gradients = draw(name, sizes, np.float64, rng, ragged=name in RAGGED)
    for flawed in (*arguments, *gradients):
        if flawed in ("m", "v", "velocity", "cache"):
            continue

        def make(flawed=flawed):
            return [
                {k: FLAWS[flaw](a) if k == flawed else a.copy() for k, a in group.items()}
                for group in (arguments, gradients)
            ]

        hold_against_twin(name, make)


@pytest.mark.parametrize(
    ("name", "argument"),
    [("sgd_momentum", "velocity"), ("rmsprop", "cache"), ("adam", "m"), ("adam", "v")],
)
def test_state_of_another_shape(name, argument):
    w = np.ones((2, 3))
    with pytest.raises(ValueError, match=rf"{argument} has shape \(3,\).*\(2, 3\)"):
        compiled(name)(w, np.ones((2, 3)), {argument: np.ones(3)})
    np.testing.assert_array_equal(w, np.ones((2, 3)))


@DTYPES
@pytest.mark.parametrize("name", RULES)
def test_state_changed_in_place(name, dtype, rng):
    """The same values, in the given arrays."""
    arguments, _ = draw(name, SIZES[3], dtype, rng)
    state = {k: arguments[k] for k in arguments if k not in ("w", "dw")}
    results = []
    for in_place in (False, True):
        config = {k: a.copy() for k, a in state.items()}
        arrays = dict(config)
        w, config = compiled(name)(
            arguments["w"].copy(), arguments["dw"], config, in_place=in_place
        )
        assert all((config[k] is a) == in_place for k, a in arrays.items())
        results.append([w, *(config[k] for k in state)])
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b)


@EVERY_OP
@DTYPES
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_inf_flow(name, dtype, bad, rng):
    """NaN or infinity in one argument affects the same results as in NumPy."""
    for sizes in SIZES[1], SIZES[3]:
        arguments, gradients = draw(name, sizes, dtype, rng, ragged=name in RAGGED)
        for target in (*arguments, *gradients):
            group = arguments if target in arguments else gradients
            if group[target].dtype != dtype:
                continue
            results = []
            for find in (compiled, twin):
                copies = [{k: a.copy() for k, a in g.items()} for g in (arguments, gradients)]
                for copy in copies:
                    if target in copy:
                        copy[target].flat[copy[target].size // 2] = bad
                results.append(run(find, name, *copies))
            assert_equal(*results)


@pytest.mark.parametrize("x", [0.5, -3, np.float32(2), np.array(1.5), np.array(0.5, ">f4"), [1, 2]])
def test_sigmoid_of_a_number(x):
    assert_equal([compiled("sigmoid")(x)], [twin("sigmoid")(x)])


@DTYPES
def test_masked_scores_do_not_matter(dtype, rng):
    arguments, _ = draw("temporal_softmax_loss", SIZES[1], dtype, rng)
    loss, dx = compiled("temporal_softmax_loss")(**arguments)
    dark = ~arguments["mask"]
    assert dark.any()
    arguments["x"][dark] = np.nan
    again, dx_again = compiled("temporal_softmax_loss")(**arguments)
    assert again == loss and not dx[dark].any()
    np.testing.assert_array_equal(dx_again, dx)


@DTYPES
@pytest.mark.parametrize("name", ["rnn", "lstm"])
def test_what_lies_past_a_length_does_not_matter(name, dtype, rng):
    arguments, gradients = draw(name, SIZES[3], dtype, rng, ragged=True)
    first = run(compiled, name, arguments, gradients)
    past = np.arange(SIZES[3]["T"]) >= arguments["lengths"][:, None]
    assert past.any()
    arguments["x"][past] = gradients["dh"][past] = np.nan
    for a, b in zip(run(compiled, name, arguments, gradients), first, strict=True):
        np.testing.assert_array_equal(a, b)
    assert not first[0][past].any() and not first[1][past].any()


# ---- Threads -------------------------------------------------------------------------------------

# Large enough for every op to use three threads.
LARGE = {"N": 71, "T": 6, "D": 130, "H": 67, "V": 609, "M": 211}
FEW_ROWS = {"N": 3, "T": 1, "D": 700, "H": 330, "V": 10007, "M": 1203}
SOME_ROWS = {"N": 37, "T": 1, "D": 270, "H": 130, "V": 2001, "M": 603}
ONE_ROW_LONG = {"N": 1, "T": 90, "D": 130, "H": 67, "V": 609, "M": 311}


@EVERY_OP
@DTYPES
@pytest.mark.parametrize(
    "sizes",
    [LARGE, FEW_ROWS, SOME_ROWS, ONE_ROW_LONG],
    ids=["large", "few rows", "some rows", "one long row"],
)
def test_threads_do_not_change_a_bit(name, dtype, sizes):
    ragged = [False, True] if name in RAGGED and sizes["T"] > 1 else [False]
    for lengths in ragged:
        arguments, gradients = draw(name, sizes, dtype, np.random.default_rng(5), lengths)
        expected = run(twin, name, copies(arguments), gradients)
        fastrnn.set_num_threads(1)
        alone = run(compiled, name, copies(arguments), gradients)
        assert_equal(alone, expected)
        for count in (1, 2, 3, 2):
            fastrnn.set_num_threads(count)
            for a, b in zip(run(compiled, name, copies(arguments), gradients), alone, strict=True):
                assert np.asarray(a).tobytes() == np.asarray(b).tobytes(), f"{count} threads"


def copies(arguments):
    return {k: a.copy() for k, a in arguments.items()}


@DTYPES
@pytest.mark.parametrize("cell_type", ["rnn", "lstm"])
def test_threads_do_not_change_a_bit_of_the_captioner(cell_type, dtype):
    fastrnn.set_num_threads(1)
    alone = run_model(classifier, MODELS[-1], cell_type, dtype)
    for count in (1, 2, 3, 2):
        fastrnn.set_num_threads(count)
        for a, b in zip(run_model(classifier, MODELS[-1], cell_type, dtype), alone, strict=True):
            assert a.tobytes() == b.tobytes(), f"{count} threads"


@DTYPES
@pytest.mark.parametrize("name", ["rnn", "lstm"])
def test_lengths_of_all_steps_change_nothing(name, dtype, rng):
    arguments, gradients = draw(name, SIZES[4], dtype, rng)
    dense = run(compiled, name, arguments, gradients)
    sizes = SIZES[4]
    arguments["lengths"] = np.full(sizes["N"], sizes["T"])
    for a, b in zip(run(compiled, name, arguments, gradients), dense, strict=True):
        np.testing.assert_array_equal(a, b)


@DTYPES
@pytest.mark.parametrize("inner", [1, 511, 512, 513, 700])
def test_products_of_some_rows(inner, dtype, rng):
    """Up to 64 rows read unpacked weights; a panel of up to 512 is packed for more than two tiles.

    Tiles are up to 6 rows high, or 14. The bits of a row do not depend on the number of rows.
    """
    x, w = rng.standard_normal((64, inner)), rng.standard_normal((inner, 1077))
    x, w, b = x.astype(dtype), w.astype(dtype), rng.standard_normal(1077).astype(dtype)
    out = layers.affine_forward(x, w, b)[0]
    expected = x.astype(np.longdouble) @ w.astype(np.longdouble) + b
    bound = (inner + 1) * np.finfo(dtype).eps * (abs(x) @ abs(w) + abs(b))
    assert (abs(out - expected) <= bound).all()
    for rows in (5, 12, 13, 18, 28, 29):
        assert np.array_equal(layers.affine_forward(x[:rows], w, b)[0], out[:rows]), rows


def test_sizes_reach_every_path():
    """`SIZES` and the sizes above cover the paths that their comments and names claim."""
    rows = {sizes["N"] for sizes in SIZES}
    assert any(n <= 4 for n in rows) and any(4 < n <= 64 for n in rows)
    assert any(64 < n <= 256 for n in rows) and max(rows) > 256
    for sizes in (LARGE, FEW_ROWS, SOME_ROWS, ONE_ROW_LONG):
        for name in ("rnn_step", "rnn"):
            N, *T, D = shape_of(OPS[name][0]["x"], sizes)
            assert 2 * N * np.prod(T) * (D + sizes["H"]) * sizes["H"] > 6e5 or sizes["N"] == 1


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("cell", ["rnn", "lstm"])
def test_no_time_steps(cell, threads):
    """The memory of a batch without time steps has no room for a row (AddressSanitizer saw one)."""
    N, D, H = 33, 40, 50
    G = H * (4 if cell == "lstm" else 1)
    x, h0, dout = np.zeros((N, 0, D)), np.ones((N, H)), np.zeros((N, 0, H))
    Wx, Wh, b = np.ones((D, G)), np.ones((H, G)), np.ones(G)
    before = fastrnn.get_num_threads()
    fastrnn.set_num_threads(threads)
    try:
        out, cache = getattr(rnn_layers, f"{cell}_forward")(x, h0, Wx, Wh, b)
        dx, dh0, *rest = getattr(rnn_layers, f"{cell}_backward")(dout, cache)
    finally:
        fastrnn.set_num_threads(before)
    assert out.shape == (N, 0, H) and dx.shape == (N, 0, D)
    assert not dh0.any() and not any(grad.any() for grad in rest)
