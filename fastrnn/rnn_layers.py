"""CS231n's ``rnn_layers.py`` with the same names, on the compiled core.

Each ``*_forward`` function returns its output and a cache. Each ``*_backward`` function takes the
gradient of the loss with respect to that output, and the cache, and returns the gradients of the
inputs. A cache owns the intermediate results and holds references to the inputs. Its contents are
private, except for the tuples ``(x, w, b)`` of `affine_forward` and ``(x, w, b, out)`` of
`temporal_affine_forward`.

Shapes: N is the batch size, T the number of time steps, D the input size, H the hidden size, V the
vocabulary size, M the output size. The 4H axis of an LSTM holds one block of H per gate, in the
order **i, f, o, g** (input gate, forget gate, output gate, candidate).

dtypes: float32 inputs give float32 results and gradients, float64 inputs give float64. Mixed
inputs follow NumPy's promotion rules, and integers are treated as float64. Arrays may have any
strides and memory order and may be read-only; results are new C-contiguous arrays. NaN and Inf
propagate. Results do not depend on the number of threads. `fastrnn.reference.rnn_layers` has the
same functions in plain NumPy.
"""

import numpy as np

from ._core import layers as _layers
from ._core import sequence as _sequence
from .attention import (
    attention_backward,
    attention_forward,
    attention_step_backward,
    attention_step_forward,
    dot_product_attention,
)
from .layers import affine_backward, affine_forward

# With np: notebooks also get it from `import *`, as from every module of the course.
__all__ = [
    "affine_backward",
    "affine_forward",
    "attention_backward",
    "attention_forward",
    "attention_step_backward",
    "attention_step_forward",
    "dot_product_attention",
    "lstm_backward",
    "lstm_forward",
    "lstm_step_backward",
    "lstm_step_forward",
    "np",
    "rnn_backward",
    "rnn_forward",
    "rnn_step_backward",
    "rnn_step_forward",
    "sigmoid",
    "temporal_affine_backward",
    "temporal_affine_forward",
    "temporal_softmax_loss",
    "word_embedding_backward",
    "word_embedding_forward",
]


def sigmoid(x: np.ndarray) -> np.ndarray:
    """Logistic sigmoid ``1 / (1 + exp(-x))``, computed without overflow for any `x`.

    Parameters
    ----------
    x : array_like, any shape
        Input.

    Returns
    -------
    ndarray, shape of `x`
        Values in [0, 1]; NaN stays NaN.

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
        Values needed by `rnn_step_backward`.

    Raises
    ------
    TypeError
        If the common dtype is neither float32 nor float64.
    ValueError
        If the shapes do not match.
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
        Cache returned by `rnn_step_forward`.

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
    precision: str = "float32",
) -> tuple[np.ndarray, object]:
    """Run a vanilla RNN over whole sequences: T steps of `rnn_step_forward`.

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
        Number of steps in each row, 0..T. By default, every row has T steps.
    precision : {'float32', 'bfloat16'}, optional
        ``'bfloat16'`` rounds the operands of all matrix products to bfloat16, here and in the
        gradients; sums and everything else stay float32. The arguments must be float32. It is
        faster on processors with AVX512_BF16, and slower on others. By default, nothing is rounded.

    Returns
    -------
    h : ndarray, shape (N, T, H)
        Hidden state after each step; zero for steps ``t >= lengths[n]``.
    cache : object
        Values needed by `rnn_backward`.

    Raises
    ------
    TypeError
        If the common dtype is neither float32 nor float64, `lengths` are not integers, or
        `precision` is ``'bfloat16'`` and the common dtype is float64.
    ValueError
        If the shapes do not match, a length is not in 0..T, or `precision` is unknown.

    Examples
    --------
    >>> from fastrnn.rnn_layers import rnn_forward
    >>> x, h0 = np.ones((2, 5, 3)), np.zeros((2, 4))
    >>> Wx, Wh, b = np.full((3, 4), 0.1), np.full((4, 4), 0.1), np.zeros(4)
    >>> h, cache = rnn_forward(x, h0, Wx, Wh, b, lengths=[5, 2])
    >>> h.shape
    (2, 5, 4)
    >>> print(h[:, :, 0].round(4))
    [[0.2913 0.394  0.4281 0.4392 0.4428]
     [0.2913 0.394  0.     0.     0.    ]]
    """
    return _sequence.rnn_forward(x, h0, Wx, Wh, b, lengths, precision)


def rnn_backward(
    dh: np.ndarray, cache: object
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Gradients of `rnn_forward`: back-propagation through time (Werbos, 1990).

    Parameters
    ----------
    dh : ndarray, shape (N, T, H)
        Gradient of the loss with respect to each hidden state, not counting its effect through
        later steps. Values at steps ``t >= lengths[n]`` are ignored.
    cache : object
        Cache returned by `rnn_forward`.

    Returns
    -------
    dx : ndarray, shape (N, T, D)
        Gradient of the inputs; zero for steps ``t >= lengths[n]``.
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
        If the common dtype of `dh` and the cache is neither float32 nor float64, or it is float64
        after a forward pass in bfloat16.
    ValueError
        If `dh` does not have the shape of the hidden states.
    """
    return _sequence.rnn_backward(dh, cache)


