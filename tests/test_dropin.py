"""Behavior that the notebooks rely on but that no signature shows; a drop-in must not break it.

The expected values are numerical gradients, plain NumPy written out here, or the values that the
notebooks print.
"""

from __future__ import annotations

import matplotlib
import numpy as np
import pytest
from coco_layout import draw_captions, write_layout

from fastrnn import rnn_layers
from fastrnn.classifiers.rnn import CaptioningRNN
from fastrnn.gradient_check import eval_numerical_gradient_array

matplotlib.use("Agg")

N, T, D, H, V = 3, 4, 5, 6, 7
CELLS = pytest.mark.parametrize("cell_type", ["rnn", "lstm"])


def weights(rng, gates):
    return [
        rng.standard_normal((D, gates * H)),
        rng.standard_normal((H, gates * H)),
        rng.standard_normal(gates * H),
    ]


def arguments(name, rng):
    """Return float64 arguments for a forward function; word ids come first if it takes any."""
    normal = rng.standard_normal
    if name == "word_embedding":
        return [rng.integers(0, V, (N, T)), normal((V, D))]
    if name == "temporal_affine":
        return [normal((N, T, D)), normal((D, H)), normal(H)]
    if name == "affine":
        return [normal((N, 2, 3)), normal((6, H)), normal(H)]
    gates = 4 if name.startswith("lstm") else 1
    if name.endswith("step"):
        states = [normal((N, H)) for _ in range(2 if gates == 4 else 1)]
        return [normal((N, D)), *states, *weights(rng, gates)]
    return [normal((N, T, D)), normal((N, H)), *weights(rng, gates)]


OPS = [
    "rnn_step",
    "rnn",
    "lstm_step",
    "lstm",
    "word_embedding",
    "temporal_affine",
    "affine",
]
EVERY_OP = pytest.mark.parametrize("op", OPS)


def run_forward(op, args):
    """Return (list of outputs, cache)."""
    *outs, cache = getattr(rnn_layers, f"{op}_forward")(*args)
    return outs, cache


def run_backward(op, douts, cache):
    grads = getattr(rnn_layers, f"{op}_backward")(*douts, cache)
    return list(grads) if isinstance(grads, tuple) else [grads]


def float_arguments(args):
    return [a for a in args if a.dtype.kind == "f"]


@EVERY_OP
def test_cache_outlives_dozens_of_forwards(op, rng):
    """The notebooks run forward, then numerical gradients (many forwards), and then backward."""
    args = arguments(op, rng)
    outs, cache = run_forward(op, args)
    douts = [rng.standard_normal(out.shape) for out in outs]
    numeric = []
    for a in float_arguments(args):
        numeric.append(
            sum(
                eval_numerical_gradient_array(lambda _, k=k: run_forward(op, args)[0][k], a, dout)
                for k, dout in enumerate(douts)
            )
        )
    grads = run_backward(op, douts, cache)
    assert len(grads) == len(numeric)
    for grad, expected in zip(grads, numeric, strict=True):
        np.testing.assert_allclose(grad, expected, rtol=1e-6, atol=1e-8)


@EVERY_OP
def test_several_caches_live_at_once(op, rng):
    batches = [arguments(op, rng) for _ in range(3)]
    forwards = [run_forward(op, args) for args in batches]
    douts = [[rng.standard_normal(out.shape) for out in outs] for outs, _ in forwards]
    late = [run_backward(op, d, cache) for d, (_, cache) in zip(douts, forwards, strict=True)]
    for args, d, grads in zip(batches, douts, late, strict=True):
        _, cache = run_forward(op, args)
        for grad, expected in zip(grads, run_backward(op, d, cache), strict=True):
            np.testing.assert_array_equal(grad, expected)


