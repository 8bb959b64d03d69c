"""Layers of a recurrent captioning network in plain NumPy: the reference for `fastrnn.rnn_layers`.

Each ``*_forward`` function returns its output and a cache. Each ``*_backward`` function takes the
gradient of the loss with respect to that output, and the cache, and returns the gradients of the
inputs. A cache holds the intermediate results and the inputs themselves (not copies).

Shapes: N is the batch size, T the number of time steps, D the input size, H the hidden size, V the
vocabulary size, M the output size. The 4H axis of an LSTM holds one block of H per gate, in the
order **i, f, o, g** (input gate, forget gate, output gate, candidate).

dtypes: float32 inputs give float32 results and gradients, float64 inputs give float64. Mixed
inputs follow NumPy's promotion rules, and integers are treated as float64.

Errors: every function raises TypeError if the common dtype of the arguments is neither float32 nor
float64 or ids are not integers, ValueError if a shape does not match, and IndexError for a word id
outside ``[-V, V)``. The message names the argument. NaN and Inf propagate.
"""

from typing import Any

import numpy as np

from .. import checks as _checks
from . import bfloat16 as _bfloat16
from . import gates as _gates
from .attention import (
    attention_backward,
    attention_forward,
    attention_step_backward,
    attention_step_forward,
    dot_product_attention,
)
from .gates import sigmoid
from .layers import affine_backward, affine_forward

