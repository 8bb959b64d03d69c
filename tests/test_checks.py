"""Argument checks; the ops that use them are tested for their errors in test_reference."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from fastrnn import checks
from fastrnn.classifiers.rnn import CaptioningRNN


def test_half_precision_counts_where_it_is_promoted():
    (x, w) = checks.as_floats(x=np.zeros(2, np.float16), w=np.zeros(2, np.float32))
    assert x.dtype == w.dtype == np.float32


def test_foreign_byte_order():
    (x,) = checks.as_floats(x=np.arange(3, dtype=">f4"))
    assert x.dtype == np.float32 and x.dtype.isnative
    np.testing.assert_array_equal(x, [0, 1, 2])


@pytest.mark.parametrize("cell_type", ["rnn", "lstm"])
def test_shapes_of_parameters_are_those_of_a_model(cell_type):
    model = CaptioningRNN({"<NULL>": 0, "a": 1}, 3, 5, 7, cell_type)
    specs = checks.parameter_shapes(cell_type == "lstm")
    assert specs.keys() == model.params.keys()
    sizes = checks.match_shapes(**{name: (model.params[name], specs[name]) for name in specs})
    assert {letter: sizes[letter] for letter in "VDWH"} == {"V": 2, "D": 3, "W": 5, "H": 7}
    wrong = {**model.params, "features": np.zeros((4, 3)), "Wh": np.zeros((7, 5))}
    expected = {"rnn": r"\(H, H\) = \(7, 7\)", "lstm": r"\(H, 4H\) = \(7, 28\)"}[cell_type]
    with pytest.raises(ValueError, match=rf"^Wh has shape \(7, 5\); expected {expected}$"):
        checks.match_model(wrong, cell_type == "lstm")


def test_counts_that_do_not_fit_in_memory():
    largest = sys.maxsize // 64
    checks.check_count("n", largest)
    with pytest.raises(MemoryError, match=f"^n is {largest + 1}; expected at most {largest}$"):
        checks.check_count("n", largest + 1)