def word_embedding_forward(
    x: np.ndarray, W: np.ndarray
) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """Look up the vector of each word: ``out[n, t] = W[x[n, t]]``.

    Parameters
    ----------
    x : ndarray of int, shape (N, T)
        Word ids in ``[-V, V)``; negative ones count from the end, as in NumPy.
    W : ndarray, shape (V, D)
        Word vectors, one per row.

    Returns
    -------
    out : ndarray, shape (N, T, D)
        Word vectors of `x`.
    cache : tuple
        Values needed by `word_embedding_backward`.

    Raises
    ------
    TypeError
        If `x` does not have an integer dtype, or `W` a float32, float64 or integer dtype.
    ValueError
        If `x` or `W` is not two-dimensional.
    IndexError
        If a word id is outside ``[-V, V)``.

    Examples
    --------
    >>> from fastrnn.rnn_layers import word_embedding_backward, word_embedding_forward
    >>> W = np.array([[0.0, 0.0], [1.0, 2.0], [3.0, 4.0]])
    >>> out, cache = word_embedding_forward(np.array([[1, 2, 2], [2, 1, 0]]), W)
    >>> print(out[0])
    [[1. 2.]
     [3. 4.]
     [3. 4.]]
    >>> print(word_embedding_backward(np.ones_like(out), cache))
    [[1. 1.]
     [2. 2.]
     [3. 3.]]
    """
    return _layers.word_embedding_forward(x, W)


def word_embedding_backward(dout: np.ndarray, cache: tuple[np.ndarray, ...]) -> np.ndarray:
    """Gradient of `word_embedding_forward` with respect to the word vectors.

    Parameters
    ----------
    dout : ndarray, shape (N, T, D)
        Gradient of the loss with respect to the output.
    cache : tuple
        Cache returned by `word_embedding_forward`.

    Returns
    -------
    dW : ndarray, shape (V, D)
        Gradient of the word vectors: row v is the sum of `dout` over all positions of word v.

    Raises
    ------
    TypeError
        If the common dtype of `dout` and the word vectors is neither float32 nor float64, the ids
        in the cache are not integers, or `cache` is not a tuple.
    ValueError
        If `dout` does not have the shape of the output, or `cache` comes from another function.
    IndexError
        If an id in the cache is outside ``[-V, V)``.
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

    ``a = x Wx + prev_h Wh + b``, split into four blocks of H columns;
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
        Values needed by `lstm_step_backward`.

    Raises
    ------
    TypeError
        If the common dtype is neither float32 nor float64.
    ValueError
        If the shapes do not match.
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
        Gradient of the loss with respect to the next cell state, not counting its effect
        through the next hidden state.
    cache : object
        Cache returned by `lstm_step_forward`.

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
    precision: str = "float32",
) -> tuple[np.ndarray, object]:
    """Run an LSTM over whole sequences: T steps of `lstm_step_forward`, from a zero cell state.

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
        Number of steps in each row, 0..T. By default, every row has T steps.
    precision : {'float32', 'bfloat16'}, optional
        ``'bfloat16'`` rounds the operands of all matrix products to bfloat16, here and in the
        gradients; sums and everything else stay float32. The arguments must be float32. It is
        faster on processors with AVX512_BF16, and slower on others. By default, nothing is rounded.

    Returns
    -------
    h : ndarray, shape (N, T, H)
        Hidden state after each step; zero for steps ``t >= lengths[n]``.
    cache : object
        Values needed by `lstm_backward`.

    Raises
    ------
    TypeError
        If the common dtype is neither float32 nor float64, `lengths` are not integers, or
        `precision` is ``'bfloat16'`` and the common dtype is float64.
    ValueError
        If the shapes do not match, a length is not in 0..T, or `precision` is unknown.

    Examples
    --------
    >>> from fastrnn.rnn_layers import lstm_backward, lstm_forward
    >>> x, h0 = np.ones((2, 5, 3)), np.zeros((2, 4))
    >>> Wx, Wh, b = np.full((3, 16), 0.1), np.full((4, 16), 0.1), np.zeros(16)
    >>> h, cache = lstm_forward(x, h0, Wx, Wh, b, lengths=[5, 2])
    >>> print(h[:, :, 0].round(4))
    [[0.0952 0.1635 0.2123 0.2473 0.2726]
     [0.0952 0.1635 0.     0.     0.    ]]
    >>> dx, dh0, dWx, dWh, db = lstm_backward(np.ones_like(h), cache)
    >>> dWx.shape, dWh.shape
    ((3, 16), (4, 16))
    """
    return _sequence.lstm_forward(x, h0, Wx, Wh, b, lengths, precision)


def lstm_backward(
    dh: np.ndarray, cache: object
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Gradients of `lstm_forward`: back-propagation through time.

    Parameters
    ----------
    dh : ndarray, shape (N, T, H)
        Gradient of the loss with respect to each hidden state, not counting its effect through
        later steps. Values at steps ``t >= lengths[n]`` are ignored.
    cache : object
        Cache returned by `lstm_forward`.

    Returns
    -------
    dx : ndarray, shape (N, T, D)
        Gradient of the inputs; zero for steps ``t >= lengths[n]``.
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
        If the common dtype of `dh` and the cache is neither float32 nor float64, or it is float64
        after a forward pass in bfloat16.
    ValueError
        If `dh` does not have the shape of the hidden states.
    """
    return _sequence.lstm_backward(dh, cache)


