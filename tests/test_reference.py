"""The NumPy reference against numerical gradients, values computed by hand, and identities.

Other tests compare the compiled functions with the reference, so these tests must not use them.
"""

import inspect

import numpy as np
import pytest
import scipy.special

import fastrnn.reference as ref

LENGTHS = np.array([0, 3, 1, 4])


def numeric_gradient(f, x):
    """Return the gradient of the scalar f() with respect to x, by fourth-order differences."""
    gradient = np.empty_like(x)
    for index in np.ndindex(x.shape):
        kept = x[index]
        value = {}
        for k in (-2, -1, 1, 2):
            x[index] = kept + k * 1e-4
            value[k] = f()
        x[index] = kept
        gradient[index] = (8 * (value[1] - value[-1]) - (value[2] - value[-2])) / 12e-4
    return gradient


def as_tuple(grads):
    return grads if isinstance(grads, tuple) else (grads,)


class Op:
    """A forward and a backward pass, and arguments for them.

    `draw(rng)` returns the floating-point arguments by name, in the order in which the backward
    pass returns their gradients. `fixed` has the other arguments, which have no gradient.
    """

    def __init__(self, name, draw, outputs=1, **fixed):
        self.forward = getattr(ref, f"{name}_forward")
        self.backward = getattr(ref, f"{name}_backward")
        self.draw, self.outputs, self.fixed = draw, outputs, fixed

    def run(self, arguments, rng):
        """Return outputs, random upstream gradients, and gradients of the arguments by name."""
        *out, cache = self.forward(**arguments, **self.fixed)
        dout = [rng.standard_normal(a.shape).astype(a.dtype) for a in out]
        grads = as_tuple(self.backward(*dout, cache))
        return out, dout, dict(zip(arguments, grads, strict=True))


def recurrent(first, gates, N=4, T=4, D=3, H=5, state=("h0",)):
    """Return a function that draws the arguments of a recurrent op; `first` has the axes of x."""
    sizes = {"N": N, "T": T, "D": D}
    return lambda rng: {
        "x": rng.standard_normal([sizes[axis] for axis in first]),
        **{name: rng.standard_normal((N, H)) for name in state},
        "Wx": rng.standard_normal((D, gates * H)),
        "Wh": rng.standard_normal((H, gates * H)),
        "b": rng.standard_normal(gates * H),
    }


def attended(first, state, N=4, T=4, H=5):
    """Return a function that draws the arguments of an LSTM with attention over 2 x 3 places."""

    def draw(rng):
        found = recurrent(first, 4, N=N, T=T, H=H, state=state)(rng)
        before = {name: found.pop(name) for name in ("x", *state)}
        Wattn, b = rng.standard_normal((H, 4 * H)), found.pop("b")
        return before | {"A": rng.standard_normal((N, H, 2, 3))} | found | {"Wattn": Wattn, "b": b}

    return draw


def affine(*x_shape, D, M=5):
    return lambda rng: {
        "x": rng.standard_normal(x_shape),
        "w": rng.standard_normal((D, M)),
        "b": rng.standard_normal(M),
    }


def vectors(V=5, D=3):
    return lambda rng: {"W": rng.standard_normal((V, D))}


def away_from_zero(rng):
    x = rng.standard_normal((4, 3, 2))
    return {"x": x + 0.1 * np.sign(x)}


REPEATED = np.array([[1, 1, 4], [1, -1, -5]])  # ids 1, 4 (also as -1) and 0 (as -5)
OPS = {
    "rnn_step": Op("rnn_step", recurrent("ND", 1, state=("prev_h",))),
    "rnn": Op("rnn", recurrent("NTD", 1)),
    "rnn ragged": Op("rnn", recurrent("NTD", 1), lengths=LENGTHS),
    "rnn N=1 T=1": Op("rnn", recurrent("NTD", 1, N=1, T=1)),
    "rnn N=0": Op("rnn", recurrent("NTD", 1, N=0)),
    "rnn T=0": Op("rnn", recurrent("NTD", 1, T=0)),
    "lstm_step": Op("lstm_step", recurrent("ND", 4, state=("prev_h", "prev_c")), outputs=2),
    "lstm": Op("lstm", recurrent("NTD", 4)),
    "lstm ragged": Op("lstm", recurrent("NTD", 4), lengths=LENGTHS),
    "lstm N=1 T=1": Op("lstm", recurrent("NTD", 4, N=1, T=1)),
    "lstm N=0": Op("lstm", recurrent("NTD", 4, N=0)),
    "lstm T=0": Op("lstm", recurrent("NTD", 4, T=0)),
    "attention_step": Op("attention_step", attended("ND", state=("prev_h", "prev_c")), outputs=2),
    "attention": Op("attention", attended("NTD", state=())),
    "attention ragged": Op("attention", attended("NTD", state=()), lengths=LENGTHS),
    "attention T=0": Op("attention", attended("NTD", state=(), T=0)),
    "attention N=0": Op("attention", attended("NTD", state=(), N=0)),
    "embedding": Op("word_embedding", vectors(), x=REPEATED),
    "embedding N=0": Op("word_embedding", vectors(), x=np.zeros((0, 3), dtype=int)),
    "embedding T=0": Op("word_embedding", vectors(), x=np.zeros((2, 0), dtype=int)),
    "temporal_affine": Op("temporal_affine", affine(2, 3, 4, D=4)),
    "temporal_affine N=0": Op("temporal_affine", affine(0, 3, 4, D=4)),
    "temporal_affine T=0": Op("temporal_affine", affine(2, 0, 4, D=4)),
    "affine": Op("affine", affine(3, 4, D=4)),
    "affine images": Op("affine", affine(3, 2, 2, 3, D=12)),
    "affine N=0": Op("affine", affine(0, 2, 3, D=6)),
    "relu": Op("relu", away_from_zero),
}


def each_op(test):
    return pytest.mark.parametrize("op", OPS.values(), ids=OPS.keys())(test)