@EVERY_OP
def test_outputs_and_gradients_own_their_memory(op, rng):
    args = arguments(op, rng)
    outs, cache = run_forward(op, args)
    douts = [rng.standard_normal(out.shape) for out in outs]
    first = run_backward(op, douts, cache)
    kept = [a.copy() for a in [*outs, *first]]

    others = arguments(op, rng)
    other_outs, other_cache = run_forward(op, others)
    second = run_backward(op, [2 * d for d in douts], other_cache)
    again = run_backward(op, douts, cache)
    for a, copy in zip([*outs, *first], kept, strict=True):
        np.testing.assert_array_equal(a, copy)
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)

    everything = [*outs, *first, *other_outs, *second, *again, *args, *others, *douts]
    for i, a in enumerate(everything):
        for b in everything[:i]:
            assert not np.may_share_memory(a, b)
    for grad in first:  # callers may add to the gradients
        grad += 1


@EVERY_OP
def test_inputs_changed_in_place_are_seen(op, rng):
    """Packed weights cached by the identity of the array would be stale here."""
    args = arguments(op, rng)
    run_forward(op, args)
    fresh = arguments(op, rng)
    for a, b in zip(args, fresh, strict=True):
        a[...] = b
    outs, cache = run_forward(op, args)
    expected, expected_cache = run_forward(op, fresh)
    for out, other in zip(outs, expected, strict=True):
        np.testing.assert_array_equal(out, other)
    douts = [rng.standard_normal(out.shape) for out in outs]
    pairs = zip(
        run_backward(op, douts, cache), run_backward(op, douts, expected_cache), strict=True
    )
    for grad, other in pairs:
        np.testing.assert_array_equal(grad, other)


@EVERY_OP
def test_one_entry_changed_in_place_is_seen(op, rng):
    """Numerical gradients change one entry of one array and then restore it."""
    args = arguments(op, rng)
    for a in float_arguments(args):
        before = [out.copy() for out in run_forward(op, args)[0]]
        ix = (args[0].flat[0], 0) if op == "word_embedding" else (0,) * a.ndim
        old = a[ix]
        a[ix] = old + 0.5
        changed = run_forward(op, args)[0]
        a[ix] = old
        restored = run_forward(op, args)[0]
        assert any((c != b).any() for c, b in zip(changed, before, strict=True))
        for b, r in zip(before, restored, strict=True):
            np.testing.assert_array_equal(b, r)


def test_loss_gradient_owns_its_memory(rng):
    x, y, mask = rng.standard_normal((N, T, V)), rng.integers(0, V, (N, T)), np.ones((N, T), bool)
    _, dx = rnn_layers.temporal_softmax_loss(x, y, mask)
    kept = dx.copy()
    rnn_layers.temporal_softmax_loss(x + 1e3 * rng.standard_normal(x.shape), y, mask)
    np.testing.assert_array_equal(dx, kept)
    assert not np.may_share_memory(dx, x)


@pytest.mark.parametrize("order", ["strided", "fortran", "readonly"])
@EVERY_OP
def test_any_memory_order(op, order, rng):
    args = arguments(op, rng)
    arranged = []
    for a in args:
        if order == "strided":
            wide = np.zeros(tuple(2 * n for n in a.shape), dtype=a.dtype)
            view = wide[tuple(slice(None, None, 2) for _ in a.shape)]
            view[...] = a
        elif order == "fortran":
            view = np.asfortranarray(a)
        else:
            view = a.copy()
            view.flags.writeable = False
        arranged.append(view)
    for out, expected in zip(run_forward(op, arranged)[0], run_forward(op, args)[0], strict=True):
        np.testing.assert_allclose(out, expected, rtol=1e-12, atol=1e-14)


# ---- The model -----------------------------------------------------------------------------------


TINY_VOCABULARY = {"<NULL>": 0, "cat": 2, "dog": 3}  # ids up to 3 with V = 3, no START, no END
PRINTED_LOSS = {"rnn": 9.83235591003, "lstm": 9.82445935443}
FEATURE_RANGE = {"rnn": (-1.5, 0.3), "lstm": (-0.5, 1.7)}


