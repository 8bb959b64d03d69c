"""CS231n's ``rnn_layers.py``, name for name, over the compiled core.

Every ``*_forward`` returns its output and a cache, every ``*_backward`` takes the gradient of
the loss with respect to that output and the cache, and returns the gradients of the inputs.
A cache owns what was computed and refers to the inputs; what it is made of is not public, but
for the tuples ``(x, w, b)`` and ``(x, w, b, out)`` of the affine maps.

Letters in shapes: N rows of a batch, T time steps, D inputs, H hidden units, V words of the
vocabulary, M outputs. The 4H axis of an LSTM holds the blocks of the gates in the order
**i, f, o, g** (input, forget, output, block input).

dtypes: float32 stays float32 from the input to the gradients, float64 stays float64, a mix
follows NumPy's promotion, and integers count as float64. Arrays may have any strides and any
memory order and may be read-only; results are new C-contiguous arrays. NaN and Inf flow through.
Results do not depend on the number of threads. `fastrnn.reference.rnn_layers` is the same in
plain NumPy.
"""

# No __all__: notebooks rely on `import *` for np, too.

import numpy as np

from ._core import layers as _layers
from ._core import sequence as _sequence
from .layers import affine_backward, affine_forward  # noqa: F401


def sigmoid(x: np.ndarray) -> np.ndarray:
    """Logistic function ``1 / (1 + exp(-x))``, without overflow on either side.

    Parameters
    ----------
    x : array_like, any shape
        Argument.

    Returns
    -------
    ndarray, shape of `x`
        In 0..1; NaN stays NaN.

    Raises
    ------
    TypeError
        If the dtype of `x` is neither float32 nor float64 nor an integer dtype.
    """
    return _layers.sigmoid(x)


def rnn_step_forward(
    x: np.ndarray, prev_h: np.ndarray, Wx: np.ndarray, Wh: np.ndarray, b: np.ndarray
) -> tuple[np.ndarray, object]:
    """One time step of a vanilla RNN: ``next_h = tanh(x Wx + prev_h Wh + b)`` (Elman, 1990).

    Parameters
    ----------
    x : ndarray, shape (N, D)
        Input of this step.
    prev_h : ndarray, shape (N, H)
        Hidden state before the step.
    Wx : ndarray, shape (D, H)
        Input-to-hidden weights.
    Wh : ndarray, shape (H, H)
        Hidden-to-hidden weights.
    b : ndarray, shape (H,)
        Biases.

    Returns
    -------
    next_h : ndarray, shape (N, H)
        Hidden state after the step.
    cache : object
        For `rnn_step_backward`.

    Raises
    ------
    TypeError
        If the common dtype is neither float32 nor float64.
    ValueError
        If the shapes do not fit each other.
    """
    return _sequence.rnn_step_forward(x, prev_h, Wx, Wh, b)