class TestGradients:
    """Analytic against numerical gradients in float64."""

    @each_op
    def test_backward(self, op, rng):
        arguments = op.draw(rng)
        out, dout, grads = op.run(arguments, rng)
        assert len(out) == op.outputs

        def objective():
            out = op.forward(**arguments, **op.fixed)[:-1]
            return sum(float((d * o).sum()) for d, o in zip(dout, out, strict=True))

        for name, argument in arguments.items():
            expected = numeric_gradient(objective, argument)
            np.testing.assert_allclose(grads[name], expected, rtol=1e-8, atol=1e-9, err_msg=name)

    @pytest.mark.parametrize(
        "mask",
        [
            np.ones((3, 4), dtype=bool),
            np.array([[1, 0, 1, 1], [0, 0, 0, 0], [1, 1, 0, 0]], dtype=bool),
            np.array([[1, 0, 1, 1], [0, 0, 0, 0], [1, 1, 0, 0]]),
            np.array([[0.5, 0, 2, 1], [0, 0.25, 0, 0], [1, 3, 0, 0]]),
            np.zeros((3, 4), dtype=bool),
        ],
        ids=["all", "bool", "int", "float", "none"],
    )
    def test_temporal_softmax(self, mask, rng):
        x = rng.standard_normal((3, 4, 5))
        y = np.array([[0, 4, -1, -5], [1, 1, 1, 1], [2, 3, 2, 0]])
        loss, dx = ref.temporal_softmax_loss(x, y, mask)

        picked = np.take_along_axis(scipy.special.log_softmax(x, axis=2), y[..., None] % 5, 2)
        np.testing.assert_allclose(loss, -(mask * picked[..., 0]).sum() / 3, rtol=1e-13)
        expected = numeric_gradient(lambda: float(ref.temporal_softmax_loss(x, y, mask)[0]), x)
        np.testing.assert_allclose(dx, expected, rtol=1e-8, atol=1e-10)
        assert not dx[~mask.astype(bool)].any()

    @pytest.mark.parametrize("loss_of", [ref.softmax_loss, ref.svm_loss])
    def test_losses(self, loss_of, rng):
        x = rng.standard_normal((6, 4))
        y = np.array([0, 3, -1, 2, -4, 3])
        expected = numeric_gradient(lambda: float(loss_of(x, y)[0]), x)
        np.testing.assert_allclose(loss_of(x, y)[1], expected, rtol=1e-8, atol=1e-10)

    @pytest.mark.parametrize("cell_type", ["rnn", "lstm"])
    def test_captioning_model(self, cell_type, rng):
        model = small_model(cell_type)
        features = rng.standard_normal((3, 4))
        captions = np.array([[1, 3, 4, 2, 0], [1, 4, 4, 4, 2], [1, 0, 3, 2, 0]])
        _, grads = model.loss(features, captions)
        assert grads.keys() == model.params.keys()
        for name, param in model.params.items():
            expected = numeric_gradient(lambda: float(model.loss(features, captions)[0]), param)
            np.testing.assert_allclose(grads[name], expected, rtol=1e-7, atol=1e-9, err_msg=name)


def small_model(cell_type, dtype=np.float64, wordvec_dim=3, hidden_dim=5):
    np.random.seed(231)
    words = {"<NULL>": 0, "<START>": 1, "<END>": 2, "cat": 3, "dog": 4}
    return ref.CaptioningRNN(words, 4, wordvec_dim, hidden_dim, cell_type, dtype)


class TestEveryOp:
    """Properties of all ops: dtypes, memory ownership, unchanged inputs, empty batches."""

    @each_op
    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_dtype_in_is_dtype_out(self, op, dtype, rng):
        arguments = {name: a.astype(dtype) for name, a in op.draw(rng).items()}
        out, _, grads = op.run(arguments, rng)
        for array in (*out, *grads.values()):
            assert isinstance(array, np.ndarray) and array.dtype == dtype
        for name, grad in grads.items():
            assert grad.shape == arguments[name].shape

    @each_op
    def test_mixed_dtypes_promote(self, op, rng):
        arguments = op.draw(rng)
        for name in arguments:
            mixed = {k: a if k == name else a.astype(np.float32) for k, a in arguments.items()}
            out, _, grads = op.run(mixed, rng)
            assert {a.dtype for a in (*out, *grads.values())} == {np.dtype(np.float64)}

    @each_op
    def test_float64_gradient_of_float32_output(self, op, rng):
        arguments = {name: a.astype(np.float32) for name, a in op.draw(rng).items()}
        *out, cache = op.forward(**arguments, **op.fixed)
        grads = op.backward(*(np.ones(a.shape) for a in out), cache)
        for grad in as_tuple(grads):
            assert grad.dtype == np.float64

    @each_op
    def test_integers_count_as_float64(self, op, rng):
        arguments = {name: np.rint(3 * a).astype(np.int8) for name, a in op.draw(rng).items()}
        floats = {name: a.astype(np.float64) for name, a in arguments.items()}
        for got, expected in zip(
            op.forward(**arguments, **op.fixed)[:-1],
            op.forward(**floats, **op.fixed)[:-1],
            strict=True,
        ):
            assert got.dtype == np.float64
            np.testing.assert_array_equal(got, expected)

    @each_op
    def test_inputs_may_be_read_only_and_stay_as_they_were(self, op, rng):
        arguments = op.draw(rng)
        before = {name: a.copy() for name, a in arguments.items()}
        for array in (*arguments.values(), *op.fixed.values()):
            array.flags.writeable = False
        try:
            *out, cache = op.forward(**arguments, **op.fixed)
            dout = [np.ones(a.shape) for a in out]
            for array in dout:
                array.flags.writeable = False
            op.backward(*dout, cache)
        finally:
            for array in op.fixed.values():
                array.flags.writeable = True
        for name, array in arguments.items():
            np.testing.assert_array_equal(array, before[name])

    @each_op
    def test_outputs_and_gradients_own_their_memory(self, op, rng):
        arguments = op.draw(rng)
        out, dout, grads = op.run(arguments, rng)
        given = (*arguments.values(), *op.fixed.values(), *dout)
        for array in (*out, *grads.values()):
            assert not any(np.shares_memory(array, other) for other in given)

    @each_op
    def test_cache_survives_other_calls_and_changes_of_the_output(self, op, rng):
        arguments = op.draw(rng)
        *out, cache = op.forward(**arguments, **op.fixed)
        dout = [rng.standard_normal(a.shape) for a in out]
        expected = op.backward(*dout, op.forward(**arguments, **op.fixed)[-1])
        for array in out:
            array[...] = np.nan
        op.run(op.draw(rng), rng)
        got = op.backward(*dout, cache)
        for a, b in zip(as_tuple(got), as_tuple(expected), strict=True):
            np.testing.assert_array_equal(a, b)

    @each_op
    def test_strided_and_transposed_inputs(self, op, rng):
        arguments = op.draw(rng)
        strided = {}
        for name, a in arguments.items():
            wide = np.full([2 * n for n in a.shape[::-1]], np.nan)
            view = wide[tuple(slice(None, None, -2) for _ in a.shape)].T
            view[...] = a
            strided[name] = view
        for got, expected in zip(
            op.forward(**strided, **op.fixed)[:-1],
            op.forward(**arguments, **op.fixed)[:-1],
            strict=True,
        ):
            np.testing.assert_allclose(got, expected, rtol=1e-13, atol=1e-15)

    @pytest.mark.parametrize("name", [name for name in OPS if "=0" not in name])
    def test_lists_are_taken_as_arrays(self, name, rng):
        op = OPS[name]
        arguments = op.draw(rng)
        lists = {name: a.tolist() for name, a in arguments.items()}
        for got, expected in zip(
            op.forward(**lists, **op.fixed)[:-1],
            op.forward(**arguments, **op.fixed)[:-1],
            strict=True,
        ):
            np.testing.assert_allclose(got, expected, rtol=1e-13, atol=1e-15)


