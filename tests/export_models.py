"""Small models that the tests of the exports share."""

from __future__ import annotations

import numpy as np
import pytest
from coco_layout import WORDS

from fastrnn.classifiers.rnn import CaptioningRNN

WORD_TO_IDX = {word: i for i, word in enumerate(WORDS)}
CELLS = pytest.mark.parametrize("cell_type", ["rnn", "lstm"])
DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64])
TOLERANCE = {np.float32: 1e-5, np.float64: 1e-12}
V, D, W, H = len(WORDS), 5, 6, 7


def small_model(cell_type, dtype=np.float64):
    """Return a model whose weights are large enough for its words to depend on one another."""
    np.random.seed(231)
    model = CaptioningRNN(WORD_TO_IDX, D, W, H, cell_type, dtype)
    for w in model.params.values():
        w += np.random.randn(*w.shape).astype(dtype) / 2
    return model


def assert_same_bits(a, b):
    assert a.keys() == b.keys()
    for name, w in a.items():
        assert (w.dtype, w.shape, w.tobytes()) == (b[name].dtype, b[name].shape, b[name].tobytes())