__all__ = [
    "np",
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


def rnn_step_forward(
    x: np.ndarray, prev_h: np.ndarray, Wx: np.ndarray, Wh: np.ndarray, b: np.ndarray
) -> tuple[np.ndarray, tuple[Any, ...]]:
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
    cache : tuple
        Values needed by `rnn_step_backward`.

    Raises
    ------
    TypeError
        If the common dtype is neither float32 nor float64.
    ValueError
        If the shapes do not match.
    """
    x, prev_h, Wx, Wh, b = _checks.cell_step_forward(1, x, (prev_h,), Wx, Wh, b)
    next_h, _, kept = _gates.rnn_gates(x @ Wx + prev_h @ Wh + b, prev_h, prev_h)
    return next_h, (x, prev_h, Wx, Wh, *kept)


def rnn_step_backward(
    dnext_h: np.ndarray, cache: tuple[Any, ...]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Gradients of `rnn_step_forward`.

    Parameters
    ----------
    dnext_h : ndarray, shape (N, H)
        Gradient of the loss with respect to the next hidden state.
    cache : tuple
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
    x, prev_h, Wx, Wh, next_h = cache
    dnext_h, next_h = _checks.as_floats(dnext_h=dnext_h, next_h=next_h)
    N, H = next_h.shape
    _checks.match_shapes({"N": N, "H": H}, dnext_h=(dnext_h, "N H"))

    da, _, _ = _gates.rnn_gates_backward(dnext_h, dnext_h, (next_h,))
    return da @ Wx.T, da @ Wh.T, x.T @ da, prev_h.T @ da, da.sum(axis=0)


def rnn_forward(
    x: np.ndarray,
    h0: np.ndarray,
    Wx: np.ndarray,
    Wh: np.ndarray,
    b: np.ndarray,
    *,
    lengths: np.ndarray | None = None,
    precision: str = "float32",
) -> tuple[np.ndarray, tuple[Any, ...]]:
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
        ``'bfloat16'`` rounds the operands of all matrix products, here and in the gradients; the
        arguments must be float32. By default, nothing is rounded.

    Returns
    -------
    h : ndarray, shape (N, T, H)
        Hidden state after each step; zero for steps ``t >= lengths[n]``.
    cache : tuple
        Values needed by `rnn_backward`.

    Raises
    ------
    TypeError
        If the common dtype is neither float32 nor float64, or `lengths` are not integers.
    ValueError
        If the shapes do not match, or a length is not in 0..T.
    """
    x, h0, Wx, Wh, b = _checks.cell_forward(1, x, h0, Wx, Wh, b)
    (N, T, _), H = x.shape, h0.shape[1]
    lengths = _checks.as_lengths(lengths, N, T)
    if _checks.is_bfloat16(precision, x.dtype):
        return _rounded_forward(_gates.rnn_gates, x, h0, Wx, Wh, b, lengths)

    h = np.zeros((N, T, H), dtype=x.dtype)
    state = h0.copy()
    steps = []
    for t in range(T):
        rows = np.flatnonzero(lengths > t)  # rows that have not ended
        state[rows], step = rnn_step_forward(x[rows, t], state[rows], Wx, Wh, b)
        h[rows, t] = state[rows]
        steps.append((rows, step))
    return h, (steps, x.shape, Wx, Wh)


def rnn_backward(
    dh: np.ndarray, cache: tuple[Any, ...]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Gradients of `rnn_forward`: back-propagation through time (Werbos, 1990).

    Parameters
    ----------
    dh : ndarray, shape (N, T, H)
        Gradient of the loss with respect to each hidden state, not counting its effect through
        later steps. Values at steps ``t >= lengths[n]`` are ignored.
    cache : tuple
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
        If the common dtype of `dh` and the cache is neither float32 nor float64.
    ValueError
        If `dh` does not have the shape of the hidden states.
    """
    if len(cache) == 2:
        return _rounded_backward(_gates.rnn_gates_backward, dh, cache)
    steps, (N, T, D), Wx, Wh = cache
    H = Wh.shape[0]
    dh, Wx, Wh = _checks.as_floats(dh=dh, Wx=Wx, Wh=Wh)
    _checks.match_shapes({"N": N, "T": T, "H": H}, dh=(dh, "N T H"))

    dx = np.zeros((N, T, D), dtype=dh.dtype)
    dstate = np.zeros((N, H), dtype=dh.dtype)
    dWx, dWh, db = np.zeros_like(Wx), np.zeros_like(Wh), np.zeros_like(Wh, shape=H)
    for t in reversed(range(T)):
        rows, step = steps[t]
        # A state affects the loss directly and through the next step.
        dx[rows, t], dstate[rows], dWx_t, dWh_t, db_t = rnn_step_backward(
            dh[rows, t] + dstate[rows], step
        )
        dWx += dWx_t
        dWh += dWh_t
        db += db_t
    return dx, dstate, dWx, dWh, db


def _rounded_forward(
    gates: Any, x: np.ndarray, h0: np.ndarray, Wx: np.ndarray, Wh: np.ndarray, b: np.ndarray,
    lengths: np.ndarray,
) -> tuple[np.ndarray, tuple[Any, ...]]:  # fmt: skip
    """Run a cell over whole sequences in bfloat16."""
    inputs, input_cache = _bfloat16.affine_forward(x, Wx, b)
    h, sequence_cache = _bfloat16.sequence_forward(gates, inputs, h0, Wh, lengths)
    return h, (input_cache, sequence_cache)


def _rounded_backward(
    gates_backward: Any, dh: np.ndarray, cache: tuple[Any, ...]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Gradients of `_rounded_forward`: dx, dh0, dWx, dWh, db."""
    input_cache, sequence_cache = cache
    (N, T, _), H = sequence_cache[1], len(sequence_cache[2])
    (dh,) = _checks.as_floats(dh=dh)
    _checks.is_bfloat16("bfloat16", dh.dtype)
    _checks.match_shapes({"N": N, "T": T, "H": H}, dh=(dh, "N T H"))
    dinputs, dh0, dWh, db = _bfloat16.sequence_backward(gates_backward, dh, sequence_cache)
    dx, dWx, _ = _bfloat16.affine_backward(dinputs, input_cache)
    return dx, dh0, dWx, dWh, db


def word_embedding_forward(x: np.ndarray, W: np.ndarray) -> tuple[np.ndarray, tuple[Any, ...]]:
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
    """
    x, W = _checks.word_embedding_forward(x, W)
    return W[x], (x, W)


def word_embedding_backward(dout: np.ndarray, cache: tuple[Any, ...]) -> np.ndarray:
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
    x, W = _checks.parts_of(cache, "x W")
    dout, x, W = _checks.word_embedding_backward(dout, x, W)

    dW = np.zeros_like(W)
    np.add.at(dW, x, dout)  # unlike dW[x] += dout, this sums over repeated words
    return dW


def lstm_step_forward(
    x: np.ndarray,
    prev_h: np.ndarray,
    prev_c: np.ndarray,
    Wx: np.ndarray,
    Wh: np.ndarray,
    b: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, tuple[Any, ...]]:
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
    cache : tuple
        Values needed by `lstm_step_backward`.

    Raises
    ------
    TypeError
        If the common dtype is neither float32 nor float64.
    ValueError
        If the shapes do not match.
    """
    x, prev_h, prev_c, Wx, Wh, b = _checks.cell_step_forward(4, x, (prev_h, prev_c), Wx, Wh, b)
    next_h, next_c, kept = _gates.lstm_gates(x @ Wx + prev_h @ Wh + b, prev_h, prev_c)
    return next_h, next_c, (x, prev_h, Wx, Wh, *kept)


def lstm_step_backward(
    dnext_h: np.ndarray, dnext_c: np.ndarray, cache: tuple[Any, ...]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Gradients of `lstm_step_forward`.

    Parameters
    ----------
    dnext_h : ndarray, shape (N, H)
        Gradient of the loss with respect to the next hidden state.
    dnext_c : ndarray, shape (N, H)
        Gradient of the loss with respect to the next cell state, not counting its effect
        through the next hidden state.
    cache : tuple
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
    x, prev_h, Wx, Wh, *kept, tanh_c = cache
    dnext_h, dnext_c, tanh_c = _checks.as_floats(dnext_h=dnext_h, dnext_c=dnext_c, tanh_c=tanh_c)
    N, H = tanh_c.shape
    _checks.match_shapes({"N": N, "H": H}, dnext_h=(dnext_h, "N H"), dnext_c=(dnext_c, "N H"))

    da, _, dprev_c = _gates.lstm_gates_backward(dnext_h, dnext_c, (*kept, tanh_c))
    return da @ Wx.T, da @ Wh.T, dprev_c, x.T @ da, prev_h.T @ da, da.sum(axis=0)


def lstm_forward(
    x: np.ndarray,
    h0: np.ndarray,
    Wx: np.ndarray,
    Wh: np.ndarray,
    b: np.ndarray,
    *,
    lengths: np.ndarray | None = None,
    precision: str = "float32",
) -> tuple[np.ndarray, tuple[Any, ...]]:
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
        ``'bfloat16'`` rounds the operands of all matrix products, here and in the gradients; the
        arguments must be float32. By default, nothing is rounded.

    Returns
    -------
    h : ndarray, shape (N, T, H)
        Hidden state after each step; zero for steps ``t >= lengths[n]``.
    cache : tuple
        Values needed by `lstm_backward`.

    Raises
    ------
    TypeError
        If the common dtype is neither float32 nor float64, or `lengths` are not integers.
    ValueError
        If the shapes do not match, or a length is not in 0..T.
    """
    x, h0, Wx, Wh, b = _checks.cell_forward(4, x, h0, Wx, Wh, b)
    (N, T, _), H = x.shape, h0.shape[1]
    lengths = _checks.as_lengths(lengths, N, T)
    if _checks.is_bfloat16(precision, x.dtype):
        return _rounded_forward(_gates.lstm_gates, x, h0, Wx, Wh, b, lengths)

    h = np.zeros((N, T, H), dtype=x.dtype)
    state, cell = h0.copy(), np.zeros_like(h0)
    steps = []
    for t in range(T):
        rows = np.flatnonzero(lengths > t)  # rows that have not ended
        state[rows], cell[rows], step = lstm_step_forward(
            x[rows, t], state[rows], cell[rows], Wx, Wh, b
        )
        h[rows, t] = state[rows]
        steps.append((rows, step))
    return h, (steps, x.shape, Wx, Wh)


def lstm_backward(
    dh: np.ndarray, cache: tuple[Any, ...]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Gradients of `lstm_forward`: back-propagation through time.

    Parameters
    ----------
    dh : ndarray, shape (N, T, H)
        Gradient of the loss with respect to each hidden state, not counting its effect through
        later steps. Values at steps ``t >= lengths[n]`` are ignored.
    cache : tuple
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
        If the common dtype of `dh` and the cache is neither float32 nor float64.
    ValueError
        If `dh` does not have the shape of the hidden states.
    """
    if len(cache) == 2:
        return _rounded_backward(_gates.lstm_gates_backward, dh, cache)
    steps, (N, T, D), Wx, Wh = cache
    H = Wh.shape[0]
    dh, Wx, Wh = _checks.as_floats(dh=dh, Wx=Wx, Wh=Wh)
    _checks.match_shapes({"N": N, "T": T, "H": H}, dh=(dh, "N T H"))

    dx = np.zeros((N, T, D), dtype=dh.dtype)
    dstate, dcell = np.zeros((2, N, H), dtype=dh.dtype)
    dWx, dWh, db = np.zeros_like(Wx), np.zeros_like(Wh), np.zeros_like(Wh, shape=4 * H)
    for t in reversed(range(T)):
        rows, step = steps[t]
        # A hidden state affects the loss directly and through the next step.
        dx[rows, t], dstate[rows], dcell[rows], dWx_t, dWh_t, db_t = lstm_step_backward(
            dh[rows, t] + dstate[rows], dcell[rows], step
        )
        dWx += dWx_t
        dWh += dWh_t
        db += db_t
    return dx, dstate, dWx, dWh, db


def temporal_affine_forward(
    x: np.ndarray, w: np.ndarray, b: np.ndarray
) -> tuple[np.ndarray, tuple[Any, ...]]:
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
    """
    x, w, b = _checks.temporal_affine_forward(x, w, b)
    (N, T, D), M = x.shape, w.shape[1]
    out, _ = affine_forward(x.reshape(N * T, D), w, b)
    out = out.reshape(N, T, M)
    return out, (x, w, b, out)


def temporal_affine_backward(
    dout: np.ndarray, cache: tuple[Any, ...]
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
    x, w, b, _ = _checks.parts_of(cache, "x w b out")
    dout, x, w = _checks.temporal_affine_backward(dout, x, w)
    (N, T, D), M = x.shape, w.shape[1]
    dx, dw, db = affine_backward(dout.reshape(N * T, M), (x.reshape(N * T, D), w, b))
    return dx.reshape(N, T, D), dw, db


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
    """
    x, y, mask = _checks.temporal_softmax_loss(x, y, mask)
    N, T, V = x.shape

    dx = np.zeros_like(x)
    loss = np.float64(0.0)
    scored = mask != 0
    if scored.any():
        scores, word = x[scored], y[scored]  # (S, V) and (S,) for the S steps that count
        weight = mask[scored].astype(x.dtype)
        step = np.arange(len(word))
        # Subtract the largest score of each step so that exp() cannot overflow.
        shifted = scores - scores.max(axis=1, keepdims=True)
        log_probs = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        loss = -(weight * log_probs[step, word]).sum(dtype=np.float64) / N
        dscores = np.exp(log_probs)
        dscores[step, word] -= 1
        dx[scored] = dscores * weight[:, None] / N
    if verbose:
        print("dx_flat: ", (N * T, V))
    return loss, dx