class TestRecurrence:
    """Sequences against single steps, and ragged batches against single rows."""

    def test_rnn_is_its_steps(self, rng):
        a = recurrent("NTD", 1)(rng)
        h, _ = ref.rnn_forward(**a)
        state = a["h0"]
        for t in range(4):
            state = np.tanh(a["x"][:, t] @ a["Wx"] + state @ a["Wh"] + a["b"])
            np.testing.assert_allclose(h[:, t], state, rtol=1e-13)

    def test_lstm_is_its_equations(self, rng):
        a = recurrent("NTD", 4)(rng)
        h, _ = ref.lstm_forward(**a)
        state, cell = a["h0"], 0.0
        for t in range(4):
            gates = a["x"][:, t] @ a["Wx"] + state @ a["Wh"] + a["b"]
            i, f, o = (scipy.special.expit(gates[:, k * 5 : k * 5 + 5]) for k in range(3))
            cell = f * cell + i * np.tanh(gates[:, 15:])
            state = o * np.tanh(cell)
            np.testing.assert_allclose(h[:, t], state, rtol=1e-12)

    @pytest.mark.parametrize(("cell", "gates"), [("rnn", 1), ("lstm", 4)])
    def test_ragged_is_each_row_alone(self, cell, gates, rng):
        forward, backward = getattr(ref, f"{cell}_forward"), getattr(ref, f"{cell}_backward")
        a = recurrent("NTD", gates)(rng)
        x, h0, weights = a["x"], a["h0"], (a["Wx"], a["Wh"], a["b"])
        for n, length in enumerate(LENGTHS):
            x[n, length:] = np.nan  # must not be read
        dh = rng.standard_normal((4, 4, 5))
        h, cache = forward(x, h0, *weights, lengths=LENGTHS)
        dx, dh0, *dweights = backward(dh, cache)

        sums = [0.0, 0.0, 0.0]
        for n, length in enumerate(LENGTHS):
            row = slice(n, n + 1)
            alone, alone_cache = forward(x[row, :length], h0[row], *weights)
            dx_alone, dh0_alone, *dw_alone = backward(dh[row, :length], alone_cache)
            np.testing.assert_allclose(h[row, :length], alone, rtol=1e-12)
            np.testing.assert_allclose(dx[row, :length], dx_alone, rtol=1e-11)
            np.testing.assert_allclose(dh0[row], dh0_alone, rtol=1e-11)
            assert not h[n, length:].any() and not dx[n, length:].any()
            sums = [total + part for total, part in zip(sums, dw_alone, strict=True)]
        for got, expected in zip(dweights, sums, strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-11, atol=1e-13)

    @pytest.mark.parametrize(("cell", "gates"), [("rnn", 1), ("lstm", 4)])
    def test_full_lengths_are_the_dense_batch(self, cell, gates, rng):
        a = recurrent("NTD", gates)(rng)
        forward = getattr(ref, f"{cell}_forward")
        dense, _ = forward(**a)
        for lengths in ([4, 4, 4, 4], np.full(4, 4, dtype=np.uint8)):
            np.testing.assert_array_equal(forward(**a, lengths=lengths)[0], dense)

    def test_lengths_may_change_after_the_call(self, rng):
        a, lengths = recurrent("NTD", 1)(rng), LENGTHS.copy()
        _, cache = ref.rnn_forward(**a, lengths=lengths)
        expected = ref.rnn_backward(np.ones((4, 4, 5)), cache)
        lengths[:] = 4
        for got, want in zip(ref.rnn_backward(np.ones((4, 4, 5)), cache), expected, strict=True):
            np.testing.assert_array_equal(got, want)

    @pytest.mark.parametrize(("cell", "gates"), [("rnn", 1), ("lstm", 4)])
    def test_nan_stays_in_its_row(self, cell, gates, rng):
        a = recurrent("NTD", gates)(rng)
        a["x"][2, 1, 0] = np.nan
        h, _ = getattr(ref, f"{cell}_forward")(**a)
        assert np.isnan(h[2, 1:]).all()
        assert np.isfinite(h[[0, 1, 3]]).all() and np.isfinite(h[2, 0]).all()

    def test_infinite_input_saturates(self, rng):
        a = recurrent("NTD", 1, D=1)(rng)
        a["x"][0, 0, 0] = np.inf
        h, _ = ref.rnn_forward(**a)
        np.testing.assert_array_equal(h[0, 0], np.sign(a["Wx"][0]))