def temporal_affine_forward(
    x: np.ndarray, w: np.ndarray, b: np.ndarray
) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """Apply the same affine layer at every time step: ``out[n, t] = x[n, t] w + b``.

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
        If the shapes do not match.

    Examples
    --------
    >>> from fastrnn.rnn_layers import temporal_affine_forward
    >>> out, cache = temporal_affine_forward(np.ones((2, 3, 4)), np.ones((4, 5)), np.zeros(5))
    >>> out.shape
    (2, 3, 5)
    >>> print(out[0, 0])
    [4. 4. 4. 4. 4.]
    """
    return _layers.temporal_affine_forward(x, w, b)


def temporal_affine_backward(
    dout: np.ndarray, cache: tuple[np.ndarray, ...]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gradients of `temporal_affine_forward`.

    Parameters
    ----------
    dout : ndarray, shape (N, T, M)
        Gradient of the loss with respect to the output.
    cache : tuple
        Cache returned by `temporal_affine_forward`.

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
        not a tuple.
    ValueError
        If `dout` does not have the shape of the output, or `cache` comes from another function.
    """
    return _layers.temporal_affine_backward(dout, cache)


def temporal_softmax_loss(
    x: np.ndarray, y: np.ndarray, mask: np.ndarray, verbose: bool = False
) -> tuple[np.float64, np.ndarray]:
    """Softmax cross-entropy of word scores, summed over time and averaged over the batch.

    ``loss = -1/N sum_{n,t} mask[n, t] log(exp(x[n, t, y_nt]) / sum_v exp(x[n, t, v]))``

    Parameters
    ----------
    x : ndarray, shape (N, T, V)
        Score of every word at every step.
    y : ndarray of int, shape (N, T)
        Correct word of each step. All ids must be in ``[-V, V)``, even masked ones.
    mask : ndarray of bool, int or float, shape (N, T)
        Weight of each step. A step with weight 0 contributes exactly 0, even if its scores are
        NaN. The dtype of the mask does not affect the dtype of the result.
    verbose : bool, default False
        Print the shape of the gradient, as the course does.

    Returns
    -------
    loss : float64
        Loss in nats per row; 0.0 for an empty batch. Its terms are computed in the dtype of `x`
        and summed in float64.
    dx : ndarray, shape (N, T, V)
        Gradient of the scores, in the dtype of `x`.

    Raises
    ------
    TypeError
        If `x` does not have a float32, float64 or integer dtype, `y` an integer dtype, or `mask`
        a bool, integer or float dtype.
    ValueError
        If the shapes do not match.
    IndexError
        If a word id is outside ``[-V, V)``.

    Examples
    --------
    Scores that are all equal cost log(V) a word. Here are five words of seven in two captions:

    >>> from fastrnn.rnn_layers import temporal_softmax_loss
    >>> scores, y = np.zeros((2, 3, 7)), np.array([[1, 2, 3], [1, 2, 0]])
    >>> loss, dx = temporal_softmax_loss(scores, y, mask=y != 0)
    >>> print(round(loss, 4), round(5 / 2 * np.log(7), 4))
    4.8648 4.8648
    """
    loss, dx = _layers.temporal_softmax_loss(x, y, mask)
    if verbose:
        N, T, V = dx.shape
        print("dx_flat: ", (N * T, V))
    return loss, dx
