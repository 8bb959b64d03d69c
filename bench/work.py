"""How many floating-point operations a result cannot do without.

An addition and a multiplication count as one each. Only matrix products are counted; gates,
softmax and optimiser are some per cent more. ``G`` is 4H for the LSTM and H for the plain RNN.
"""

from __future__ import annotations

import numpy as np

from .data import NULL
from .shapes import Shape

GATES = {"rnn": 1, "lstm": 4}


def step_work(captions: np.ndarray, shape: Shape, cell: str) -> float:
    """Count the operations of one training step, forward and backward.

    With K words that are asked for (not ``<NULL>``), R steps that a row needs to reach its last
    one, and U distinct words among the inputs of those steps::

        2 (2 N F H  +  3 U D G  +  3 R H G  +  3 K H V)

    that is the first state and its weight gradient (features need no gradient), then the input,
    recurrent and vocabulary products with two products backward for each one forward. Masked
    steps count nothing, and a word that occurs often is multiplied by Wx once.

    Parameters
    ----------
    captions : int ndarray, shape (N, T + 1)
        The batch.
    shape : Shape
        Sizes of the model.
    cell : {'rnn', 'lstm'}
        Its cell.

    Returns
    -------
    float
        Operations.
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
    """Count a dense layer forward and backward: ``6 N T G (D + H)``, all gradients included."""
    return 6.0 * shape.N * shape.T * GATES[cell] * shape.H * (shape.D + shape.H)


def sample_work(shape: Shape, cell: str, images: int, steps: int) -> float:
    """Count greedy decoding to the last step.

    ``2 (images F H + min(V, images steps) D G + images steps H (G + V))``: every word is
    multiplied by Wx once.
    """
    D, H, V, F, G = shape.D, shape.H, shape.V, shape.F, GATES[cell] * shape.H
    words = min(V, images * steps)
    return 2.0 * (images * F * H + words * D * G + images * steps * H * (G + V))