def rnn_step_backward(
    dnext_h: np.ndarray, cache: object
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Gradients of `rnn_step_forward`.

    Parameters
    ----------
    dnext_h : ndarray, shape (N, H)
        Gradient of the loss with respect to the next hidden state.
    cache : object
        From `rnn_step_forward`.

    Returns
    -------
    dx : ndarray, shape (N, D)
        Gradient of the input.
    dprev_h : ndarray, shape (N, H)
        Gradient of the previous hidden state.
    dWx : ndarray, shape (D, H)
        Gradient of the input-to-hidden weights.
    dWh : ndarray, shape (H, H)
        Gradient of the hidden-to-hidden weights.
    db : ndarray, shape (H,)
        Gradient of the biases.

    Raises
    ------
    TypeError
        If the common dtype of `dnext_h` and the cache is neither float32 nor float64.
    ValueError
        If `dnext_h` does not have the shape of the next hidden state.
    """
    return _sequence.rnn_step_backward(dnext_h, cache)


def rnn_forward(
    x: np.ndarray,
    h0: np.ndarray,
    Wx: np.ndarray,
    Wh: np.ndarray,
    b: np.ndarray,
    *,
    lengths: np.ndarray | None = None,
) -> tuple[np.ndarray, object]:
    """A vanilla RNN over whole sequences: `rnn_step_forward`, T times.

    Parameters
    ----------
    x : ndarray, shape (N, T, D)
        Inputs.
    h0 : ndarray, shape (N, H)
        Initial hidden state.
    Wx : ndarray, shape (D, H)
        Input-to-hidden weights.
    Wh : ndarray, shape (H, H)
        Hidden-to-hidden weights.
    b : ndarray, shape (H,)
        Biases.
    lengths : ndarray of int, shape (N,), optional
        Number of steps of each row, 0..T; all T if None.

    Returns
    -------
    h : ndarray, shape (N, T, H)
        Hidden states after each step; zero from step ``lengths[n]`` on.
    cache : object
        For `rnn_backward`.

    Raises
    ------
    TypeError
        If the common dtype is neither float32 nor float64, or `lengths` is not integer.
    ValueError
        If the shapes do not fit each other, or a length lies outside 0..T.
    """
    return _sequence.rnn_forward(x, h0, Wx, Wh, b, lengths)


def rnn_backward(
    dh: np.ndarray, cache: object
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Gradients of `rnn_forward`: back-propagation through time (Werbos, 1990).

    Parameters
    ----------
    dh : ndarray, shape (N, T, H)
        Gradient of the loss with respect to all hidden states, as far as the loss depends on
        each of them directly. Past the length of a row it is ignored.
    cache : object
        From `rnn_forward`.

    Returns
    -------
    dx : ndarray, shape (N, T, D)
        Gradient of the inputs; zero past the length of a row.
    dh0 : ndarray, shape (N, H)
        Gradient of the initial hidden state.
    dWx : ndarray, shape (D, H)
        Gradient of the input-to-hidden weights.
    dWh : ndarray, shape (H, H)
        Gradient of the hidden-to-hidden weights.
    db : ndarray, shape (H,)
        Gradient of the biases.

    Raises
    ------
    TypeError
        If the common dtype of `dh` and the cache is neither float32 nor float64.
    ValueError
        If `dh` does not have the shape of the hidden states.
    """
    return _sequence.rnn_backward(dh, cache)


def word_embedding_forward(x: np.ndarray, W: np.ndarray) -> tuple[np.ndarray, tuple]:
    """The vector of each word: ``out[n, t] = W[x[n, t]]``.

    Parameters
    ----------
    x : ndarray of int, shape (N, T)
        Word ids in ``[-V, V)``; negative ones count from the end, as in NumPy.
    W : ndarray, shape (V, D)
        A vector per word.

    Returns
    -------
    out : ndarray, shape (N, T, D)
        The vectors.
    cache : tuple
        For `word_embedding_backward`.

    Raises
    ------
    TypeError
        If `x` is not integer, or the dtype of `W` is not float32, float64 or integer.
    ValueError
        If `x` or `W` does not have two axes.
    IndexError
        If a word id lies outside ``[-V, V)``.
    """
    return _layers.word_embedding_forward(x, W)


def word_embedding_backward(dout: np.ndarray, cache: tuple) -> np.ndarray:
    """Gradient of `word_embedding_forward` with respect to the vectors.

    Parameters
    ----------
    dout : ndarray, shape (N, T, D)
        Gradient of the loss with respect to the output.
    cache : tuple
        From `word_embedding_forward`.

    Returns
    -------
    dW : ndarray, shape (V, D)
        Gradient of the vectors: the sum of `dout` over all places where the word stands.

    Raises
    ------
    TypeError
        If the common dtype of `dout` and the vectors is neither float32 nor float64, the ids of the
        cache are not integer, or `cache` is no tuple.
    ValueError
        If `dout` does not have the shape of the output, or `cache` is that of another function.
    IndexError
        If an id of the cache lies outside ``[-V, V)``.
    """
    return _layers.word_embedding_backward(dout, cache)


def lstm_step_forward(
    x: np.ndarray,
    prev_h: np.ndarray,
    prev_c: np.ndarray,
    Wx: np.ndarray,
    Wh: np.ndarray,
    b: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, object]:
    """One time step of an LSTM with forget gates and without peepholes.

    ``a = x Wx + prev_h Wh + b``, cut into four blocks of H columns;
    ``i, f, o = sigmoid(a_i), sigmoid(a_f), sigmoid(a_o); g = tanh(a_g)``;
    ``next_c = f * prev_c + i * g; next_h = o * tanh(next_c)``
    (Hochreiter and Schmidhuber, 1997; Gers, Schmidhuber and Cummins, 2000).

    Parameters
    ----------
    x : ndarray, shape (N, D)
        Input of this step.
    prev_h : ndarray, shape (N, H)
        Hidden state before the step.
    prev_c : ndarray, shape (N, H)
        Cell state before the step.
    Wx : ndarray, shape (D, 4H)
        Input-to-hidden weights; blocks i, f, o, g.
    Wh : ndarray, shape (H, 4H)
        Hidden-to-hidden weights; blocks i, f, o, g.
    b : ndarray, shape (4H,)
        Biases; blocks i, f, o, g.

    Returns
    -------
    next_h : ndarray, shape (N, H)
        Hidden state after the step.
    next_c : ndarray, shape (N, H)
        Cell state after the step.
    cache : object
        For `lstm_step_backward`.

    Raises
    ------
    TypeError
        If the common dtype is neither float32 nor float64.
    ValueError
        If the shapes do not fit each other.
    """
    return _sequence.lstm_step_forward(x, prev_h, prev_c, Wx, Wh, b)


def lstm_step_backward(
    dnext_h: np.ndarray, dnext_c: np.ndarray, cache: object
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Gradients of `lstm_step_forward`.

    Parameters
    ----------
    dnext_h : ndarray, shape (N, H)
        Gradient of the loss with respect to the next hidden state.
    dnext_c : ndarray, shape (N, H)
        Gradient of the loss with respect to the next cell state, but for what reaches it
        through the next hidden state.
    cache : object
        From `lstm_step_forward`.

    Returns
    -------
    dx : ndarray, shape (N, D)
        Gradient of the input.
    dprev_h : ndarray, shape (N, H)
        Gradient of the previous hidden state.
    dprev_c : ndarray, shape (N, H)
        Gradient of the previous cell state.
    dWx : ndarray, shape (D, 4H)
        Gradient of the input-to-hidden weights.
    dWh : ndarray, shape (H, 4H)
        Gradient of the hidden-to-hidden weights.
    db : ndarray, shape (4H,)
        Gradient of the biases.

    Raises
    ------
    TypeError
        If the common dtype of the gradients and the cache is neither float32 nor float64.
    ValueError
        If `dnext_h` or `dnext_c` does not have the shape of the states.
    """
    return _sequence.lstm_step_backward(dnext_h, dnext_c, cache)


def lstm_forward(
    x: np.ndarray,
    h0: np.ndarray,
    Wx: np.ndarray,
    Wh: np.ndarray,
    b: np.ndarray,
    *,
    lengths: np.ndarray | None = None,
) -> tuple[np.ndarray, object]:
    """An LSTM over whole sequences: `lstm_step_forward`, T times, from a cell state of zero.

    Parameters
    ----------
    x : ndarray, shape (N, T, D)
        Inputs.
    h0 : ndarray, shape (N, H)
        Initial hidden state. The initial cell state is zero.
    Wx : ndarray, shape (D, 4H)
        Input-to-hidden weights; blocks i, f, o, g.
    Wh : ndarray, shape (H, 4H)
        Hidden-to-hidden weights; blocks i, f, o, g.
    b : ndarray, shape (4H,)
        Biases; blocks i, f, o, g.
    lengths : ndarray of int, shape (N,), optional
        Number of steps of each row, 0..T; all T if None.

    Returns
    -------
    h : ndarray, shape (N, T, H)
        Hidden states after each step; zero from step ``lengths[n]`` on.
    cache : object
        For `lstm_backward`.

    Raises
    ------
    TypeError
        If the common dtype is neither float32 nor float64, or `lengths` is not integer.
    ValueError
        If the shapes do not fit each other, or a length lies outside 0..T.
    """
    return _sequence.lstm_forward(x, h0, Wx, Wh, b, lengths)


def lstm_backward(
    dh: np.ndarray, cache: object
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Gradients of `lstm_forward`: back-propagation through time.

    Parameters
    ----------
    dh : ndarray, shape (N, T, H)
        Gradient of the loss with respect to all hidden states, as far as the loss depends on
        each of them directly. Past the length of a row it is ignored.
    cache : object
        From `lstm_forward`.

    Returns
    -------
    dx : ndarray, shape (N, T, D)
        Gradient of the inputs; zero past the length of a row.
    dh0 : ndarray, shape (N, H)
        Gradient of the initial hidden state.
    dWx : ndarray, shape (D, 4H)
        Gradient of the input-to-hidden weights.
    dWh : ndarray, shape (H, 4H)
        Gradient of the hidden-to-hidden weights.
    db : ndarray, shape (4H,)
        Gradient of the biases.

    Raises
    ------
    TypeError
        If the common dtype of `dh` and the cache is neither float32 nor float64.
    ValueError
        If `dh` does not have the shape of the hidden states.
    """
    return _sequence.lstm_backward(dh, cache)


def temporal_affine_forward(
    x: np.ndarray, w: np.ndarray, b: np.ndarray
) -> tuple[np.ndarray, tuple]:
    """The same affine map at every time step: ``out[n, t] = x[n, t] w + b``.

    Parameters
    ----------
    x : ndarray, shape (N, T, D)
        Inputs.
    w : ndarray, shape (D, M)
        Weights.
    b : ndarray, shape (M,)
        Biases.

    Returns
    -------
    out : ndarray, shape (N, T, M)
        Outputs.
    cache : tuple
        ``(x, w, b, out)``, for `temporal_affine_backward`.

    Raises
    ------
    TypeError
        If the common dtype is neither float32 nor float64.
    ValueError
        If the shapes do not fit each other.
    """
    return _layers.temporal_affine_forward(x, w, b)


def temporal_affine_backward(
    dout: np.ndarray, cache: tuple
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gradients of `temporal_affine_forward`.

    Parameters
    ----------
    dout : ndarray, shape (N, T, M)
        Gradient of the loss with respect to the output.
    cache : tuple
        From `temporal_affine_forward`.

    Returns
    -------
    dx : ndarray, shape (N, T, D)
        Gradient of the inputs.
    dw : ndarray, shape (D, M)
        Gradient of the weights.
    db : ndarray, shape (M,)
        Gradient of the biases.

    Raises
    ------
    TypeError
        If the common dtype of `dout` and the cache is neither float32 nor float64, or `cache` is
        no tuple.
    ValueError
        If `dout` does not have the shape of the output, or `cache` is that of another function.
    """
    return _layers.temporal_affine_backward(dout, cache)


def temporal_softmax_loss(
    x: np.ndarray, y: np.ndarray, mask: np.ndarray, verbose: bool = False
) -> tuple[np.float64, np.ndarray]:
    """Cross-entropy of word scores, summed over time and divided by the rows of the batch.

    ``loss = -1/N sum_{n,t} mask[n, t] log(exp(x[n, t, y_nt]) / sum_v exp(x[n, t, v]))``

    Parameters
    ----------
    x : ndarray, shape (N, T, V)
        Scores of all words at every step.
    y : ndarray of int, shape (N, T)
        The right word of each step, in ``[-V, V)`` where it is masked, too.
    mask : ndarray of bool, int or float, shape (N, T)
        Weight of each step. A step of weight 0 adds exactly nothing, whatever its scores.
        The mask does not take part in the promotion of dtypes.
    verbose : bool, default False
        Print the shape of the gradient as the course does.

    Returns
    -------
    loss : float64
        Loss in nats a row; 0.0 for an empty batch. Its terms have the dtype of `x`, their sum
        is float64.
    dx : ndarray, shape (N, T, V)
        Gradient of the scores, in the dtype of `x`.

    Raises
    ------
    TypeError
        If `x` is not floating, `y` not integer, or `mask` not a real number.
    ValueError
        If the shapes do not fit each other.
    IndexError
        If a word id lies outside ``[-V, V)``.
    """
    loss, dx = _layers.temporal_softmax_loss(x, y, mask)
    if verbose:
        N, T, V = dx.shape
        print("dx_flat: ", (N * T, V))
    return loss, dx