class TestSigmoid:
    @pytest.mark.filterwarnings("error")
    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_everywhere(self, dtype):
        x = np.concatenate((np.linspace(-120, 120, 4801), [-np.inf, -1e300, 1e300, np.inf]))
        with np.errstate(over="ignore"):
            x = x.astype(dtype)
        with np.errstate(all="raise"):
            got = ref.sigmoid(x)
        assert got.dtype == dtype
        expected = scipy.special.expit(x.astype(np.float64))
        tiny = np.finfo(dtype).tiny
        np.testing.assert_allclose(got, expected, rtol=4 * np.finfo(dtype).eps, atol=tiny)

    @pytest.mark.filterwarnings("error")
    def test_nan_flows_without_a_warning(self):
        np.testing.assert_array_equal(ref.sigmoid(np.array([np.nan, 0.0])), [np.nan, 0.5])

    def test_integers_and_scalars(self):
        assert ref.sigmoid(np.array([0, 1])).dtype == np.float64
        np.testing.assert_allclose(ref.sigmoid(np.array([0, 1])), [0.5, 0.7310585786300049])
        assert ref.sigmoid(0.0) == 0.5
        assert ref.sigmoid(np.zeros((0, 3))).shape == (0, 3)


class TestLosses:
    def test_hinge_by_hand(self):
        x = np.array([[3.2, 5.1, -1.7], [1.3, 4.9, 2.0], [2.2, 2.5, -3.1]])
        # 5.1 - 3.2 + 1; nothing; 2.2 + 3.1 + 1 and 2.5 + 3.1 + 1
        for row, expected in enumerate([2.9, 0.0, 12.9]):
            loss, _ = ref.svm_loss(x[row : row + 1], np.array([row]))
            np.testing.assert_allclose(loss, expected, atol=1e-12)
        np.testing.assert_allclose(ref.svm_loss(x, np.arange(3))[0], 15.8 / 3)

    def test_softmax_by_hand(self):
        x = np.log(np.array([[1.0, 2.0, 5.0], [2.0, 2.0, 4.0]]))
        loss, dx = ref.softmax_loss(x, np.array([2, 0]))
        np.testing.assert_allclose(loss, (np.log(8 / 5) + np.log(8 / 2)) / 2)
        np.testing.assert_allclose(dx, [[1 / 16, 1 / 8, -3 / 16], [-3 / 8, 1 / 8, 1 / 4]])

    def test_uniform_scores_cost_log_v_a_step(self):
        loss, _ = ref.temporal_softmax_loss(
            np.zeros((3, 4, 10)), np.zeros((3, 4), dtype=int), np.ones((3, 4), dtype=bool)
        )
        np.testing.assert_allclose(loss, 4 * np.log(10))

    @pytest.mark.filterwarnings("error")
    def test_large_scores_do_not_overflow(self):
        x = np.array([[[1e4, 0.0, -1e4]]])
        loss, dx = ref.temporal_softmax_loss(x, np.array([[2]]), np.array([[True]]))
        assert loss == 2e4
        np.testing.assert_array_equal(dx, [[[1.0, 0.0, -1.0]]])
        assert ref.softmax_loss(x[0], np.array([2]))[0] == 2e4

    @pytest.mark.filterwarnings("error")
    @pytest.mark.parametrize("shape", [(0, 4, 5), (3, 0, 5), (0, 0, 5), (0, 0, 0)])
    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_empty_temporal(self, shape, dtype):
        ids = np.zeros(shape[:2], dtype=np.int32)
        loss, dx = ref.temporal_softmax_loss(np.zeros(shape, dtype=dtype), ids, ids != 0)
        assert loss == 0.0 and dx.shape == shape and dx.dtype == dtype

    @pytest.mark.filterwarnings("error")
    @pytest.mark.parametrize("loss_of", [ref.softmax_loss, ref.svm_loss])
    def test_empty(self, loss_of):
        loss, dx = loss_of(np.zeros((0, 4), dtype=np.float32), np.zeros(0, dtype=int))
        assert loss == 0.0 and dx.shape == (0, 4) and dx.dtype == np.float32

    @pytest.mark.parametrize("mask_dtype", [bool, np.int64, np.float64])
    def test_float32_stays_whatever_the_mask(self, mask_dtype, rng):
        x = rng.standard_normal((3, 4, 5)).astype(np.float32)
        mask = np.ones((3, 4), dtype=mask_dtype)
        loss, dx = ref.temporal_softmax_loss(x, np.zeros((3, 4), dtype=int), mask)
        assert dx.dtype == np.float32 and isinstance(loss, np.float64)

    def test_masked_scores_may_be_anything(self):
        x = np.zeros((1, 3, 2))
        x[0, 1:] = np.nan, np.inf
        loss, dx = ref.temporal_softmax_loss(
            x, np.array([[0, 1, -2]]), np.array([[True, False, False]])
        )
        np.testing.assert_allclose(loss, np.log(2))
        np.testing.assert_array_equal(dx, [[[-0.5, 0.5], [0, 0], [0, 0]]])

    def test_nan_flows(self):
        x = np.zeros((2, 1, 3))
        x[1, 0, 2] = np.nan
        loss, dx = ref.temporal_softmax_loss(x, np.zeros((2, 1), dtype=int), np.ones((2, 1)))
        assert np.isnan(loss) and np.isnan(dx[1]).all() and np.isfinite(dx[0]).all()

    def test_verbose_prints_as_the_course(self, capsys):
        ids = np.zeros((2, 3), dtype=int)
        ref.temporal_softmax_loss(np.zeros((2, 3, 5)), ids, ids == 0, verbose=True)
        assert capsys.readouterr().out == "dx_flat:  (6, 5)\n"
        ref.temporal_softmax_loss(np.zeros((2, 3, 5)), ids, ids == 0)
        assert capsys.readouterr().out == ""


class TestRelu:
    def test_by_hand(self):
        out, cache = ref.relu_forward(np.array([[-1.0, 0.0, 2.0, np.nan]]))
        np.testing.assert_array_equal(out, [[0, 0, 2, np.nan]])
        np.testing.assert_array_equal(
            ref.relu_backward(np.full((1, 4), 3.0), cache), [[0, 0, 3, 3]]
        )


