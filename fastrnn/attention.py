"""Scaled dot-product attention over a grid of image features, and an LSTM with it.

The functions have the names, arguments and formulae of captioning homework that goes on where
CS231n's ends (EECS 498 of the University of Michigan), where they are written with PyTorch; here
they are on NumPy arrays and have backward passes. `fastrnn.rnn_layers` has them, too.

Shapes: N is the batch size, T the number of time steps, D the input size, H the hidden size. A grid
``A`` has shape (N, H, ...): a vector of H numbers for each place, such as (N, H, 4, 4). dtypes,
memory layouts, caches and the independence of the number of threads are as in `fastrnn.rnn_layers`.
`fastrnn.reference.attention` has the same functions in plain NumPy.
"""

import numpy as np

from ._core import attention as _attention

__all__ = [
    "attention_backward",
    "attention_forward",
    "attention_step_backward",
    "attention_step_forward",
    "dot_product_attention",
]


def dot_product_attention(prev_h: np.ndarray, A: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scaled dot-product attention of a hidden state over a grid (Vaswani et al., 2017).

    ``attn_weights = softmax(prev_h . A / sqrt(H))`` over the places of the grid, and ``attn`` is
    the mean of the places by these weights.

    Parameters
    ----------
    prev_h : ndarray, shape (N, H)
        Hidden state before the step: the queries.
    A : ndarray, shape (N, H, ...)
        The grid: keys and values.

    Returns
    -------
    attn : ndarray, shape (N, H)
        What was attended to.
    attn_weights : ndarray, shape (N, ...)
        The weight of each place; they add up to 1.

    Raises
    ------
    TypeError
        If the common dtype is neither float32 nor float64.
    ValueError
        If the shapes do not match, or the grid has no places.

    Examples
    --------
    >>> import numpy as np
    >>> from fastrnn.attention import dot_product_attention
    >>> A = np.zeros((1, 4, 2, 2))
    >>> A[0, :, 0, 1] = 1
    >>> attn, attn_weights = dot_product_attention(np.ones((1, 4)), A)
    >>> print(attn_weights[0].round(2))
    [[0.1  0.71]
     [0.1  0.1 ]]
    """
    return _attention.dot_product_attention(prev_h, A)


def attention_step_forward(
    x: np.ndarray,
    prev_h: np.ndarray,
    prev_c: np.ndarray,
    A: np.ndarray,
    Wx: np.ndarray,
    Wh: np.ndarray,
    Wattn: np.ndarray,
    b: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, object]:
    """One time step of an LSTM with attention.

    The step of `fastrnn.rnn_layers.lstm_step_forward` with ``a = x Wx + prev_h Wh + attn Wattn +
    b``, where ``attn`` is that of ``dot_product_attention(prev_h, A)``.

    Parameters
    ----------
    x : ndarray, shape (N, D)
        Input of this step.
    prev_h, prev_c : ndarray, shape (N, H)
        Hidden state and cell state before the step.
    A : ndarray, shape (N, H, ...)
        The grid.
    Wx : ndarray, shape (D, 4H)
        Input-to-hidden weights; blocks i, f, o, g.
    Wh : ndarray, shape (H, 4H)
        Hidden-to-hidden weights; blocks i, f, o, g.
    Wattn : ndarray, shape (H, 4H)
        Attention-to-hidden weights; blocks i, f, o, g.
    b : ndarray, shape (4H,)
        Biases; blocks i, f, o, g.

    Returns
    -------
    next_h, next_c : ndarray, shape (N, H)
        Hidden state and cell state after the step.
    cache : object
        Values needed by `attention_step_backward`.

    Raises
    ------
    TypeError
        If the common dtype is neither float32 nor float64.
    ValueError
        If the shapes do not match, or the grid has no places.
    """
    return _attention.attention_step_forward(x, prev_h, prev_c, A, Wx, Wh, Wattn, b)


def attention_step_backward(
    dnext_h: np.ndarray, dnext_c: np.ndarray, cache: object
) -> tuple[
    np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray
]:
    """Gradients of `attention_step_forward`.

    Parameters
    ----------
    dnext_h, dnext_c : ndarray, shape (N, H)
        Gradients of the loss with respect to the next hidden state and the next cell state.
    cache : object
        Cache returned by `attention_step_forward`.

    Returns
    -------
    dx, dprev_h, dprev_c, dA, dWx, dWh, dWattn, db : ndarray
        Gradients of the arguments of `attention_step_forward`, in their order and shapes.

    Raises
    ------
    TypeError
        If the common dtype of the gradients and the cache is neither float32 nor float64.
    ValueError
        If `dnext_h` or `dnext_c` does not have the shape of the states.
    """
    return _attention.attention_step_backward(dnext_h, dnext_c, cache)


def attention_forward(
    x: np.ndarray,
    A: np.ndarray,
    Wx: np.ndarray,
    Wh: np.ndarray,
    Wattn: np.ndarray,
    b: np.ndarray,
    *,
    lengths: np.ndarray | None = None,
) -> tuple[np.ndarray, object]:
    """Run an LSTM with attention over whole sequences: T steps of `attention_step_forward`.

    The initial hidden state and the initial cell state are the mean of the places of the grid.

    Parameters
    ----------
    x : ndarray, shape (N, T, D)
        Inputs.
    A : ndarray, shape (N, H, ...)
        The grid.
    Wx : ndarray, shape (D, 4H)
        Input-to-hidden weights; blocks i, f, o, g.
    Wh : ndarray, shape (H, 4H)
        Hidden-to-hidden weights; blocks i, f, o, g.
    Wattn : ndarray, shape (H, 4H)
        Attention-to-hidden weights; blocks i, f, o, g.
    b : ndarray, shape (4H,)
        Biases; blocks i, f, o, g.
    lengths : ndarray of int, shape (N,), optional
        Number of steps in each row, 0..T. By default, every row has T steps.

    Returns
    -------
    h : ndarray, shape (N, T, H)
        Hidden state after each step; zero for steps ``t >= lengths[n]``.
    cache : object
        Values needed by `attention_backward`.

    Raises
    ------
    TypeError
        If the common dtype is neither float32 nor float64, or `lengths` are not integers.
    ValueError
        If the shapes do not match, the grid has no places, or a length is not in 0..T.
    """
    return _attention.attention_forward(x, A, Wx, Wh, Wattn, b, lengths)


def attention_backward(
    dh: np.ndarray, cache: object
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Gradients of `attention_forward`: back-propagation through time.

    Parameters
    ----------
    dh : ndarray, shape (N, T, H)
        Gradient of the loss with respect to each hidden state, not counting its effect through
        later steps. Values at steps ``t >= lengths[n]`` are ignored.
    cache : object
        Cache returned by `attention_forward`.

    Returns
    -------
    dx, dA, dWx, dWh, dWattn, db : ndarray
        Gradients of the arguments of `attention_forward`, in their order and shapes. That of the
        grid includes its effect through the initial states.

    Raises
    ------
    TypeError
        If the common dtype of `dh` and the cache is neither float32 nor float64.
    ValueError
        If `dh` does not have the shape of the hidden states.
    """
    return _attention.attention_backward(dh, cache)
