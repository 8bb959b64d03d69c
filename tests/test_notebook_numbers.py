"""The expected values of the assignment's notebooks, for the reference and for the package.

Each test is a cell of the notebooks "RNN_Captioning" and "LSTM_Captioning", with the same seeds,
the same order of random draws, the same expected values and the same tolerances.
"""

import importlib

import numpy as np
import pytest

from fastrnn.gradient_check import eval_numerical_gradient, eval_numerical_gradient_array

IMPLEMENTATIONS = {
    "reference": ("fastrnn.reference.rnn_layers", "fastrnn.reference"),
    "fastrnn": ("fastrnn.rnn_layers", "fastrnn.classifiers.rnn"),
}


@pytest.fixture(params=IMPLEMENTATIONS)
def layers(request):
    return importlib.import_module(IMPLEMENTATIONS[request.param][0])


@pytest.fixture(params=IMPLEMENTATIONS)
def captioning_rnn(request):
    return importlib.import_module(IMPLEMENTATIONS[request.param][1]).CaptioningRNN


def rel_error(x, y):
    return np.max(np.abs(x - y) / (np.maximum(1e-8, np.abs(x) + np.abs(y))))


def ramp(start, stop, *shape):
    return np.linspace(start, stop, num=int(np.prod(shape))).reshape(shape)


class TestFixedValues:
    def test_rnn_step_forward(self, layers):
        N, D, H = 3, 10, 4
        next_h, _ = layers.rnn_step_forward(
            ramp(-0.4, 0.7, N, D),
            ramp(-0.2, 0.5, N, H),
            ramp(-0.1, 0.9, D, H),
            ramp(-0.3, 0.7, H, H),
            ramp(-0.2, 0.4, H),
        )
        expected = np.array(
            [
                [-0.58172089, -0.50182032, -0.41232771, -0.31410098],
                [0.66854692, 0.79562378, 0.87755553, 0.92795967],
                [0.97934501, 0.99144213, 0.99646691, 0.99854353],
            ]
        )
        assert rel_error(expected, next_h) <= 1e-8

    def test_rnn_forward(self, layers):
        N, T, D, H = 2, 3, 4, 5
        h, _ = layers.rnn_forward(
            ramp(-0.1, 0.3, N, T, D),
            ramp(-0.3, 0.1, N, H),
            ramp(-0.2, 0.4, D, H),
            ramp(-0.4, 0.1, H, H),
            ramp(-0.7, 0.1, H),
        )
        expected = np.array(
            [
                [
                    [-0.42070749, -0.27279261, -0.11074945, 0.05740409, 0.22236251],
                    [-0.39525808, -0.22554661, -0.0409454, 0.14649412, 0.32397316],
                    [-0.42305111, -0.24223728, -0.04287027, 0.15997045, 0.35014525],
                ],
                [
                    [-0.55857474, -0.39065825, -0.19198182, 0.02378408, 0.23735671],
                    [-0.27150199, -0.07088804, 0.13562939, 0.33099728, 0.50158768],
                    [-0.51014825, -0.30524429, -0.06755202, 0.17806392, 0.40333043],
                ],
            ]
        )
        assert rel_error(expected, h) <= 1e-7

    def test_word_embedding_forward(self, layers):
        x = np.asarray([[0, 3, 1, 2], [2, 1, 0, 3]])
        out, _ = layers.word_embedding_forward(x, ramp(0, 1, 5, 3))
        rows = np.array(
            [
                [0.0, 0.07142857, 0.14285714],
                [0.21428571, 0.28571429, 0.35714286],
                [0.42857143, 0.5, 0.57142857],
                [0.64285714, 0.71428571, 0.78571429],
            ]
        )
        expected = np.array([[rows[word] for word in caption] for caption in x])
        assert rel_error(expected, out) <= 1.01e-8

    def test_lstm_step_forward(self, layers):
        N, D, H = 3, 4, 5
        next_h, next_c, _ = layers.lstm_step_forward(
            ramp(-0.4, 1.2, N, D),
            ramp(-0.3, 0.7, N, H),
            ramp(-0.4, 0.9, N, H),
            ramp(-2.1, 1.3, D, 4 * H),
            ramp(-0.7, 2.2, H, 4 * H),
            ramp(0.3, 0.7, 4 * H),
        )
        expected_h = np.array(
            [
                [0.24635157, 0.28610883, 0.32240467, 0.35525807, 0.38474904],
                [0.49223563, 0.55611431, 0.61507696, 0.66844003, 0.7159181],
                [0.56735664, 0.66310127, 0.74419266, 0.80889665, 0.858299],
            ]
        )
        expected_c = np.array(
            [
                [0.32986176, 0.39145139, 0.451556, 0.51014116, 0.56717407],
                [0.66382255, 0.76674007, 0.87195994, 0.97902709, 1.08751345],
                [0.74192008, 0.90592151, 1.07717006, 1.25120233, 1.42395676],
            ]
        )
        assert rel_error(expected_h, next_h) <= 1e-8
        assert rel_error(expected_c, next_c) <= 1e-8

    def test_lstm_forward(self, layers):
        N, D, H, T = 2, 5, 4, 3
        h, _ = layers.lstm_forward(
            ramp(-0.4, 0.6, N, T, D),
            ramp(-0.4, 0.8, N, H),
            ramp(-0.2, 0.9, D, 4 * H),
            ramp(-0.3, 0.6, H, 4 * H),
            ramp(0.2, 0.7, 4 * H),
        )
        expected = np.array(
            [
                [
                    [0.01764008, 0.01823233, 0.01882671, 0.0194232],
                    [0.11287491, 0.12146228, 0.13018446, 0.13902939],
                    [0.31358768, 0.33338627, 0.35304453, 0.37250975],
                ],
                [
                    [0.45767879, 0.4761092, 0.4936887, 0.51041945],
                    [0.6704845, 0.69350089, 0.71486014, 0.7346449],
                    [0.81733511, 0.83677871, 0.85403753, 0.86935314],
                ],
            ]
        )
        assert rel_error(expected, h) <= 1e-7

    @pytest.mark.parametrize(
        ("cell_type", "features", "expected"),
        [("rnn", (-1.5, 0.3), 9.83235591003), ("lstm", (-0.5, 1.7), 9.82445935443)],
    )
    def test_captioning_loss(self, captioning_rnn, cell_type, features, expected):
        N, D, W, H, T = 10, 20, 30, 40, 13
        words = {"<NULL>": 0, "cat": 2, "dog": 3}
        V = len(words)
        model = captioning_rnn(
            words,
            input_dim=D,
            wordvec_dim=W,
            hidden_dim=H,
            cell_type=cell_type,
            dtype=np.float64,
        )
        for name, param in model.params.items():
            model.params[name] = ramp(-1.4, 1.3, *param.shape)
        captions = (np.arange(N * T) % V).reshape(N, T)
        loss, _ = model.loss(ramp(*features, N, D), captions)
        assert abs(loss - expected) < 1e-10


