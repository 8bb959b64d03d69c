"""Layers that are plain NumPy; the compiled ones are in test_core_layers."""

import numpy as np
import pytest

from fastrnn import layers, reference
from fastrnn.gradient_check import eval_numerical_gradient, eval_numerical_gradient_array


def test_relu_by_hand():
    out, cache = layers.relu_forward(np.array([[-1.0, 0.0, 2.0, np.nan]]))
    np.testing.assert_array_equal(out, [[0, 0, 2, np.nan]])
    np.testing.assert_array_equal(layers.relu_backward(np.full((1, 4), 3.0), cache), [[0, 0, 3, 3]])


def test_svm_loss_by_hand():
    x = np.array([[3.2, 5.1, -1.7], [1.3, 4.9, 2.0], [2.2, 2.5, -3.1]])
    loss, dx = layers.svm_loss(x, np.arange(3))
    assert loss == pytest.approx((2.9 + 0 + 12.9) / 3)
    np.testing.assert_allclose(dx, np.array([[-1, 1, 0], [0, 0, 0], [1, 1, -2]]) / 3)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_gradients(dtype, rng):
    x, dout = rng.standard_normal((2, 5, 7)).astype(dtype)
    y = rng.integers(0, 7, 5)
    x64 = x.astype(np.float64)
    _, cache = layers.relu_forward(x)
    expected = eval_numerical_gradient_array(lambda x: layers.relu_forward(x)[0], x64, dout)
    dx = layers.relu_backward(dout, cache)
    assert dx.dtype == dtype
    np.testing.assert_allclose(dx, expected, atol=1e-6)
    dx = layers.svm_loss(x, y)[1]
    assert dx.dtype == dtype
    expected = eval_numerical_gradient(lambda x: layers.svm_loss(x, y)[0], x64, verbose=False)
    np.testing.assert_allclose(dx, expected, atol=1e-6)


@pytest.mark.parametrize(
    "name, arguments",
    [
        ("relu_forward", [np.ones((2, 3), complex)]),
        ("relu_backward", [np.ones((2, 3)), np.ones((3, 2))]),
        ("svm_loss", [np.ones((2, 3)), np.ones(2)]),
        ("svm_loss", [np.ones((2, 3)), np.array([0, 3])]),
        ("svm_loss", [np.ones((2, 3)), np.array([0, 1, 2])]),
    ],
)
def test_errors_are_those_of_the_twin(name, arguments):
    with pytest.raises(Exception) as expected:
        getattr(reference, name)(*arguments)
    with pytest.raises(expected.type) as found:
        getattr(layers, name)(*arguments)
    assert str(found.value) == str(expected.value)


def test_an_empty_batch():
    loss, dx = layers.svm_loss(np.zeros((0, 3)), np.zeros(0, int))
    assert loss == 0 and dx.shape == (0, 3)
