"""The NumPy twins of the recurrent cells in ``src_c/cells.h``, with the same signatures for all."""

from collections.abc import Callable
from typing import Any, NamedTuple

from .gates import lstm_gates, lstm_gates_backward, rnn_gates, rnn_gates_backward
from .rnn_layers import lstm_backward, lstm_forward, rnn_backward, rnn_forward


class Cell(NamedTuple):
    """The functions of a recurrent cell."""

    gates: int
    """Number of blocks of H columns in Wx, Wh and b."""
    forward: Callable[..., Any]
    """Whole sequences: h, cache = forward(x, h0, Wx, Wh, b, lengths=lengths)."""
    backward: Callable[..., Any]
    """dx, dh0, dWx, dWh, db = backward(dh, cache)."""
    apply_gates: Callable[..., Any]
    """What follows the products of a step: h, c, kept = apply_gates(a, prev_h, prev_c)."""
    gates_backward: Callable[..., Any]
    """Gradients of the gates: da, dprev_h, dprev_c = gates_backward(dh, dc, kept)."""


CELLS = {
    "rnn": Cell(1, rnn_forward, rnn_backward, rnn_gates, rnn_gates_backward),
    "lstm": Cell(4, lstm_forward, lstm_backward, lstm_gates, lstm_gates_backward),
}
