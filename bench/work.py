"""Count the floating-point operations that are necessary for a result.

Additions and multiplications count as one operation each. Only matrix products are counted; the
gates, the softmax and the optimizer add a few percent. ``G`` is 4H for the LSTM, H for the RNN.
"""

from __future__ import annotations

import numpy as np

from .data import NULL
from .shapes import GATES, Shape


def step_work(captions: np.ndarray, shape: Shape, cell: str) -> float:
    """Count the operations of one training step, forward and backward.

    Let K be the number of targets that are not ``<NULL>``, R the number of steps up to the last
    such target of each row, and U the number of distinct input words in these steps. The count is::

        2 (2 N F H  +  3 U D G  +  3 R H G  +  3 K H V)

    The first term is the projection of the features and its weight gradient (the features need no
    gradient). The others are the input, recurrent and vocabulary products, each with two products
    in the backward pass. Masked steps are not counted. A word that occurs several times is
    multiplied by Wx only once.

    Parameters
    ----------
    captions : int ndarray, shape (N, T + 1)
        Captions of a minibatch.
    shape : Shape
        Sizes of the model.
    cell : {'rnn', 'lstm'}
        Type of the recurrent cell.

    Returns
    -------
    float
        Number of operations.
    """
    asked = captions[:, 1:] != NULL
    T = asked.shape[1]
    reach = np.where(asked.any(1), T - asked[:, ::-1].argmax(1), 0)
    needed = np.arange(T) < reach[:, None]
    N, K, R = len(captions), int(asked.sum()), int(needed.sum())
    U = len(np.unique(captions[:, :-1][needed]))
    D, H, V, F, G = shape.D, shape.H, shape.V, shape.F, GATES[cell] * shape.H
    return 2.0 * (2 * N * F * H + 3 * U * D * G + 3 * R * H * G + 3 * K * H * V)


def layer_work(shape: Shape, cell: str) -> float:
    """Count the operations of a dense layer, forward and backward: ``6 N T G (D + H)``."""
    return 6.0 * shape.N * shape.T * GATES[cell] * shape.H * (shape.D + shape.H)


def sample_work(shape: Shape, cell: str, images: int, steps: int) -> float:
    """Count the operations of greedy decoding without stopping at ``<END>``.

    The count is ``2 (images F H + min(V, images steps) D G + images steps H (G + V))``: each
    distinct word is multiplied by Wx only once.
    """
    D, H, V, F, G = shape.D, shape.H, shape.V, shape.F, GATES[cell] * shape.H
    words = min(V, images * steps)
    return 2.0 * (images * F * H + words * D * G + images * steps * H * (G + V))
