"""Attention over a grid in the core: what is refused, caches, threads, and PyTorch's numbers.

The comparison with the twin, over all layouts, dtypes and threads, is in test_core_layers.py.
"""

from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pytest
from equivalence import compiled, draw, twin

import fastrnn
from fastrnn import rnn_layers

SIZES = {"N": 5, "T": 4, "D": 3, "H": 6, "V": 7, "M": 2}


def cache_of(name, **sizes):
    arguments, gradients = draw(name, SIZES | sizes, np.float64, np.random.default_rng(7))
    return compiled(f"{name}_forward")(**arguments)[-1], gradients


@pytest.mark.parametrize("grid", [(4, 4), (16,), (7, 7), (2, 1, 3)])
def test_grids_of_any_shape(grid, rng):
    prev_h, A = rng.standard_normal((3, 6)), rng.standard_normal((3, 6, *grid))
    attn, weights = rnn_layers.dot_product_attention(prev_h, A)
    assert weights.shape == (3, *grid)
    np.testing.assert_allclose(weights.reshape(3, -1).sum(axis=1), 1, rtol=1e-12)
    expected = (weights[:, None] * A).reshape(3, 6, -1).sum(axis=2)
    np.testing.assert_allclose(attn, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("find", [compiled, twin])
@pytest.mark.parametrize("shape", [(5, 6), (5, 6, 0), (5, 6, 4, 0)])
def test_a_grid_without_places_is_refused(find, shape):
    with pytest.raises(ValueError, match=r"^A has shape .*; expected \(N, H, \.\.\.\)"):
        find("dot_product_attention")(np.ones((5, 6)), np.ones(shape))


@pytest.mark.parametrize("find", [compiled, twin])
@pytest.mark.parametrize("shape", [(4, 6, 4, 4), (5, 7, 4, 4)])
def test_a_grid_of_other_images_or_widths_is_refused(find, shape):
    with pytest.raises(ValueError, match=r"^A has shape"):
        find("dot_product_attention")(np.ones((5, 6)), np.ones(shape))


@pytest.mark.parametrize("name", ["attention", "attention_step"])
@pytest.mark.parametrize("bad", [None, (), 3, "cache", {}])
def test_other_caches_are_refused(name, bad):
    _, gradients = cache_of(name)
    others = [cache_of(o)[0] for o in ("attention", "attention_step", "lstm") if o != name]
    for cache in (bad, *others):
        with pytest.raises((TypeError, ValueError), match=r"^cache is"):
            compiled(f"{name}_backward")(*gradients.values(), cache)


@pytest.mark.parametrize("name", ["attention", "attention_step"])
def test_a_cache_is_neither_copied_nor_made_by_hand(name):
    cache, gradients = cache_of(name)
    for way in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match=r"^cache is an AttentionCache"):
            way(cache)
    with pytest.raises(ValueError, match=r"^cache is that of no forward pass"):
        compiled(f"{name}_backward")(*gradients.values(), type(cache)())


@pytest.mark.parametrize("name", ["attention", "attention_step"])
@pytest.mark.parametrize("argument", ["x", "A", "Wx", "Wh", "Wattn"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of such changes
def test_arrays_of_a_cache_changed_in_their_dtype(name, argument):
    arguments, gradients = draw(name, SIZES, np.float64, np.random.default_rng(7))
    cache = compiled(f"{name}_forward")(**arguments)[-1]
    arguments[argument].dtype = np.float32
    with pytest.raises(ValueError, match=f"^cache has {argument} with .* expected {argument} as"):
        compiled(f"{name}_backward")(*gradients.values(), cache)


def test_a_cache_outlives_other_passes(rng):
    """The gradients are those of the pass that made the cache, whatever ran since."""
    arguments, gradients = draw("attention", SIZES, np.float32, rng)
    cache = rnn_layers.attention_forward(**arguments)[-1]
    wanted = rnn_layers.attention_backward(*gradients.values(), cache)
    for _ in range(5):
        other, _ = draw("attention", SIZES, np.float32, rng)
        rnn_layers.attention_forward(**other)
    again = rnn_layers.attention_backward(*gradients.values(), cache)
    for a, b in zip(wanted, again, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("ragged", [False, True])
def test_any_number_of_threads_gives_the_same_bits(dtype, ragged):
    sizes = SIZES | {"N": 37, "T": 9, "D": 70, "H": 130}
    arguments, gradients = draw("attention", sizes, dtype, np.random.default_rng(3), ragged)
    before, found = fastrnn.get_num_threads(), []
    try:
        for count in (1, 2, 3, 5):
            fastrnn.set_num_threads(count)
            h, cache = rnn_layers.attention_forward(**arguments)
            found.append([h, *rnn_layers.attention_backward(*gradients.values(), cache)])
    finally:
        fastrnn.set_num_threads(before)
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


def test_the_same_as_in_pytorch(rng):
    """As the homework writes it: bmm, softmax, and gates in the order i, f, o, g."""
    torch = pytest.importorskip("torch")
    arguments, gradients = draw("attention", SIZES, np.float64, rng)
    x, A, Wx, Wh, Wattn, b = (torch.tensor(a, requires_grad=True) for a in arguments.values())
    N, H = A.shape[:2]
    flat = A.reshape(N, H, -1)
    state = cell = A.mean(dim=(2, 3))
    steps = []
    for t in range(x.shape[1]):
        weights = torch.softmax(torch.bmm(state[:, None], flat) / math.sqrt(H), dim=2)
        attn = torch.bmm(flat, weights.transpose(1, 2))[:, :, 0]
        i, f, o, g = (x[:, t] @ Wx + state @ Wh + attn @ Wattn + b).chunk(4, dim=1)
        cell = torch.sigmoid(f) * cell + torch.sigmoid(i) * torch.tanh(g)
        state = torch.sigmoid(o) * torch.tanh(cell)
        steps.append(state)
    expected = torch.stack(steps, dim=1)
    expected.backward(torch.tensor(gradients["dh"]))
    h, cache = rnn_layers.attention_forward(**arguments)
    grads = rnn_layers.attention_backward(gradients["dh"], cache)
    np.testing.assert_allclose(h, expected.detach().numpy(), rtol=1e-10, atol=1e-12)
    for grad, tensor in zip(grads, (x, A, Wx, Wh, Wattn, b), strict=True):
        np.testing.assert_allclose(grad, tensor.grad.numpy(), rtol=1e-9, atol=1e-11)
