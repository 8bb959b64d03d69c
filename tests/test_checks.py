"""Argument checks; the ops that use them are tested for their errors in test_reference."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from fastrnn import checks
from fastrnn._core.runtime import CELL_GATES
from fastrnn.classifiers.rnn import CaptioningRNN
from fastrnn.reference.cells import CELLS


def test_half_precision_counts_where_it_is_promoted():
    (x, w) = checks.as_floats(x=np.zeros(2, np.float16), w=np.zeros(2, np.float32))
    assert x.dtype == w.dtype == np.float32


def test_foreign_byte_order():
    (x,) = checks.as_floats(x=np.arange(3, dtype=">f4"))
    assert x.dtype == np.float32 and x.dtype.isnative
    np.testing.assert_array_equal(x, [0, 1, 2])


def test_cells_and_their_twins():
    assert {name: cell.gates for name, cell in CELLS.items()} == CELL_GATES
    assert CELL_GATES == {"rnn": 1, "lstm": 4}  # Elman; Hochreiter and Schmidhuber, Gers et al.


@pytest.mark.parametrize("gates, wanted", [(1, "H"), (3, "3H"), (4, "4H")])
def test_axis_of_the_gates(gates, wanted):
    """Three gates are those of a GRU, which is not among the cells yet."""
    assert checks.gate_columns(gates) == wanted
    right = np.zeros((5, gates * 5))
    checks.match_shapes(h=(np.zeros((2, 5)), "N H"), Wh=(right, f"H {wanted}"))
    with pytest.raises(ValueError, match=rf"^Wh has .* \(H, {wanted}\) = \(5, {gates * 5}\)$"):
        checks.match_shapes(h=(np.zeros((2, 5)), "N H"), Wh=(right[:, 1:], f"H {wanted}"))


@pytest.mark.parametrize("cell_type", ["rnn", "lstm"])
def test_shapes_of_parameters_are_those_of_a_model(cell_type):
    model = CaptioningRNN({"<NULL>": 0, "a": 1}, 3, 5, 7, cell_type)
    specs = checks.parameter_shapes(CELL_GATES[cell_type])
    assert specs.keys() == model.params.keys()
    sizes = checks.match_shapes(**{name: (model.params[name], specs[name]) for name in specs})
    assert {letter: sizes[letter] for letter in "VDWH"} == {"V": 2, "D": 3, "W": 5, "H": 7}
    wrong = {**model.params, "features": np.zeros((4, 3)), "Wh": np.zeros((7, 5))}
    expected = {"rnn": r"\(H, H\) = \(7, 7\)", "lstm": r"\(H, 4H\) = \(7, 28\)"}[cell_type]
    with pytest.raises(ValueError, match=rf"^Wh has shape \(7, 5\); expected {expected}$"):
        checks.match_model(wrong, CELL_GATES[cell_type])


def test_a_shape_of_which_nothing_is_known_is_said_once():
    with pytest.raises(ValueError, match=r"expected \(N, T, D\)$"):
        checks.match_shapes(x=(np.zeros((1, 1)), "N T D"))
    with pytest.raises(ValueError, match=r"expected \(N, T, D\) = \(2, T, D\)$"):
        checks.match_shapes({"N": 2}, x=(np.zeros((1, 1)), "N T D"))


def test_counts_that_do_not_fit_in_memory():
    largest = sys.maxsize // 64
    checks.check_count("n", largest)
    with pytest.raises(MemoryError, match=f"^n is {largest + 1}; expected at most {largest}$"):
        checks.check_count("n", largest + 1)