def notebook_model(cell_type, dtype):
    """Return the model, features and captions of the loss check in the notebooks."""
    model = CaptioningRNN(
        TINY_VOCABULARY,
        input_dim=20,
        wordvec_dim=30,
        hidden_dim=40,
        cell_type=cell_type,
        dtype=dtype,
    )
    for k, v in model.params.items():
        model.params[k] = np.linspace(-1.4, 1.3, num=v.size).reshape(*v.shape)
    features = np.linspace(*FEATURE_RANGE[cell_type], num=200).reshape(10, 20)
    return model, features, (np.arange(130) % 3).reshape(10, 13)


@CELLS
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_params_replaced_by_float64_arrays(cell_type, dtype):
    model, features, captions = notebook_model(cell_type, dtype)
    loss, grads = model.loss(features, captions)
    assert abs(loss - PRINTED_LOSS[cell_type]) < 1e-10
    assert {grad.dtype for grad in grads.values()} == {np.dtype(np.float64)}


@CELLS
def test_params_edited_in_place(cell_type):
    model, features, captions = notebook_model(cell_type, np.float64)
    for w in model.params.values():
        w += 0.25
    assert abs(model.loss(features, captions)[0] - PRINTED_LOSS[cell_type]) > 1e-3
    for w in model.params.values():
        w -= 0.25
    assert abs(model.loss(features, captions)[0] - PRINTED_LOSS[cell_type]) < 1e-9


@CELLS
@pytest.mark.parametrize("kind", [np.int32, np.int64, np.uint16, np.int8])
def test_captions_of_any_integer_dtype(cell_type, kind):
    model, features, captions = notebook_model(cell_type, np.float64)
    loss, _ = model.loss(features, captions.astype(kind))
    assert abs(loss - PRINTED_LOSS[cell_type]) < 1e-10


@CELLS
def test_captions_that_are_not_contiguous(cell_type):
    model, features, captions = notebook_model(cell_type, np.float64)
    wide = np.full((20, 39), 2)
    wide[::2, 1::3] = captions
    backwards = captions[::-1, ::-1].copy()[::-1, ::-1]
    for view in (wide[::2, 1::3], np.asfortranarray(captions), backwards):
        loss, _ = model.loss(np.asfortranarray(features), view)
        assert abs(loss - PRINTED_LOSS[cell_type]) < 1e-10


@CELLS
def test_vocabulary_without_start_and_end(cell_type):
    model, *_ = notebook_model(cell_type, np.float64)
    assert model._null == 0 and model._start is None and model._end is None
    assert model.params["W_embed"].shape[0] == len(TINY_VOCABULARY) == 3
    assert model.idx_to_word == {0: "<NULL>", 2: "cat", 3: "dog"}


@CELLS
def test_gradients_of_two_losses_are_kept_apart(cell_type, rng):
    model, features, captions = notebook_model(cell_type, np.float64)
    # The weights of the notebooks saturate the cells; smaller ones give nonzero gradients.
    for k, w in model.params.items():
        model.params[k] = rng.standard_normal(w.shape) / 4
    _, grads = model.loss(features, captions)
    kept = {k: grad.copy() for k, grad in grads.items()}
    for _ in range(20):
        _, others = model.loss(rng.standard_normal(features.shape), rng.permuted(captions, axis=1))
    for k, grad in grads.items():
        np.testing.assert_array_equal(grad, kept[k])
        assert (grad != others[k]).any()
        for other in [*others.values(), *model.params.values()]:
            assert not np.may_share_memory(grad, other)
    for k, grad in grads.items():
        for j, other in grads.items():
            assert k == j or not np.may_share_memory(grad, other)


@CELLS
def test_inputs_are_left_alone(cell_type, rng):
    model = CaptioningRNN({"<NULL>": 0, "<START>": 1, "<END>": 2, "a": 3}, 5, 6, 7, cell_type)
    features = rng.standard_normal((4, 5)).astype(np.float32)
    captions = draw_captions(rng, 4) % 4
    arrays = [features, captions, *model.params.values()]
    kept = [a.copy() for a in arrays]
    for a in arrays:
        a.flags.writeable = False
    model.loss(features, captions)
    model.sample(features)
    for a, copy in zip(arrays, kept, strict=True):
        np.testing.assert_array_equal(a, copy)


