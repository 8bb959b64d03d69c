"""Comparison of the compiled core with its oracles: arguments for every op, and tolerances.

The oracle of an op is its twin in `fastrnn.reference`; that of an elementary function is the NumPy
function in a wider type. Run as a program, this module compares everything with the instruction set
that FASTRNN_MAX_ISA allows, and prints the name of that set.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np

import fastrnn.layers
import fastrnn.optim
import fastrnn.reference
import fastrnn.rnn_layers
from fastrnn import decoding
from fastrnn._core import layers as core
from fastrnn._core import runtime, scheduled
from fastrnn.classifiers import rnn as classifier
from fastrnn.reference import decoding as twins

TOLERANCE = {np.dtype(np.float32): 1e-5, np.dtype(np.float64): 1e-12}

# The arguments of every op with their axes, and the gradients of its backward pass. TD is T * D and
# 4H is 4 * H; an op without gradients has a forward pass only.
STATE = {"x": "N D", "prev_h": "N H"}
RNN = {"Wx": "D H", "Wh": "H H", "b": "H"}
LSTM = {"Wx": "D 4H", "Wh": "H 4H", "b": "4H"}
ATTENTION = {"Wx": "D 4H", "Wh": "H 4H", "Wattn": "H 4H", "b": "4H"}
RAGGED = ("rnn", "lstm", "attention")
OPS: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    "rnn_step": (STATE | RNN, {"dnext_h": "N H"}),
    "rnn": ({"x": "N T D", "h0": "N H"} | RNN, {"dh": "N T H"}),
    "lstm_step": (STATE | {"prev_c": "N H"} | LSTM, {"dnext_h": "N H", "dnext_c": "N H"}),
    "lstm": ({"x": "N T D", "h0": "N H"} | LSTM, {"dh": "N T H"}),
    "attention_step": (
        STATE | {"prev_c": "N H", "A": "N H 2 3"} | ATTENTION,
        {"dnext_h": "N H", "dnext_c": "N H"},
    ),
    "attention": ({"x": "N T D", "A": "N H 2 3"} | ATTENTION, {"dh": "N T H"}),
    "dot_product_attention": ({"prev_h": "N H", "A": "N H 7 7"}, {}),
    "word_embedding": ({"x": "N T", "W": "V D"}, {"dout": "N T D"}),
    "temporal_affine": ({"x": "N T D", "w": "D M", "b": "M"}, {"dout": "N T M"}),
    "affine": ({"x": "N T D", "w": "TD M", "b": "M"}, {"dout": "N M"}),
    "temporal_softmax_loss": ({"x": "N T V", "y": "N T", "mask": "N T"}, {}),
    "softmax_loss": ({"x": "N V", "y": "N"}, {}),
    "sigmoid": ({"x": "N T D"}, {}),
    "sgd": ({"w": "D M", "dw": "D M"}, {}),
    "sgd_momentum": ({"w": "D M", "dw": "D M", "velocity": "D M"}, {}),
    "rmsprop": ({"w": "D M", "dw": "D M", "cache": "D M"}, {}),
    "adam": ({"w": "D M", "dw": "D M", "m": "D M", "v": "D M"}, {}),
    "adamw": ({"w": "D M", "dw": "D M", "m": "D M", "v": "D M"}, {}),
}
RULES = ("sgd", "sgd_momentum", "rmsprop", "adam", "adamw")
IDS = {("word_embedding", "x"), ("temporal_softmax_loss", "y"), ("softmax_loss", "y")}

# Sizes that cover every path: few rows (up to 4), a moderate number (up to 64), weights that are
# packed a panel at a time (up to 256) or at once, one and several threads, and sizes that are not
# multiples of a vector, tile or panel.
SIZES = [
    {"N": 1, "T": 1, "D": 3, "H": 1, "V": 2, "M": 1},
    {"N": 2, "T": 3, "D": 4, "H": 5, "V": 7, "M": 6},
    {"N": 3, "T": 2, "D": 200, "H": 130, "V": 301, "M": 210},
    {"N": 25, "T": 5, "D": 67, "H": 51, "V": 403, "M": 131},
    {"N": 101, "T": 7, "D": 65, "H": 50, "V": 205, "M": 133},
    {"N": 261, "T": 2, "D": 33, "H": 35, "V": 41, "M": 34},
    {"N": 4, "T": 3, "D": 129, "H": 140, "V": 41, "M": 165},
]


def shape_of(axes: str, sizes: dict[str, int]) -> tuple[int, ...]:
    all_sizes = sizes | {"4H": 4 * sizes["H"], "TD": sizes["T"] * sizes["D"]}
    return tuple(int(axis) if axis.isdigit() else all_sizes[axis] for axis in axes.split())


def draw(name: str, sizes: dict[str, int], dtype, rng, ragged=False) -> tuple[dict, dict]:
    """Draw arguments and gradients of an op, too small to saturate gates."""
    arguments: dict[str, np.ndarray] = {}
    axes_of, gradients_of = OPS[name]
    for argument, axes in axes_of.items():
        shape = shape_of(axes, sizes)
        if (name, argument) in IDS:
            # without words there is no valid id
            V = sizes["V"]
            arguments[argument] = rng.integers(-V, max(V, 1 - V), shape)
        elif argument == "mask":
            arguments[argument] = rng.random(shape) < 0.7
        elif argument in ("v", "cache"):  # means of squares are positive
            arguments[argument] = rng.random(shape).astype(dtype)
        else:
            value = 0.5 * rng.standard_normal(shape)
            if argument in ("Wx", "Wh", "Wattn", "w") and name not in RULES:
                value /= max(1, shape[0]) ** 0.5
            arguments[argument] = value.astype(dtype)
    if ragged:
        arguments["lengths"] = rng.integers(0, sizes["T"] + 1, sizes["N"])
    gradients = {
        gradient: rng.standard_normal(shape_of(axes, sizes)).astype(dtype)
        for gradient, axes in gradients_of.items()
    }
    return arguments, gradients


def compiled(name: str) -> Callable:
    """Return the function of this name in the public modules."""
    for module in (fastrnn.rnn_layers, fastrnn.layers, fastrnn.optim):
        if hasattr(module, name):
            return getattr(module, name)
    raise AttributeError(name)


def twin(name: str) -> Callable:
    """Return the function of this name in the reference."""
    return getattr(fastrnn.reference, name)


def run(find: Callable[[str], Callable], name: str, arguments: dict, gradients: dict) -> list:
    """Return the results of an op, forward and backward, without the cache.

    An optimizer takes two steps; its results are the weights and the state.
    """
    with np.errstate(all="ignore"):
        if name in RULES:
            state = {key: value for key, value in arguments.items() if key not in ("w", "dw")}
            w, dw = arguments["w"], arguments["dw"]
            config = dict(state, learning_rate=0.1)
            for _ in range(2):
                same, config = find(name)(w, dw, config)
                assert same is w
            return [w, *(config[key] for key in state)]
        if not OPS[name][1]:
            result = find(name)(**arguments)
            return list(result) if isinstance(result, tuple) else [result]
        *outputs, cache = find(f"{name}_forward")(**arguments)
        grads = find(f"{name}_backward")(*gradients.values(), cache)
        return outputs + list(grads if isinstance(grads, tuple) else (grads,))


def assert_equal(got: list, expected: list, floor: float = 0.0) -> None:
    """Assert equal types, dtypes, shapes and values, with NaN and infinity in the same places.

    Values may differ by `TOLERANCE` times the largest magnitude in the array, or times `floor` if
    that is larger. The tolerance is that of the first result, which has the dtype of the forward
    pass.
    """
    assert len(got) == len(expected)
    for k, (a, b) in enumerate(zip(got, expected, strict=True)):
        assert type(a) is type(b), f"result {k}: {type(a)} for {type(b)}"
        assert a.dtype == b.dtype, f"result {k}: {a.dtype} for {b.dtype}"
        assert a.shape == b.shape, f"result {k}: {a.shape} for {b.shape}"
        for place in (np.isnan, np.isposinf, np.isneginf):
            np.testing.assert_array_equal(place(a), place(b), f"{place.__name__}, result {k}")
        finite = np.isfinite(b)
        a, b = np.asarray(a)[finite], np.asarray(b)[finite]
        if b.size:
            # a loss is float64, but its terms have the dtype of the scores
            tolerance = max(TOLERANCE[r.dtype] for r in expected[: 1 + (expected[0].ndim == 0)])
            scale = max(float(np.abs(b).max()), floor)
            error = float(np.abs(a - b).max())
            assert error <= tolerance * scale, f"result {k}: off by {error} where it is {scale}"


def cases() -> list[tuple[str, dict[str, int], bool]]:
    """Return every op with each of `SIZES`, also ragged if it takes lengths."""
    return [
        (name, sizes, ragged)
        for name in OPS
        for sizes in SIZES
        for ragged in ([False, True] if name in RAGGED else [False])
    ]


def check_op(name: str, sizes: dict[str, int], ragged: bool, dtype) -> None:
    """Compare an op with its twin."""
    results = []
    for find in (compiled, twin):
        arguments, gradients = draw(name, sizes, dtype, np.random.default_rng(231), ragged)
        results.append(run(find, name, arguments, gradients))
    assert_equal(*results)


# ---- The captioner -------------------------------------------------------------------------------

MODELS = [
    {"N": 1, "T": 1, "D": 3, "H": 2, "V": 4, "W": 3},
    {"N": 7, "T": 5, "D": 19, "H": 13, "V": 37, "W": 11},
    {"N": 103, "T": 9, "D": 70, "H": 67, "V": 205, "W": 51},
]


def vocabulary(V: int) -> dict[str, int]:
    """Return a vocabulary of V words, at least 4."""
    return {"<NULL>": 0, "<START>": 1, "<END>": 2, "<UNK>": 3, **{f"w{i}": i for i in range(4, V)}}


def draw_captions(sizes: dict[str, int], rng) -> np.ndarray:
    """Draw captions (N, T + 1) with <NULL> = 0 at the end, some with gaps, some without words."""
    N, T = sizes["N"], sizes["T"]
    captions = rng.integers(1, sizes["V"], (N, T + 1))
    captions[np.arange(T + 1) > rng.integers(0, T + 2, N)[:, None]] = 0
    captions[rng.random((N, T + 1)) < 0.05] = 0
    return captions


def draw_model(module, sizes: dict[str, int], cell_type: str, dtype) -> tuple:
    """Draw a captioner and features, the same for every module; return also the generator."""
    np.random.seed(231)
    model = module.CaptioningRNN(
        vocabulary(sizes["V"]),
        input_dim=sizes["D"],
        wordvec_dim=sizes["W"],
        hidden_dim=sizes["H"],
        cell_type=cell_type,
        dtype=dtype,
    )
    rng = np.random.default_rng(231)
    for param in model.params.values():
        param[...] = 0.5 * rng.standard_normal(param.shape) / len(param) ** 0.5
    return model, rng.standard_normal((sizes["N"], sizes["D"])).astype(dtype), rng


def draw_pair(sizes: dict[str, int], cell_type: str, dtype) -> tuple:
    """Draw a captioner, compiled and in NumPy, with features and captions."""
    model, features, rng = draw_model(classifier, sizes, cell_type, dtype)
    twin, _, _ = draw_model(fastrnn.reference, sizes, cell_type, dtype)
    return model, twin, features, draw_captions(sizes, rng)


def run_model(module, sizes: dict[str, int], cell_type: str, dtype) -> list:
    """Return loss, gradients and greedy captions of a captioner."""
    model, features, rng = draw_model(module, sizes, cell_type, dtype)
    loss, grads = model.loss(features, draw_captions(sizes, rng))
    captions = model.sample(features, max_length=sizes["T"])
    return [np.asarray(loss, dtype=dtype), *(grads[key] for key in model.params), captions]


def check_model(sizes: dict[str, int], cell_type: str, dtype) -> None:
    """Compare the training step and greedy decoding with the twin."""
    *got, captions = run_model(classifier, sizes, cell_type, dtype)
    *expected, right = run_model(fastrnn.reference, sizes, cell_type, dtype)
    assert_equal(got, expected)
    assert captions.dtype == right.dtype
    if dtype is np.float64:  # nearly equal scores may rank differently in float32
        np.testing.assert_array_equal(captions, right)


def check_decoding(sizes: dict[str, int], cell_type: str, dtype) -> None:
    """Compare beam search, sampling and scheduled sampling with the twin in float64."""
    model, features, rng = draw_model(classifier, sizes, cell_type, dtype)
    features, T = features[:20], min(sizes["T"], 6)
    captions = draw_captions(sizes, rng)[:20]
    null = model.word_to_idx["<NULL>"]
    best = decoding.beam_search(model, features, 3, T, n_best=3)
    drawn = decoding.sample(model, features, T, count=2, top_p=0.9)
    mixed = scheduled.mix(model.params, features, captions, 0.5, 1, null, cell_type)
    model.params = {name: w.astype(np.float64) for name, w in model.params.items()}
    features = features.astype(np.float64)
    pairs = [
        (best, twins.beam_search(model, features, 3, T, n_best=3)),
        (drawn, twins.sample(model, features, T, count=2, top_p=0.9)),
    ]
    words = twins.mix(model.params, features, captions, 0.5, 1, null, cell_type)
    same = [(mixed == words).mean()]
    for found, wanted in pairs:
        for n, row in enumerate(wanted):
            for k, hypothesis in enumerate(row):
                words, log_probs = hypothesis[:2] if found is drawn else hypothesis[0][:2]
                same.append(found.ids[n, k, : len(words)].tolist() == [*words])
                if same[-1]:
                    assert not found.ids[n, k, len(words) :].any()
                    got = found.word_log_probs[n, k, : len(words)]
                    assert_equal([got.astype(dtype)], [np.array(log_probs, dtype)])
    # nearly equal scores may rank differently in float32
    assert np.mean(same) == 1 if dtype is np.float64 else np.mean(same) > 0.9


# ---- Products in bfloat16 ------------------------------------------------------------------------


def rms(a: np.ndarray) -> float:
    """Return the root mean square, 0 for an empty array."""
    return float(np.sqrt(np.mean(np.square(a, dtype=np.float64)))) if np.size(a) else 0.0


def assert_rounded_alike(got: list, expected: list, exact: list, share: float = 0.3) -> None:
    """Assert that results in bfloat16 differ less from the twin's than those differ from float32's.

    Where a rounding error of float32 puts a state on the other side of a rounding boundary of
    bfloat16, one operand differs by 1/256. So errors are compared, as root mean squares, with what
    the rounding to bfloat16 itself changes.
    """
    assert len(got) == len(expected) == len(exact)
    for k, (a, b, c) in enumerate(zip(got, expected, exact, strict=True)):
        assert a.dtype == b.dtype and a.shape == b.shape, f"result {k}"
        assert np.isfinite(a).all(), f"result {k}"
        error, changed, scale = rms(a - b), rms(b - c), rms(c)
        assert error <= max(share * changed, 3e-6 * scale), f"result {k}: {error} of {changed}"


def loss_and_gradients(model, features, captions, **keywords) -> list:
    """Return the loss of a captioner as float32, and its gradients."""
    loss, grads = model.loss(features, captions, **keywords)
    return [np.float32(loss), *(grads[name] for name in model.params)]


def rounded_pair(sizes: dict[str, int], cell_type: str) -> tuple:
    """Draw a captioner in bfloat16, compiled and in NumPy, features, captions and the generator."""
    pair = []
    for module in (classifier, fastrnn.reference):
        model, features, rng = draw_model(module, sizes, cell_type, np.float32)
        model.precision = "bfloat16"
        pair.append(model)
    return *pair, features, draw_captions(sizes, rng), rng


def check_rounded_model(sizes: dict[str, int], cell_type: str, **keywords) -> None:
    """Compare the training step in bfloat16 with the twin."""
    model, twin, features, captions, _ = rounded_pair(sizes, cell_type)
    got = loss_and_gradients(model, features, captions, **keywords)
    expected = loss_and_gradients(twin, features, captions, **keywords)
    twin.precision = "float32"
    exact = loss_and_gradients(twin, features, captions, **keywords)
    assert_rounded_alike(got, expected, exact, share=0.4)
    for a, b in zip(got, exact, strict=True):
        assert rms(a - b) <= 0.03 * rms(b) + 1e-5
    changed = any(not np.array_equal(a, b) for a, b in zip(got, exact, strict=True))
    assert changed or not any(map(np.any, exact))  # a batch without words has no gradients


# ---- Elementary functions ------------------------------------------------------------------------

WIDER = {np.float32: np.float64, np.float64: np.longdouble}
FUNCTIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "exp": np.exp,
    "log": np.log,
    "tanh": np.tanh,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
}
ULPS = 4


def sweep(dtype) -> np.ndarray:
    """Return values of all signs and exponents, dense ranges where functions bend, and edges."""
    unsigned = {np.float32: np.uint32, np.float64: np.uint64}[dtype]
    count = {np.float32: 1_000_000, np.float64: 200_000}[dtype]
    bits = np.iinfo(unsigned).max // count | 1  # odd, so that the low bits vary
    patterns = (np.arange(count, dtype=unsigned) * unsigned(bits)).view(dtype)
    info = np.finfo(dtype)
    ends = float(np.log(info.smallest_normal)), float(np.log(info.max))
    ranges = [
        np.linspace(1.02 * ends[0], 1.02 * ends[1], count // 10),
        np.linspace(-40, 40, count // 10),
        np.linspace(-1, 1, count // 10),
        np.linspace(0.5, 2, count // 10),
        1 + np.linspace(-1e-4, 1e-4, count // 10),
    ]
    around = np.array([*ends, 0.5, 1.0, np.sqrt(0.5), np.sqrt(2)], dtype=dtype)
    neighbours = [around]
    for towards in (-np.inf, np.inf):
        step = around
        for _ in range(20):
            step = np.nextafter(step, dtype(towards))
            neighbours.append(step)
    return np.concatenate([patterns, *(r.astype(dtype) for r in ranges), *neighbours])


def ulps_off(name: str, x: np.ndarray) -> np.ndarray:
    """Return the errors of a function at finite `x`, in ULP of the correct result.

    A result below the smallest normal number may be zero, and `log` may treat an argument below it
    as zero, because the core flushes denormals.
    """
    with np.errstate(all="ignore"):
        exact = FUNCTIONS[name](x.astype(WIDER[x.dtype.type]))
        right = exact.astype(x.dtype)
        got = getattr(core, name)(x)
        assert got.dtype == x.dtype and got.shape == x.shape
        error = np.abs(got - exact) / np.spacing(np.abs(right))
    smallest = np.finfo(x.dtype).smallest_normal
    alike = (got == right) | (np.isnan(got) & np.isnan(right))
    flushed = (got == 0) & (np.abs(exact) < smallest)
    if name == "log":
        flushed |= (got == -np.inf) & (x >= 0) & (x < smallest)
    return np.where(alike | flushed, 0, error)


def check_function(name: str, dtype) -> None:
    """Compare an elementary function with a wider type, over its whole range."""
    x = sweep(dtype)
    x = x[np.isfinite(x)]
    error = ulps_off(name, x)
    worst = int(np.argmax(np.where(np.isnan(error), np.inf, error)))
    message = f"{name}({x[worst]!r}) is {error[worst]} ULP off"
    assert error[worst] <= ULPS, message


def check_special_values(name: str, dtype) -> None:
    """Check NaN, infinities, zeros, and the largest and smallest normal numbers."""
    info = np.finfo(dtype)
    inf, nan, zero = dtype(np.inf), dtype(np.nan), dtype(0)
    expected = {
        "exp": [(-inf, 0), (-info.max, 0), (-zero, 1), (zero, 1), (info.max, inf), (inf, inf)],
        "log": [(-inf, nan), (-info.max, nan), (-zero, -inf), (zero, -inf), (inf, inf)],
        "tanh": [
            (-inf, -1),
            (-info.max, -1),
            (-zero, -zero),
            (zero, zero),
            (info.max, 1),
            (inf, 1),
        ],
        "sigmoid": [(-inf, 0), (-info.max, 0), (-zero, 0.5), (zero, 0.5), (info.max, 1), (inf, 1)],
    }[name]
    expected += [(nan, nan)]
    if name == "tanh":
        expected += [(sign * info.smallest_normal,) * 2 for sign in (-1, 1)]
    x, right = np.array(expected, dtype=dtype).T
    # at each position of a full and of a partial vector
    for shift in range(len(x)):
        for count in (len(x), 3 * len(x), 1):
            places = (np.arange(count) + shift) % len(x)
            got = getattr(core, name)(x[places])
            np.testing.assert_array_equal(got, right[places])
            number = ~np.isnan(right[places])  # the sign of a NaN is meaningless
            signs = np.signbit(right[places])[number]
            np.testing.assert_array_equal(np.signbit(got)[number], signs)


def wide_enough(dtype) -> bool:
    """Return whether this machine has a type with sufficiently more bits than `dtype`."""
    return np.finfo(WIDER[dtype]).nmant >= np.finfo(dtype).nmant + 10


def main() -> None:
    for dtype in (np.float32, np.float64):
        for name, sizes, ragged in cases():
            try:
                check_op(name, sizes, ragged, dtype)
            except AssertionError as error:
                raise AssertionError(f"{name} {sizes} {ragged=} {dtype.__name__}") from error
        for sizes in MODELS:
            for cell_type in ("rnn", "lstm"):
                check_model(sizes, cell_type, dtype)
                check_decoding(sizes, cell_type, dtype)
                if dtype is np.float32:
                    check_rounded_model(sizes, cell_type)
        for name in FUNCTIONS:
            check_special_values(name, dtype)
            if wide_enough(dtype):
                check_function(name, dtype)
    print(runtime.isa())


if __name__ == "__main__":
    sys.exit(main())