DEFAULTS = {
    "sgd": {"learning_rate": 1e-2},
    "sgd_momentum": {"learning_rate": 1e-2, "momentum": 0.9, "velocity": ...},
    "rmsprop": {"learning_rate": 1e-2, "decay_rate": 0.99, "epsilon": 1e-8, "cache": ...},
    "adam": {
        "learning_rate": 1e-3, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8,
        "m": ..., "v": ..., "t": 1,
    },
}  # fmt: skip


class TestOptim:
    """Update rules against the values of the course's notebooks and against equivalent formulas."""

    W = np.linspace(-0.4, 0.6, 20).reshape(4, 5)
    DW = np.linspace(-0.6, 0.4, 20).reshape(4, 5)
    STATE = np.linspace(0.6, 0.9, 20).reshape(4, 5)

    def test_sgd(self):
        w = self.W.copy()
        got, config = ref.sgd(w, self.DW)
        assert got is w and config == {"learning_rate": 1e-2}
        np.testing.assert_allclose(w, self.W - 0.01 * self.DW)

    def test_sgd_momentum(self):
        config = {"learning_rate": 1e-3, "velocity": self.STATE.copy()}
        w, config = ref.sgd_momentum(self.W.copy(), self.DW, config)
        expected = [0.1406, 0.20738947, 0.27417895, 0.34096842, 0.40775789]
        np.testing.assert_allclose(w[0], expected, atol=5e-9)
        np.testing.assert_allclose(config["velocity"][0, :2], [0.5406, 0.55475789], atol=5e-9)

    def test_rmsprop(self):
        config = {"learning_rate": 1e-2, "cache": self.STATE.copy()}
        w, config = ref.rmsprop(self.W.copy(), self.DW, config)
        expected = [-0.39223849, -0.34037513, -0.28849239, -0.23659121, -0.18467247]
        np.testing.assert_allclose(w[0], expected, atol=5e-9)
        np.testing.assert_allclose(config["cache"][0, 0], 0.99 * 0.6 + 0.01 * 0.36)

    def test_adam(self):
        second = np.linspace(0.7, 0.5, 20).reshape(4, 5)
        config = {"learning_rate": 1e-2, "m": self.STATE.copy(), "v": second, "t": 5}
        w, config = ref.adam(self.W.copy(), self.DW, config)
        expected = [-0.40094747, -0.34836187, -0.29577703, -0.24319299, -0.19060977]
        np.testing.assert_allclose(w[0], expected, atol=5e-9)
        assert config["t"] == 6
        np.testing.assert_allclose(config["m"][0, 0], 0.9 * 0.6 - 0.1 * 0.6)
        np.testing.assert_allclose(config["v"][0, 0], 0.999 * 0.7 + 0.001 * 0.36)

    def test_adam_adds_epsilon_to_the_uncorrected_root(self):
        w, config = np.array([1.0]), {"epsilon": 0.5, "learning_rate": 0.1}
        m = v = 0.0
        expected = 1.0
        for t, g in enumerate([0.3, -0.2, 0.5], start=1):
            w, config = ref.adam(w, np.array([g]), config)
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
            # Bias-corrected moments, with the epsilon rescaled to give the same step.
            m_hat, v_hat = m / (1 - 0.9**t), v / (1 - 0.999**t)
            expected -= 0.1 * m_hat / (v_hat**0.5 + 0.5 / (1 - 0.999**t) ** 0.5)
            np.testing.assert_allclose(w, expected, rtol=1e-13)

    @pytest.mark.parametrize("rule", DEFAULTS)
    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    @pytest.mark.parametrize("grad_dtype", [np.float32, np.float64])
    def test_in_place_in_the_dtype_of_the_weights(self, rule, dtype, grad_dtype):
        w, dw, config = self.W.astype(dtype), self.DW.astype(grad_dtype), {}
        got, got_config = getattr(ref, rule)(w, dw, config)
        assert got is w and got_config is config and w.dtype == dtype
        assert (w != self.W.astype(dtype)).all()
        np.testing.assert_array_equal(dw, self.DW.astype(grad_dtype))
        assert config.keys() == DEFAULTS[rule].keys()
        for key, default in DEFAULTS[rule].items():
            if default is ...:
                assert config[key].shape == w.shape and config[key].dtype == dtype
            else:
                assert config[key] == default

    @pytest.mark.parametrize("rule", DEFAULTS)
    def test_strided_weights_change_in_place(self, rule):
        wide = np.zeros((5, 8))
        wide[:, ::2] = self.W.T
        getattr(ref, rule)(wide[:, ::2], self.DW.T)
        expected, _ = getattr(ref, rule)(self.W.copy(), self.DW)
        np.testing.assert_array_equal(wide[:, ::2], expected.T)
        assert not wide[:, 1::2].any()

    @pytest.mark.parametrize("rule", DEFAULTS)
    def test_state_of_earlier_steps_is_not_overwritten(self, rule):
        w, config = getattr(ref, rule)(self.W.copy(), self.DW)
        kept = {key: (value, np.copy(value)) for key, value in config.items()}
        getattr(ref, rule)(w, self.DW, config)
        for value, copy in kept.values():
            np.testing.assert_array_equal(value, copy)

    @pytest.mark.parametrize("rule", DEFAULTS)
    @pytest.mark.parametrize(
        ("w", "dw", "error", "message"),
        [
            (np.zeros((2, 3)), np.zeros((3, 2)), ValueError, r"dw has shape \(3, 2\).*\(2, 3\)"),
            (np.zeros((2, 3)), np.zeros(3), ValueError, "dw has shape"),
            (np.zeros(3, dtype=int), np.zeros(3), TypeError, "w has dtype int64"),
            ([0.0, 1.0], np.zeros(2), TypeError, "w is list"),
            (np.zeros(3), np.zeros(3, dtype=complex), TypeError, "dw has dtype complex"),
        ],
    )
    def test_errors(self, rule, w, dw, error, message):
        with pytest.raises(error, match=message):
            getattr(ref, rule)(w, dw)

    @pytest.mark.parametrize("rule", DEFAULTS)
    def test_read_only_weights(self, rule):
        w, config = self.W.copy(), {}
        w.flags.writeable = False
        with pytest.raises(ValueError, match="read-only"):
            getattr(ref, rule)(w, self.DW, config)
        assert "t" not in config or config["t"] == 0


