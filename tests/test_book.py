"""The book's namespace: what it shares with the course and what differs."""

from __future__ import annotations

import matplotlib
import numpy as np
import pytest
from coco_layout import WORDS, draw_captions, write_layout

from fastrnn import book, rnn_layers
from fastrnn.captioning_solver import CaptioningSolver
from fastrnn.classifiers.rnn import CaptioningRNN as CourseRNN

matplotlib.use("Agg")

WORD_TO_IDX = {word: i for i, word in enumerate(WORDS)}
CELLS = pytest.mark.parametrize("cell_type", ["rnn", "lstm"])


@CELLS
def test_model_is_float64_and_draws_as_the_course(cell_type):
    np.random.seed(4)
    model = book.CaptioningRNN(WORD_TO_IDX, input_dim=5, hidden_dim=6, cell_type=cell_type)
    np.random.seed(4)
    course = CourseRNN(
        WORD_TO_IDX, input_dim=5, hidden_dim=6, cell_type=cell_type, dtype=np.float64
    )
    assert list(model.params) == list(course.params)
    for name, w in model.params.items():
        assert w.dtype == np.float64
        np.testing.assert_array_equal(w, course.params[name])
    with pytest.raises(TypeError):
        book.CaptioningRNN(WORD_TO_IDX, dtype=np.float32)


@CELLS
def test_sample_is_the_courses_shifted_by_start(cell_type, rng):
    np.random.seed(4)
    model = book.CaptioningRNN(WORD_TO_IDX, 5, 6, 7, cell_type)
    for w in model.params.values():
        w += rng.standard_normal(w.shape)
    features = rng.standard_normal((8, 5))
    captions = model.sample(features, max_length=10)
    assert captions.shape == (8, 10) and captions.dtype == np.int32
    assert (captions[:, 0] == WORD_TO_IDX["<START>"]).all()
    np.testing.assert_array_equal(captions[:, 1:], CourseRNN.sample(model, features, 9))
    assert model.sample(features).shape == (8, 30)
    assert model.sample(features, 1).tolist() == [[1]] * 8
    assert model.sample(features, 0).shape == (8, 0)
    with pytest.raises(ValueError, match="<START>"):
        book.CaptioningRNN({"<NULL>": 0}, 5).sample(features, 0)


def by_hand(rule, w, grads, lr):
    """Apply one of the book's update rules to a single number, one step per gradient."""
    m = v = 0.0
    for t, g in enumerate(grads, start=1):
        if rule == "sgd":
            w = w - lr * g
        elif rule == "sgd_momentum":
            v = 0.9 * v - lr * g
            w = w + v
        elif rule == "rmsprop":
            v = 0.99 * v + 0.01 * g * g
            w = w - lr * g / (v + 1e-8) ** 0.5
        else:
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
            w = w - lr * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)) ** 0.5 + 1e-8)
    return w


@pytest.mark.parametrize("rule", ["sgd", "sgd_momentum", "rmsprop", "adam"])
@pytest.mark.parametrize("scale", [1.0, 1e-7])  # 1e-7 shows where epsilon is added
def test_update_rules(rule, scale):
    update = getattr(book.updater, rule)
    assert update is getattr(book, rule)
    w, config = np.array([1.0, -2.0]), {"learning_rate": 0.1}
    first = w
    grads = [scale * np.array([0.5, 3.0]), scale * np.array([-1.0, 2.0]), scale * np.ones(2)]
    for g in grads:
        w, returned = update(w, g, config)
        assert returned is config
    for k, start in enumerate((1.0, -2.0)):
        expected = by_hand(rule, start, [g[k] for g in grads], 0.1)
        assert w[k] == pytest.approx(expected, rel=1e-13, abs=1e-16)
    if rule == "sgd":
        assert w is first
    else:
        np.testing.assert_array_equal(first, [1.0, -2.0])


@pytest.mark.parametrize(
    ("rule", "defaults"),
    [
        ("sgd", {"learning_rate": 1e-2}),
        ("sgd_momentum", {"learning_rate": 1e-2, "momentum": 0.9}),
        ("rmsprop", {"learning_rate": 1e-2, "decay_rate": 0.99, "epsilon": 1e-8}),
        ("adam", {"learning_rate": 1e-3, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8, "t": 1}),
    ],
)
def test_update_defaults(rule, defaults):
    _, config = getattr(book.updater, rule)(np.ones(2), np.ones(2))
    assert {k: config[k] for k in defaults} == defaults


