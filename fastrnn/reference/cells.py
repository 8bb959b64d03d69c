"""The NumPy twins of the recurrent cells in ``src_c/cells.h``, with the same signatures for all."""

from collections.abc import Callable
from typing import Any, NamedTuple

from .rnn_layers import (
    lstm_backward,
    lstm_forward,
    lstm_step_forward,
    rnn_backward,
    rnn_forward,
    rnn_step_forward,
)


class Cell(NamedTuple):
    """The functions of a recurrent cell."""

    gates: int
    """Number of blocks of H columns in Wx, Wh and b."""
    forward: Callable[..., Any]
    """Whole sequences: h, cache = forward(x, h0, Wx, Wh, b, lengths=lengths)."""
    backward: Callable[..., Any]
    """dx, dh0, dWx, dWh, db = backward(dh, cache)."""
    step: Callable[..., Any]
    """One time step without a cache: h, c = step(x, h, c, Wx, Wh, b)."""


def _rnn_step(x, h, c, Wx, Wh, b):
    return rnn_step_forward(x, h, Wx, Wh, b)[0], c


def _lstm_step(x, h, c, Wx, Wh, b):
    return lstm_step_forward(x, h, c, Wx, Wh, b)[:2]


CELLS = {
    "rnn": Cell(1, rnn_forward, rnn_backward, _rnn_step),
    "lstm": Cell(4, lstm_forward, lstm_backward, _lstm_step),
}