def test_star_import_exports_what_the_notebooks_use():
    """The course's modules have no __all__, so `import *` exports every name, including np."""
    names = {}
    exec("from fastrnn.rnn_layers import *", names)
    assert names["np"] is np
    for op in OPS:
        assert callable(names[f"{op}_forward"]) and callable(names[f"{op}_backward"])
    assert callable(names["sigmoid"]) and callable(names["temporal_softmax_loss"])


# ---- A whole notebook ----------------------------------------------------------------------------

NOTEBOOK = """
import time, os, json
import numpy as np
import matplotlib.pyplot as plt
from cs231n.gradient_check import eval_numerical_gradient, eval_numerical_gradient_array
from cs231n.rnn_layers import *
from cs231n.captioning_solver import CaptioningSolver
from cs231n.classifiers.rnn import CaptioningRNN
from cs231n.coco_utils import load_coco_data, sample_coco_minibatch, decode_captions
from cs231n.image_utils import image_from_url

def rel_error(x, y):
    return np.max(np.abs(x - y) / (np.maximum(1e-8, np.abs(x) + np.abs(y))))

# In []
data = load_coco_data(pca_features=True)
for k, v in data.items():
    if type(v) == np.ndarray:
        print(k, type(v), v.shape, v.dtype)
    else:
        print(k, type(v), len(v))

# In []
captions, features, urls = sample_coco_minibatch(data, batch_size=3)
for i, (caption, url) in enumerate(zip(captions, urls)):
    plt.imshow(image_from_url(url))
    plt.axis('off')
    plt.title(decode_captions(caption, data['idx_to_word']))
    plt.show()

# In []
from cs231n.rnn_layers import rnn_step_forward, rnn_step_backward, lstm_step_forward
np.random.seed(231)
x, h = np.random.randn(4, 5), np.random.randn(4, 6)
Wx, Wh, b = np.random.randn(5, 6), np.random.randn(6, 6), np.random.randn(6)
out, cache = rnn_step_forward(x, h, Wx, Wh, b)
dnext_h = np.random.randn(*out.shape)
fWh = lambda Wh: rnn_step_forward(x, h, Wx, Wh, b)[0]
dWh_num = eval_numerical_gradient_array(fWh, Wh, dnext_h)
dx, dprev_h, dWx, dWh, db = rnn_step_backward(dnext_h, cache)
step_error = rel_error(dWh_num, dWh)

# In []
from cs231n.rnn_layers import temporal_softmax_loss
def check_loss(N, T, V, p):
    x = 0.001 * np.random.randn(N, T, V)
    y = np.random.randint(V, size=(N, T))
    mask = np.random.rand(N, T) <= p
    return temporal_softmax_loss(x, y, mask)[0]
check_losses = check_loss(100, 1, 10, 1.0), check_loss(100, 10, 10, 1.0), \\
    check_loss(5000, 10, 10, 0.1)

# In []
word_to_idx = {'<NULL>': 0, 'cat': 2, 'dog': 3}
V = len(word_to_idx)
model = CaptioningRNN(word_to_idx, input_dim=20, wordvec_dim=30, hidden_dim=40,
                      cell_type=CELL, dtype=np.float64)
for k, v in model.params.items():
    model.params[k] = np.linspace(-1.4, 1.3, num=v.size).reshape(*v.shape)
features = np.linspace(*FEATURE_RANGE, num=200).reshape(10, 20)
loss, grads = model.loss(features, (np.arange(130) % V).reshape(10, 13))
print('difference: ', abs(loss - EXPECTED_LOSS))

# In []
np.random.seed(231)
captions = np.random.randint(V, size=(2, 3))
features = np.random.randn(2, 4)
model = CaptioningRNN(word_to_idx, input_dim=4, wordvec_dim=5, hidden_dim=6,
                      cell_type='rnn', dtype=np.float64)
loss, grads = model.loss(features, captions)
model_errors = {}
for param_name in sorted(grads):
    f = lambda _: model.loss(features, captions)[0]
    param_grad_num = eval_numerical_gradient(f, model.params[param_name], verbose=False, h=1e-6)
    model_errors[param_name] = rel_error(param_grad_num, grads[param_name])
    print('%s relative error: %e' % (param_name, model_errors[param_name]))

# In []
np.random.seed(231)
small_data = load_coco_data(max_train=12)
small_model = CaptioningRNN(cell_type=CELL, word_to_idx=data['word_to_idx'],
    input_dim=data['train_features'].shape[1], hidden_dim=64, wordvec_dim=32, dtype=np.float32)
small_solver = CaptioningSolver(small_model, small_data, update_rule='adam', num_epochs=50,
    batch_size=6, optim_config={'learning_rate': 5e-3}, lr_decay=0.995,
    verbose=True, print_every=10)
small_solver.train()
plt.plot(small_solver.loss_history)
plt.show()
print('Final loss: ', small_solver.loss_history[-1])

# In []
for split in ['train', 'val']:
    minibatch = sample_coco_minibatch(small_data, split=split, batch_size=2)
    gt_captions, features, urls = minibatch
    gt_captions = decode_captions(gt_captions, data['idx_to_word'])
    sample_captions = small_model.sample(features)
    sample_captions = decode_captions(sample_captions, data['idx_to_word'])
    for gt_caption, sample_caption, url in zip(gt_captions, sample_captions, urls):
        img = image_from_url(url)
        if img is None: continue
        plt.imshow(img)
        plt.title('%s\\n%s\\nGT:%s' % (split, sample_caption, gt_caption))
        print('%s|%s|%s' % (split, sample_caption, gt_caption))
        plt.axis('off')
        plt.show()
plt.close('all')
"""


