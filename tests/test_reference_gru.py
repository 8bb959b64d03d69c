"""The NumPy twin of the GRU against numeric gradients and against torch."""

import numpy as np
import pytest

from fastrnn.gradient_check import eval_numerical_gradient_array
from fastrnn.reference import gru

N, T, D, H = 3, 4, 5, 6


def arguments(*x_shape):
    rng = np.random.default_rng(0)
    shapes = [x_shape, (N, H), (D, 3 * H), (H, 3 * H), (4 * H,)]
    return [rng.standard_normal(shape) for shape in shapes]


def check_gradients(forward, found, values, dout):
    for value, gradient in zip(values, found, strict=True):
        numeric = eval_numerical_gradient_array(lambda _: forward(*values)[0], value, dout)
        np.testing.assert_allclose(gradient, numeric, rtol=1e-6, atol=1e-8)


def test_gradients_of_a_step():
    values = arguments(N, D)
    next_h, cache = gru.gru_step_forward(*values)
    dout = np.random.default_rng(1).standard_normal(next_h.shape)
    check_gradients(gru.gru_step_forward, gru.gru_step_backward(dout, cache), values, dout)


@pytest.mark.parametrize("lengths", [None, np.array([4, 2, 0])])
def test_gradients_of_sequences(lengths):
    def forward(*values):
        return gru.gru_forward(*values, lengths=lengths)

    values = arguments(N, T, D)
    h, cache = forward(*values)
    dout = np.random.default_rng(1).standard_normal(h.shape)
    check_gradients(forward, gru.gru_backward(dout, cache), values, dout)


def test_rows_that_ended_are_zero():
    h, _ = gru.gru_forward(*arguments(N, T, D), lengths=np.array([4, 2, 0]))
    assert h[0].all() and h[1, :2].all()
    assert not h[1, 2:].any() and not h[2].any()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_results_have_the_dtype_of_the_arguments(dtype):
    h, cache = gru.gru_forward(*(value.astype(dtype) for value in arguments(N, T, D)))
    assert {h.dtype, *(d.dtype for d in gru.gru_backward(h, cache))} == {np.dtype(dtype)}


def test_a_wrong_bias_is_named():
    *others, b = arguments(N, T, D)
    with pytest.raises(ValueError, match=r"^b "):
        gru.gru_forward(*others, b[: 3 * H])


def test_torch_agrees():
    torch = pytest.importorskip("torch")
    x, h0, Wx, Wh, b = arguments(N, T, D)
    h, cache = gru.gru_forward(x, h0, Wx, Wh, b)
    dout = np.random.default_rng(1).standard_normal(h.shape)
    dx, dh0, dWx, dWh, db = gru.gru_backward(dout, cache)

    module = torch.nn.GRU(D, H, batch_first=True).double()
    b_hh = np.concatenate((np.zeros(2 * H), b[3 * H :]))
    with torch.no_grad():
        for name, value in [("weight_ih", Wx.T), ("weight_hh", Wh.T), ("bias_ih", b[: 3 * H]),
                            ("bias_hh", b_hh)]:  # fmt: skip
            getattr(module, name + "_l0").copy_(torch.tensor(value))
    inputs = torch.tensor(x, requires_grad=True), torch.tensor(h0[None], requires_grad=True)
    out, _ = module(*inputs)
    out.backward(torch.tensor(dout))
    for ours, theirs in [
        (h, out.detach()), (dx, inputs[0].grad), (dh0, inputs[1].grad[0]),
        (dWx, module.weight_ih_l0.grad.T), (dWh, module.weight_hh_l0.grad.T),
        (db[: 3 * H], module.bias_ih_l0.grad), (db[3 * H :], module.bias_hh_l0.grad[2 * H :]),
    ]:  # fmt: skip
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-10, atol=1e-12)