def small_data(rng, num):
    return {
        "train_captions": draw_captions(rng, num),
        "train_image_idxs": rng.integers(0, 9, num),
        "train_features": rng.standard_normal((9, 5)).astype(np.float32),
        "train_urls": np.array([f"{i}.png" for i in range(9)]),
    }


def test_trainer_uses_true_division(rng):
    def trained(num, batch_size, num_epochs):
        model = book.CaptioningRNN(WORD_TO_IDX, 5, 6, 7)
        trainer = book.CaptioningTrainer(
            model,
            small_data(rng, num),
            batch_size=batch_size,
            num_epochs=num_epochs,
            updater_config={"learning_rate": 1.0e-3},
            lr_decay=0.5,
            verbose=False,
        )
        trainer.train()
        rates = {config["learning_rate"] for config in trainer.updater_configs.values()}
        assert len(rates) == 1
        return len(trainer.loss_history), rates.pop() / 1e-3

    assert trained(40, 20, 3) == (6, pytest.approx(0.125))  # 2 iterations per epoch, 3 decays
    assert trained(47, 20, 3) == (7, 1.0)  # 2.35 per epoch: int(7.05), no decay
    assert trained(30, 20, 4) == (6, pytest.approx(0.25))  # 1.5 per epoch: decays after 3 and 6
    assert trained(10, 20, 2) == (2, pytest.approx(0.25))  # at least 1 per epoch


def test_trainer_is_the_solver_with_the_books_words(rng):
    model, data = book.CaptioningRNN(WORD_TO_IDX, 5, 6, 7), small_data(rng, 20)
    config = {"learning_rate": 5e-3}
    trainer = book.CaptioningTrainer(model, data, update_rule="adam", updater_config=config)
    assert isinstance(trainer, CaptioningSolver)
    assert trainer.update_rule is book.adam
    assert trainer.updater_config is config
    assert set(trainer.updater_configs) == set(model.params)
    assert trainer.updater_configs["Wx"] == config and trainer.updater_configs["Wx"] is not config
    with pytest.raises(ValueError, match="updater_config"):
        book.CaptioningTrainer(model, data, optim_config=config)
    with pytest.raises(ValueError, match='Unrecognized arguments "colour"'):
        book.CaptioningTrainer(model, data, colour=1)
    with pytest.raises(ValueError, match='Invalid update_rule "adagrad"'):
        book.CaptioningTrainer(model, data, update_rule="adagrad")


def test_layers_and_loss_are_those_of_the_course():
    for name in book.__all__:
        if name.endswith(("_forward", "_backward")) and hasattr(rnn_layers, name):
            assert getattr(book, name) is getattr(rnn_layers, name)
    assert not any(name.startswith("_") for name in book.__all__)
    assert "loss" not in vars(book.CaptioningRNN) and "_step" not in vars(book.CaptioningTrainer)