F = np.zeros


def I(*shape):
    return np.zeros(shape, dtype=int)


BAD_CALLS = [
    # op, arguments, error, message
    ("sigmoid", [np.zeros(2, dtype=complex)], TypeError, "x has dtype complex128"),
    ("sigmoid", [np.array(["a"])], TypeError, "x has dtype <U1"),
    ("sigmoid", [np.zeros(2, dtype=np.float16)], TypeError, "float16; expected float32 or"),
    ("rnn_step_forward", [F((2, 3)), F((2, 4)), F((3, 5)), F((4, 4)), F(4)], ValueError,
     r"Wx has shape \(3, 5\); expected \(D, H\) = \(3, 4\)"),
    ("rnn_step_forward", [F((2, 3)), F((3, 4)), F((3, 4)), F((4, 4)), F(4)], ValueError,
     r"prev_h has shape \(3, 4\); expected \(N, H\) = \(2, 4\)"),
    ("rnn_step_forward", [F((2, 3)), F((2, 4)), F((3, 4)), F((4, 5)), F(4)], ValueError, "Wh has"),
    ("rnn_step_forward", [F((2, 3)), F((2, 4)), F((3, 4)), F((4, 4)), F((1, 4))], ValueError,
     "b has shape"),
    ("rnn_step_forward", [F(3), F((2, 4)), F((3, 4)), F((4, 4)), F(4)], ValueError, "x has shape"),
    ("rnn_step_forward", [F((2, 3)), F((2, 4), complex), F((3, 4)), F((4, 4)), F(4)], TypeError,
     "prev_h has dtype complex128"),
    ("rnn_forward", [F((2, 3)), F((2, 4)), F((3, 4)), F((4, 4)), F(4)], ValueError,
     r"x has shape \(2, 3\); expected \(N, T, D\)"),
    ("rnn_forward", [F((2, 5, 3)), F((3, 4)), F((3, 4)), F((4, 4)), F(4)], ValueError, "h0 has"),
    ("rnn_forward", [F((2, 5, 3)), F((2, 4)), F((2, 4)), F((4, 4)), F(4)], ValueError, "Wx has"),
    ("lstm_step_forward", [F((2, 3)), F((2, 4)), F((2, 5)), F((3, 16)), F((4, 16)), F(16)],
     ValueError, r"prev_c has shape \(2, 5\); expected \(N, H\) = \(2, 4\)"),
    ("lstm_step_forward", [F((2, 3)), F((2, 4)), F((2, 4)), F((3, 4)), F((4, 16)), F(16)],
     ValueError, r"Wx has shape \(3, 4\); expected \(D, 4H\) = \(3, 16\)"),
    ("lstm_forward", [F((2, 5, 3)), F((2, 4)), F((3, 16)), F((4, 4)), F(16)], ValueError,
     r"Wh has shape \(4, 4\); expected \(H, 4H\) = \(4, 16\)"),
    ("lstm_forward", [F((2, 5, 3)), F((2, 4)), F((3, 16)), F((4, 16)), F(4)], ValueError,
     r"b has shape \(4,\); expected \(4H\) = \(16\)"),
    ("lstm_forward", [F((2, 5, 3), object), F((2, 4)), F((3, 16)), F((4, 16)), F(4)], TypeError,
     "x has dtype object"),
    ("word_embedding_forward", [F((2, 3)), F((5, 4))], TypeError, "x has dtype float64"),
    ("word_embedding_forward", [I(2, 3) == 0, F((5, 4))], TypeError, "x has dtype bool"),
    ("word_embedding_forward", [I(2), F((5, 4))], ValueError, "x has shape"),
    ("word_embedding_forward", [I(2, 3), F(5)], ValueError, "W has shape"),
    ("word_embedding_forward", [I(2, 3) + 5, F((5, 4))], IndexError, r"id 5; .* in \[-5, 5\)"),
    ("word_embedding_forward", [I(2, 3) - 6, F((5, 4))], IndexError, r"id -6; .* in \[-5, 5\)"),
    ("temporal_affine_forward", [F((2, 3)), F((3, 5)), F(5)], ValueError, "x has shape"),
    ("temporal_affine_forward", [F((2, 3, 4)), F((3, 5)), F(5)], ValueError, "w has shape"),
    ("temporal_affine_forward", [F((2, 3, 4)), F((4, 5)), F(1)], ValueError, "b has shape"),
    ("temporal_softmax_loss", [F((2, 3, 4)), I(2, 4), I(2, 3)], ValueError, "y has shape"),
    ("temporal_softmax_loss", [F((2, 3, 4)), I(2, 3), I(2)], ValueError, "mask has shape"),
    ("temporal_softmax_loss", [F((2, 3)), I(2, 3), I(2, 3)], ValueError, "x has shape"),
    ("temporal_softmax_loss", [F((2, 3, 4)), F((2, 3)), I(2, 3)], TypeError, "y has dtype"),
    ("temporal_softmax_loss", [F((2, 3, 4)), I(2, 3), F((2, 3), complex)], TypeError, "mask has"),
    ("temporal_softmax_loss", [F((2, 3, 4)), I(2, 3) + 4, I(2, 3)], IndexError, "y holds the id 4"),
    ("temporal_softmax_loss", [F((2, 3, 4)), I(2, 3) - 5, I(2, 3)], IndexError, "the id -5"),
    ("affine_forward", [F((2, 3)), F((4, 5)), F(5)], ValueError, "w has shape"),
    ("affine_forward", [F((2, 2, 2)), F((4, 5)), F(4)], ValueError, "b has shape"),
    ("affine_forward", [F(()), F((4, 5)), F(4)], ValueError, "x has shape"),
    ("softmax_loss", [F((2, 3)), I(3)], ValueError, "y has shape"),
    ("softmax_loss", [F((2, 3)), I(2) + 3], IndexError, "y holds the id 3"),
    ("svm_loss", [F((2, 3)), F(2)], TypeError, "y has dtype float64"),
    ("svm_loss", [F((2, 3)), I(2) - 4], IndexError, "y holds the id -4"),
]  # fmt: skip