class Numeric:
    """Numerical gradients of ``function(*arguments)[k]``, computed as in the notebooks."""

    def __init__(self, function, arguments):
        self.function, self.arguments = function, arguments

    def gradient(self, name, *douts):
        argument = self.arguments[name]
        return sum(
            eval_numerical_gradient_array(
                lambda _, k=k: self.function(*self.arguments.values())[k], argument, dout
            )
            for k, dout in enumerate(douts)
        )


def draw(**shapes):
    """Draw arguments by the global ``np.random``, in the order given."""
    return {name: np.random.randn(*shape) for name, shape in shapes.items()}


class TestGradientChecks:
    def check(self, forward, backward, arguments, tolerances):
        """Run as the notebooks do: forward, draw dout, numerical gradients, and then backward."""
        *out, cache = forward(*arguments.values())
        douts = [np.random.randn(*a.shape) for a in out]
        numeric = Numeric(forward, arguments)
        expected = {name: numeric.gradient(name, *douts) for name in arguments}
        grads = backward(*douts, cache)
        for name, grad in zip(arguments, grads, strict=True):
            error = rel_error(expected[name], grad)
            assert error < tolerances.get(name, tolerances["all"]), (name, error)

    def test_rnn_step(self, layers):
        np.random.seed(231)
        N, D, H = 4, 5, 6
        arguments = draw(x=(N, D), prev_h=(N, H), Wx=(D, H), Wh=(H, H), b=(H,))
        self.check(layers.rnn_step_forward, layers.rnn_step_backward, arguments, {"all": 1e-8})

    def test_rnn(self, layers):
        np.random.seed(231)
        N, D, T, H = 2, 3, 10, 5
        arguments = draw(x=(N, T, D), h0=(N, H), Wx=(D, H), Wh=(H, H), b=(H,))
        self.check(layers.rnn_forward, layers.rnn_backward, arguments, {"all": 5e-7})

    def test_word_embedding(self, layers):
        np.random.seed(231)
        N, T, V, D = 50, 3, 5, 6
        x = np.random.randint(V, size=(N, T))
        W = np.random.randn(V, D)
        out, cache = layers.word_embedding_forward(x, W)
        dout = np.random.randn(*out.shape)
        dW = layers.word_embedding_backward(dout, cache)
        expected = eval_numerical_gradient_array(
            lambda W: layers.word_embedding_forward(x, W)[0], W, dout
        )
        assert rel_error(dW, expected) < 1e-11

    def test_temporal_affine(self, layers):
        np.random.seed(231)
        N, T, D, M = 2, 3, 4, 5
        arguments = draw(x=(N, T, D), w=(D, M), b=(M,))
        self.check(
            layers.temporal_affine_forward,
            layers.temporal_affine_backward,
            arguments,
            {"all": 1e-9},
        )

    def test_temporal_softmax(self, layers):
        # The notebook does not seed this cell, so repeat the draws of the cell before it.
        np.random.seed(231)
        draw(x=(2, 3, 4), w=(4, 5), b=(5,), dout=(2, 3, 5))

        def check_loss(N, T, V, p):
            x = 0.001 * np.random.randn(N, T, V)
            y = np.random.randint(V, size=(N, T))
            mask = np.random.rand(N, T) <= p
            return layers.temporal_softmax_loss(x, y, mask)[0]

        assert 2.29 < check_loss(100, 1, 10, 1.0) < 2.31
        assert 22.9 < check_loss(100, 10, 10, 1.0) < 23.1
        assert 2.2 < check_loss(5000, 10, 10, 0.1) < 2.4

        N, T, V = 7, 8, 9
        x = np.random.randn(N, T, V)
        y = np.random.randint(V, size=(N, T))
        mask = np.random.rand(N, T) > 0.5
        _, dx = layers.temporal_softmax_loss(x, y, mask, verbose=False)
        expected = eval_numerical_gradient(
            lambda x: layers.temporal_softmax_loss(x, y, mask)[0], x, verbose=False
        )
        assert rel_error(dx, expected) < 1e-7

    def test_lstm_step(self, layers):
        np.random.seed(231)
        N, D, H = 4, 5, 6
        arguments = draw(
            x=(N, D), prev_h=(N, H), prev_c=(N, H), Wx=(D, 4 * H), Wh=(H, 4 * H), b=(4 * H,)
        )
        self.check(layers.lstm_step_forward, layers.lstm_step_backward, arguments, {"all": 1e-6})

    def test_lstm(self, layers):
        np.random.seed(231)
        N, D, T, H = 2, 3, 10, 6
        arguments = draw(x=(N, T, D), h0=(N, H), Wx=(D, 4 * H), Wh=(H, 4 * H), b=(4 * H,))
        self.check(layers.lstm_forward, layers.lstm_backward, arguments, {"all": 1e-7, "Wh": 5e-6})

    # The notebooks check only the RNN. The smallest gradients of the LSTM are below the rounding
    # error of h = 1e-6 (about 1e-10), so for them only the absolute error is meaningful.
    @pytest.mark.parametrize(("cell_type", "scale"), [("rnn", 1e-8), ("lstm", 1e-3)])
    def test_captioning_model(self, captioning_rnn, cell_type, scale):
        np.random.seed(231)
        N, T, D, W, H = 2, 3, 4, 5, 6
        words = {"<NULL>": 0, "cat": 2, "dog": 3}
        captions = np.random.randint(len(words), size=(N, T))
        features = np.random.randn(N, D)
        model = captioning_rnn(
            words,
            input_dim=D,
            wordvec_dim=W,
            hidden_dim=H,
            cell_type=cell_type,
            dtype=np.float64,
        )
        _, grads = model.loss(features, captions)
        assert sorted(grads) == sorted(model.params)
        for name in sorted(grads):
            expected = eval_numerical_gradient(
                lambda _: model.loss(features, captions)[0],
                model.params[name],
                verbose=False,
                h=1e-6,
            )
            difference = np.abs(expected - grads[name])
            size = np.maximum(scale, np.abs(expected) + np.abs(grads[name]))
            error = np.max(difference / size)
            assert error < 5e-6, (name, error)