@CELLS
def test_notebook_with_one_name_replaced(cell_type, tmp_path, monkeypatch, capsys):
    write_layout(tmp_path / "cs231n" / "datasets" / "coco_captioning")
    monkeypatch.chdir(tmp_path)
    cells = {
        "CELL": cell_type,
        "EXPECTED_LOSS": PRINTED_LOSS[cell_type],
        "FEATURE_RANGE": FEATURE_RANGE[cell_type],
    }
    exec(compile(NOTEBOOK.replace("cs231n", "fastrnn"), "notebook", "exec"), cells)
    lines = capsys.readouterr().out.splitlines()

    assert lines[0].startswith("base dir  ")
    assert "train_captions <class 'numpy.ndarray'> (36, 9) int32" in lines
    assert "idx_to_word <class 'list'> 11" in lines
    assert cells["step_error"] < 1e-8
    short, long, masked = cells["check_losses"]
    assert 2.2 < short < 2.4 and 22 < long < 24 and 2.2 < masked < 2.4
    difference = next(line for line in lines if line.startswith("difference:  "))
    assert float(difference.split()[-1]) < 1e-10
    assert len(cells["model_errors"]) == 8 and max(cells["model_errors"].values()) < 1e-5
    progress = [line for line in lines if line.startswith("(Iteration")]
    assert [line.split(" loss")[0] for line in progress] == [
        f"(Iteration {t} / 100)" for t in range(1, 100, 10)
    ]
    final = next(line for line in lines if line.startswith("Final loss:  "))
    history = cells["small_solver"].loss_history
    assert len(history) == 100 and history[-1] < 0.2 * history[0]
    assert final.endswith(str(history[-1]))
    samples = [line.split("|") for line in lines if line.count("|") == 2]
    assert [split for split, *_ in samples] == ["train", "train", "val", "val"]
    assert all(said.split()[0] != "<START>" for _, said, _ in samples)
    assert all(given.split()[0] == "<START>" for *_, given in samples)