class TestErrors:
    @pytest.mark.parametrize(("name", "arguments", "error", "message"), BAD_CALLS)
    def test_forward(self, name, arguments, error, message):
        with pytest.raises(error, match=message):
            getattr(ref, name)(*arguments)

    @each_op
    def test_backward(self, op, rng):
        *out, cache = op.forward(**op.draw(rng), **op.fixed)
        good = [np.zeros(a.shape) for a in out]
        names = [n for n in inspect.signature(op.backward).parameters if n != "cache"]
        for k, name in enumerate(names):
            for bad, error in [
                (good[k][..., None], ValueError),
                (np.zeros([n + 1 for n in good[k].shape]), ValueError),
                (good[k].astype(complex), TypeError),
            ]:
                with pytest.raises(error, match=f"^{name} has"):
                    op.backward(*good[:k], bad, *good[k + 1 :], cache)

    @pytest.mark.parametrize("name", ["rnn_forward", "lstm_forward"])
    @pytest.mark.parametrize(
        ("lengths", "error", "message"),
        [
            ([1, 2, 3], ValueError, r"lengths has shape \(3,\); expected \(N\) = \(4\)"),
            ([[1, 2, 3, 4]], ValueError, "lengths has shape"),
            ([1, 2, 3, 5], ValueError, "lengths holds 5; expected numbers of steps in 0..4"),
            ([1, -1, 3, 4], ValueError, "lengths holds -1"),
            ([1.0, 2.0, 3.0, 4.0], TypeError, "lengths has dtype float64"),
            ([True, True, False, True], TypeError, "lengths has dtype bool"),
        ],
    )
    def test_lengths(self, name, lengths, error, message, rng):
        arguments = recurrent("NTD", 4 if name[0] == "l" else 1)(rng)
        with pytest.raises(error, match=message):
            getattr(ref, name)(**arguments, lengths=lengths)


class TestCaptioningModel:
    def test_initialisation_draws_in_the_documented_order(self):
        model = small_model("lstm", dtype=np.float32)
        np.random.seed(231)
        expected = {
            "W_embed": np.random.randn(5, 3) / 100,
            "W_proj": np.random.randn(4, 5) / np.sqrt(4),
            "b_proj": np.zeros(5),
            "Wx": np.random.randn(3, 20) / np.sqrt(3),
            "Wh": np.random.randn(5, 20) / np.sqrt(5),
            "b": np.zeros(20),
            "W_vocab": np.random.randn(5, 5) / np.sqrt(5),
            "b_vocab": np.zeros(5),
        }
        assert list(model.params) == list(expected)
        for name, param in model.params.items():
            assert param.dtype == np.float32
            np.testing.assert_array_equal(param, expected[name].astype(np.float32))

    @pytest.mark.parametrize("cell_type", ["rnn", "lstm"])
    def test_padding_behind_the_end_changes_nothing(self, cell_type, rng):
        model = small_model(cell_type)
        features = rng.standard_normal((2, 4))
        captions = np.array([[1, 3, 4, 2], [1, 4, 2, 0]])
        longer = np.pad(captions, ((0, 0), (0, 3)))
        loss, grads = model.loss(features, captions)
        loss_longer, grads_longer = model.loss(features, longer)
        np.testing.assert_allclose(loss_longer, loss, rtol=1e-14)
        for name in grads:
            np.testing.assert_allclose(grads_longer[name], grads[name], rtol=1e-12, atol=1e-14)

    @pytest.mark.parametrize("cell_type", ["rnn", "lstm"])
    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_dtype_of_gradients(self, cell_type, dtype, rng):
        model = small_model(cell_type, dtype)
        features = rng.standard_normal((2, 4)).astype(dtype)
        loss, grads = model.loss(features, np.array([[1, 3, 2], [1, 4, 2]], dtype=np.int32))
        assert isinstance(loss, np.float64)
        for name, grad in grads.items():
            assert grad.dtype == dtype and grad.shape == model.params[name].shape

    @pytest.mark.parametrize("shape", [(0, 5), (2, 1)])
    def test_empty_captions(self, shape):
        loss, grads = small_model("lstm").loss(np.ones((shape[0], 4)), I(*shape))
        assert loss == 0.0 and not any(grad.any() for grad in grads.values())

    def test_captions_without_a_first_word(self):
        with pytest.raises(
            ValueError, match=r"captions has shape \(2, 0\); expected \(N, T \+ 1\)"
        ):
            small_model("lstm").loss(np.ones((2, 4)), I(2, 0))

    def echo_model(self, cell_type="rnn"):
        """Return a model that maps each word to a fixed next word: 1 -> 3 -> 4 -> 2 -> 3."""
        model = small_model(cell_type)
        follows = np.zeros((5, 5))
        follows[[1, 3, 4, 2, 0], [3, 4, 2, 3, 0]] = 1
        model.params.update(
            W_embed=np.eye(5), W_proj=np.zeros((4, 5)), Wx=5 * np.eye(5), Wh=np.zeros((5, 5)),
            b=np.zeros(5), W_vocab=follows, b_vocab=np.zeros(5),
        )  # fmt: skip
        return model

    def test_sample_by_hand(self):
        captions = self.echo_model().sample(np.ones((2, 4)), max_length=6)
        assert captions.dtype == np.int32
        np.testing.assert_array_equal(captions, [[3, 4, 2, 3, 4, 2]] * 2)

    def test_sample_stops_at_the_end(self):
        captions = self.echo_model().sample(np.ones((2, 4)), max_length=6, stop_at_end=True)
        np.testing.assert_array_equal(captions, [[3, 4, 2, 0, 0, 0]] * 2)

    @pytest.mark.parametrize("cell_type", ["rnn", "lstm"])
    def test_sample_takes_the_best_word_of_the_loss_path(self, cell_type, rng):
        model = small_model(cell_type)
        features = rng.standard_normal((3, 4))
        captions = model.sample(features, max_length=7)
        inputs = np.hstack((np.ones((3, 1), dtype=int), captions[:, :-1]))
        h0 = features @ model.params["W_proj"]
        p = model.params
        h, _ = getattr(ref, f"{cell_type}_forward")(
            p["W_embed"][inputs], h0, p["Wx"], p["Wh"], p["b"]
        )
        np.testing.assert_array_equal((h @ p["W_vocab"]).argmax(axis=2), captions)

    def test_sample_nothing(self):
        model = small_model("lstm")
        assert model.sample(np.ones((0, 4))).shape == (0, 30)
        assert model.sample(np.ones((2, 4)), max_length=0).shape == (2, 0)

    def test_errors(self):
        with pytest.raises(ValueError, match='Invalid cell_type "gru"'):
            ref.CaptioningRNN({"<NULL>": 0}, cell_type="gru")
        with pytest.raises(KeyError, match="<NULL>"):
            ref.CaptioningRNN({"cat": 0})
        model = small_model("rnn")
        for features, captions, error, message in [
            (np.ones((2, 5)), I(2, 3), ValueError, r"features has shape \(2, 5\).*\(2, 4\)"),
            (np.ones((2, 4)), I(3, 3), ValueError, "captions has shape"),
            (np.ones((2, 4)), I(2, 3) + 5, IndexError, "captions holds the id 5"),
            (np.ones((2, 4)), np.ones((2, 3)), TypeError, "captions has dtype float64"),
        ]:
            with pytest.raises(error, match=message):
                model.loss(features, captions)
        with pytest.raises(ValueError, match="features has shape"):
            model.sample(np.ones((2, 5)))
        plain = ref.CaptioningRNN({"<NULL>": 0, "cat": 1}, input_dim=4)
        with pytest.raises(ValueError, match="<START>"):
            plain.sample(np.ones((2, 4)))