CHAPTER = """
import time, os, json
import numpy as np
import matplotlib.pyplot as plt
from classifiers.chapter7 import *
from utils import *

def rel_error(x, y):
    return np.max(np.abs(x - y) / (np.maximum(1e-8, np.abs(x) + np.abs(y))))

data = load_coco_data(pca_features=True)
for k, v in data.items():
    if type(v) == np.ndarray:
        print(k, type(v), v.shape, v.dtype)

N, D, H = 3, 10, 4
x = np.linspace(-0.4, 0.7, num=N*D).reshape(N, D)
prev_h = np.linspace(-0.2, 0.5, num=N*H).reshape(N, H)
Wx = np.linspace(-0.1, 0.9, num=D*H).reshape(D, H)
Wh = np.linspace(-0.3, 0.7, num=H*H).reshape(H, H)
b = np.linspace(-0.2, 0.4, num=H)
next_h, _ = rnn_step_forward(x, prev_h, Wx, Wh, b)
expected_next_h = np.asarray([
    [-0.58172089, -0.50182032, -0.41232771, -0.31410098],
    [ 0.66854692, 0.79562378, 0.87755553, 0.92795967],
    [ 0.97934501, 0.99144213, 0.99646691, 0.99854353]])
step_error = rel_error(expected_next_h, next_h)

x = np.random.randn(2, 10, 3)
h0, Wx, Wh, b = (np.random.randn(2, 6), np.random.randn(3, 24), np.random.randn(6, 24),
                 np.random.randn(24))
out, cache = lstm_forward(x, h0, Wx, Wh, b)
dout = np.random.randn(*out.shape)
dx, dh0, dWx, dWh, db = lstm_backward(dout, cache)
fx = lambda x: lstm_forward(x, h0, Wx, Wh, b)[0]
dx_num = eval_numerical_gradient_array(fx, x, dout)
sequence_error = rel_error(dx_num, dx)

word_to_idx = {'<NULL>': 0, 'cat': 2, 'dog': 3}
model = CaptioningRNN(word_to_idx, input_dim=20, wordvec_dim=30, hidden_dim=40, cell_type=CELL)
for k, v in model.params.items():
    model.params[k] = np.linspace(-1.4, 1.3, num=v.size).reshape(*v.shape)
features = np.linspace(*FEATURE_RANGE, num=200).reshape(10, 20)
loss, grads = model.loss(features, (np.arange(130) % 3).reshape(10, 13))
print('误差: ', abs(loss - EXPECTED_LOSS))

np.random.seed(1)
small_data = load_coco_data(max_train=12)
small_model = CaptioningRNN(cell_type=CELL, word_to_idx=data['word_to_idx'],
    input_dim=data['train_features'].shape[1], hidden_dim=48, wordvec_dim=24)
small_trainer = CaptioningTrainer(small_model, small_data, update_rule='adam', num_epochs=50,
    batch_size=6, updater_config={'learning_rate': 5e-3}, lr_decay=0.995,
    verbose=True, print_every=10)
small_trainer.train()
plt.plot(small_trainer.loss_history)
plt.show()

for split in ['train', 'val']:
    gt_captions, features, urls = sample_coco_minibatch(small_data, split=split, batch_size=2)
    gt_captions = decode_captions(gt_captions, data['idx_to_word'])
    sample_captions = small_model.sample(features)
    sample_captions = decode_captions(sample_captions, data['idx_to_word'])
    for gt_caption, sample_caption, url in zip(gt_captions, sample_captions, urls):
        plt.imshow(image_from_url(url))
        print('%s|%s|%s' % (split, sample_caption, gt_caption))
        plt.title('%s\\n%s\\nGT:%s' % (split, sample_caption, gt_caption))
plt.close('all')
"""


@pytest.mark.parametrize(
    ("cell_type", "feature_range", "loss"),
    [("rnn", (-1.5, 0.3), 9.83235591003), ("lstm", (-0.5, 1.7), 9.82445935443)],
)
def test_chapter_with_its_imports_replaced(
    cell_type, feature_range, loss, tmp_path, monkeypatch, capsys
):
    write_layout(tmp_path / "datasets" / "coco_captioning")
    monkeypatch.chdir(tmp_path)
    source = CHAPTER.replace("classifiers.chapter7", "fastrnn.book").replace(
        "from utils import *", "from fastrnn.book import *"
    )
    cells = {"CELL": cell_type, "FEATURE_RANGE": feature_range, "EXPECTED_LOSS": loss}
    exec(compile(source, "chapter", "exec"), cells)
    lines = capsys.readouterr().out.splitlines()

    assert lines[0] == "train_captions <class 'numpy.ndarray'> (36, 9) int32"
    assert cells["step_error"] < 1e-8 and cells["sequence_error"] < 1e-7
    error = next(line for line in lines if line.startswith("误差:  "))
    assert float(error.split()[-1]) < 1e-10
    history = cells["small_trainer"].loss_history
    assert len(history) == 100 and history[-1] < 0.2 * history[0]
    assert sum(line.startswith("(Iteration") for line in lines) == 10
    samples = [line.split("|") for line in lines if line.count("|") == 2]
    assert len(samples) == 4
    assert all(said.split()[0] == given.split()[0] == "<START>" for _, said, given in samples)
