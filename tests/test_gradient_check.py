"""Numerical gradients against derivatives computed by hand."""

from __future__ import annotations

import random

import numpy as np
import pytest

from fastrnn import gradient_check
from fastrnn.gradient_check import (
    eval_numerical_gradient,
    eval_numerical_gradient_array,
    eval_numerical_gradient_blobs,
    eval_numerical_gradient_net,
    grad_check_sparse,
)


class Blob:
    """Values and their gradients, in the form that the course's blob functions take."""

    def __init__(self, vals, diffs=None):
        self.vals = vals
        self.diffs = np.zeros_like(vals) if diffs is None else diffs


def test_scalar_function(rng, capsys):
    x = rng.standard_normal((2, 3))
    before = x.copy()
    grad = eval_numerical_gradient(lambda v: (v**3).sum(), x, verbose=False)
    np.testing.assert_allclose(grad, 3 * before**2, rtol=1e-7, atol=1e-9)
    np.testing.assert_array_equal(x, before)
    assert capsys.readouterr().out == ""


def test_verbose_prints_every_entry(capsys):
    grad = eval_numerical_gradient(lambda v: 2.0 * v[0] + v[1], np.zeros(2))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(") ")[0] for line in lines] == ["(0,", "(1,"]
    assert [float(line.split(") ")[1]) for line in lines] == grad.tolist()
    np.testing.assert_allclose(grad, [2, 1], rtol=1e-9)


def test_f_may_close_over_the_array_instead(rng):
    x = rng.standard_normal(4)
    grad = eval_numerical_gradient(lambda _: np.sin(x).sum(), x, verbose=False, h=1e-6)
    np.testing.assert_allclose(grad, np.cos(x), rtol=1e-8)


@pytest.mark.parametrize("view", ["C", "F", "strided"])
def test_array_function_in_any_layout(rng, view):
    A, df = rng.standard_normal((4, 5)), rng.standard_normal((3, 5))
    x = rng.standard_normal((3, 4))
    if view == "F":
        x = np.asfortranarray(x)
    elif view == "strided":
        x = rng.standard_normal((6, 8))[::2, ::-2]
    before = x.copy()
    grad = eval_numerical_gradient_array(lambda v: v @ A, x, df)
    np.testing.assert_allclose(grad, df @ A.T, rtol=1e-8)
    np.testing.assert_array_equal(x, before)


def test_function_that_returns_its_own_buffer(rng):
    x, buffer = rng.standard_normal(3), np.empty(3)
    grad = eval_numerical_gradient_array(lambda v: np.square(v, out=buffer), x, np.ones(3))
    np.testing.assert_allclose(grad, 2 * x, rtol=1e-7)


def test_blobs_and_net(rng):
    a, b = Blob(rng.standard_normal((2, 3))), Blob(rng.standard_normal((3, 2)))
    out = Blob(np.zeros((2, 2)), rng.standard_normal((2, 2)))

    def multiply(left, right, result):
        result.vals = left.vals @ right.vals

    da, db = eval_numerical_gradient_blobs(multiply, (a, b), out)
    np.testing.assert_allclose(da, out.diffs @ b.vals.T, rtol=1e-8)
    np.testing.assert_allclose(db, a.vals.T @ out.diffs, rtol=1e-8)

    class Net:
        def forward(self):
            multiply(a, b, out)

    for one, other in zip(eval_numerical_gradient_net(Net(), (a, b), out), (da, db), strict=True):
        np.testing.assert_array_equal(one, other)


def test_sparse_check_prints_what_it_found(rng, capsys):
    x = rng.standard_normal((5, 4))
    before = x.copy()
    random.seed(1)
    assert grad_check_sparse(lambda v: (v**2).sum(), x, 2 * x, num_checks=6) is None
    lines = capsys.readouterr().out.splitlines()
    random.seed(1)
    drawn = [(random.randrange(5), random.randrange(4)) for _ in range(6)]
    assert len(lines) == 6
    for line, ix in zip(lines, drawn, strict=True):
        assert line.startswith("numerical: ")
        assert f"analytic: {2 * before[ix]:f}, relative error: " in line
        assert float(line.rsplit(" ", 1)[1]) < 1e-7
    np.testing.assert_array_equal(x, before)

    grad_check_sparse(lambda v: (v**2).sum(), x, -2 * x, num_checks=1)
    assert float(capsys.readouterr().out.rsplit(" ", 1)[1]) == pytest.approx(1)
    grad_check_sparse(lambda v: 0.0, x, np.zeros_like(x), num_checks=1)
    assert float(capsys.readouterr().out.rsplit(" ", 1)[1]) == 0


def test_x_is_restored_where_f_raises():
    x = np.ones(2)

    def fails(_):
        raise RuntimeError("no value here")

    with pytest.raises(RuntimeError, match="no value here"):
        eval_numerical_gradient(fails, x)
    np.testing.assert_array_equal(x, [1, 1])


@pytest.mark.parametrize("x", [np.arange(3), [1.0, 2.0], np.array([True])])
def test_only_float_arrays_can_be_stepped(x):
    for call in (
        lambda: eval_numerical_gradient(np.sum, x),
        lambda: eval_numerical_gradient_array(np.sum, x, 1.0),
        lambda: grad_check_sparse(np.sum, x, x),
    ):
        with pytest.raises(TypeError, match=r"^x is .*; expected an ndarray of floats"):
            call()
    with pytest.raises(TypeError, match=r"inputs\[0\].vals"):
        eval_numerical_gradient_blobs(np.sum, [Blob(x, x)], Blob(np.ones(1)))


def test_result_has_the_dtype_of_x():
    x = np.ones(3, dtype=np.float32)
    assert eval_numerical_gradient(np.sum, x, verbose=False, h=1e-2).dtype == np.float32


def test_all_five_are_there():
    named = {n for n in vars(gradient_check) if n.startswith(("eval_", "grad_"))}
    assert len(named) == 5