class TestSolver:
    def data(self, rng, C=12):
        captions = np.zeros((C, 6), dtype=np.int32)
        captions[:, 0] = 1
        captions[:, 1:4] = rng.integers(3, 5, (C, 3))
        captions[:, 4] = 2
        return {
            "train_captions": captions,
            "train_image_idxs": np.arange(C, dtype=np.int32)[::-1],
            "train_features": rng.standard_normal((C, 4)),
        }

    def test_one_epoch_by_hand(self, rng, capsys):
        data, model, twin = self.data(rng), small_model("lstm"), small_model("lstm")
        np.random.seed(1)
        solver = ref.CaptioningSolver(
            model, data, optim_config={"learning_rate": 0.1}, lr_decay=0.5, batch_size=5,
            num_epochs=2, print_every=3,
        )  # fmt: skip
        assert solver.train() is None

        np.random.seed(1)
        losses = []
        for rate in (0.1, 0.1, 0.05, 0.05):  # 12 // 5 = 2 steps per epoch
            chosen = np.random.choice(12, 5)
            features = data["train_features"][data["train_image_idxs"][chosen]]
            loss, grads = twin.loss(features, data["train_captions"][chosen])
            losses.append(loss)
            for name in twin.params:
                twin.params[name] = twin.params[name] - rate * grads[name]
        np.testing.assert_allclose(solver.loss_history, losses, rtol=1e-13)
        for name in twin.params:
            np.testing.assert_allclose(model.params[name], twin.params[name], rtol=1e-12)
            assert solver.optim_configs[name]["learning_rate"] == 0.025
        assert solver.epoch == 2 and solver.optim_config == {"learning_rate": 0.1}
        assert capsys.readouterr().out == (
            f"(Iteration 1 / 4) loss: {losses[0]:f}\n(Iteration 4 / 4) loss: {losses[3]:f}\n"
        )

    @pytest.mark.parametrize("cell_type", ["rnn", "lstm"])
    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_overfits(self, cell_type, dtype, rng):
        data, model = self.data(rng, C=8), small_model(cell_type, dtype, 8, 24)
        data["train_features"] = data["train_features"].astype(dtype)
        np.random.seed(2)
        solver = ref.CaptioningSolver(
            model, data, update_rule="adam", optim_config={"learning_rate": 2e-2}, batch_size=8,
            num_epochs=200, verbose=False,
        )  # fmt: skip
        solver.train()
        assert solver.loss_history[0] > 5 and np.mean(solver.loss_history[-10:]) < 0.1
        assert all(param.dtype == dtype for param in model.params.values())
        expected = data["train_captions"][:, 1:5]
        features = data["train_features"][data["train_image_idxs"]]
        seen = model.sample(features, max_length=4)
        np.testing.assert_array_equal(seen, expected)

    def test_errors(self, rng):
        with pytest.raises(ValueError, match='Unrecognized arguments "a", "b"'):
            ref.CaptioningSolver(small_model("rnn"), self.data(rng), a=1, b=2)
        with pytest.raises(ValueError, match='Invalid update_rule "adagrad"'):
            ref.CaptioningSolver(small_model("rnn"), self.data(rng), update_rule="adagrad")

    def test_accuracy_is_the_courses_stub(self, rng):
        solver = ref.CaptioningSolver(small_model("rnn"), self.data(rng))
        assert solver.check_accuracy(None, None) == 0.0
        assert solver.best_params == {} and solver.best_val_acc == 0
        assert solver.train_acc_history == solver.val_acc_history == solver.loss_history == []


def test_names_a_notebook_gets_by_star_import():
    names = {}
    exec("from fastrnn.reference.rnn_layers import *", names)
    names.pop("__builtins__")
    assert names.keys() == {
        "np", "sigmoid", "affine_forward", "affine_backward",
        "rnn_step_forward", "rnn_step_backward", "rnn_forward", "rnn_backward",
        "lstm_step_forward", "lstm_step_backward", "lstm_forward", "lstm_backward",
        "dot_product_attention", "attention_step_forward", "attention_step_backward",
        "attention_forward", "attention_backward",
        "word_embedding_forward", "word_embedding_backward",
        "temporal_affine_forward", "temporal_affine_backward", "temporal_softmax_loss",
    }  # fmt: skip
