"""CaptioningSolver: the loop itself, seeded histories, and overfitting real captions."""

from __future__ import annotations

import numpy as np
import pytest
from coco_layout import WORDS, draw_captions

from fastrnn import optim, reference
from fastrnn.captioning_solver import CaptioningSolver
from fastrnn.classifiers.rnn import CaptioningRNN
from fastrnn.coco_utils import load_coco_data

WORD_TO_IDX = {word: i for i, word in enumerate(WORDS)}


@pytest.fixture
def data(rng):
    """Fifty captions of twenty pictures, in memory."""
    return {
        "train_captions": draw_captions(rng, 50),
        "train_image_idxs": rng.integers(0, 20, 50).astype(np.int32),
        "train_features": rng.standard_normal((20, 16)).astype(np.float32),
        "train_urls": np.array([f"{i}.png" for i in range(20)]),
    }


class Recorder:
    """A fake model that counts calls; its gradients are ones."""

    def __init__(self):
        self.params = {"w": np.zeros(3), "v": np.zeros((2, 2))}
        self.seen = []

    def loss(self, features, captions):
        self.seen.append((features, captions))
        return float(len(self.seen)), {k: np.ones_like(w) for k, w in self.params.items()}


def test_attributes(data):
    model = Recorder()
    solver = CaptioningSolver(model, data)
    assert solver.model is model and solver.data is data
    assert solver.update_rule is optim.sgd
    settings = ("optim_config", "lr_decay", "batch_size", "num_epochs", "print_every", "verbose")
    assert [getattr(solver, name) for name in settings] == [{}, 1.0, 100, 10, 10, True]
    assert (solver.epoch, solver.best_val_acc, solver.best_params) == (0, 0, {})
    assert solver.loss_history == solver.train_acc_history == solver.val_acc_history == []
    assert solver.optim_configs == {"w": {}, "v": {}}
    assert solver.check_accuracy(None, None, num_samples=3, batch_size=2) == 0.0


def test_every_parameter_has_its_own_configuration(data):
    config = {"learning_rate": 0.5}
    solver = CaptioningSolver(Recorder(), data, optim_config=config, update_rule="adam")
    solver._step()
    assert config == {"learning_rate": 0.5}
    assert solver.optim_configs["w"] is not solver.optim_configs["v"]
    assert solver.optim_configs["w"]["m"].shape == (3,)


def test_train_counts_prints_and_decays(data, capsys):
    model = Recorder()
    solver = CaptioningSolver(
        model,
        data,
        batch_size=20,  # 50 // 20 = 2 iterations an epoch
        num_epochs=3,
        print_every=4,
        lr_decay=0.5,
        optim_config={"learning_rate": 1.0},
    )
    assert solver.train() is None
    assert capsys.readouterr().out == (
        "(Iteration 1 / 6) loss: 1.000000\n(Iteration 5 / 6) loss: 5.000000\n"
    )
    assert solver.loss_history == [1, 2, 3, 4, 5, 6]
    assert solver.epoch == 3
    assert [c["learning_rate"] for c in solver.optim_configs.values()] == [0.125, 0.125]
    # Two steps at each of 1, 1/2 and 1/4 against a gradient of one.
    np.testing.assert_array_equal(model.params["w"], np.full(3, -3.5))
    assert solver.best_params == {} and solver.train_acc_history == solver.val_acc_history == []


def test_at_least_one_iteration_an_epoch(data, capsys):
    solver = CaptioningSolver(Recorder(), data, batch_size=1000, num_epochs=2, verbose=False)
    solver.train()
    assert len(solver.loss_history) == solver.epoch == 2
    assert capsys.readouterr().out == ""


def test_batches_are_the_courses_draws(data):
    model = Recorder()
    solver = CaptioningSolver(model, data, batch_size=25, num_epochs=2, verbose=False)
    np.random.seed(5)
    solver.train()
    after = np.random.rand()
    np.random.seed(5)
    assert len(model.seen) == 4
    for features, captions in model.seen:
        mask = np.random.choice(50, 25)
        np.testing.assert_array_equal(captions, data["train_captions"][mask])
        idxs = data["train_image_idxs"][mask]
        np.testing.assert_array_equal(features, data["train_features"][idxs])
    assert np.random.rand() == after


def test_result_of_the_rule_is_stored_back(data, monkeypatch):
    def halve(w, dw, config):
        return w / 2 + dw, {"n": config.get("n", 0) + 1}

    monkeypatch.setattr(optim, "halve", halve, raising=False)
    solver = CaptioningSolver(Recorder(), data, update_rule="halve")
    for _ in range(3):
        solver._step()
    np.testing.assert_array_equal(solver.model.params["w"], np.full(3, 1.75))
    assert solver.optim_configs["v"] == {"n": 3}


def test_refuses(data):
    with pytest.raises(ValueError, match=r'^Unrecognized arguments "a", "b"$'):
        CaptioningSolver(Recorder(), data, a=1, batch_size=5, b=2)
    for rule in ("adagrad", "np"):
        with pytest.raises(ValueError, match=f'^Invalid update_rule "{rule}"$'):
            CaptioningSolver(Recorder(), data, update_rule=rule)
    for name in ("batch_size", "print_every"):
        with pytest.raises(ValueError, match=f"{name}.*0"):
            CaptioningSolver(Recorder(), data, **{name: 0})


LEARNING_RATES = {"sgd": 1e-3, "sgd_momentum": 1e-3, "rmsprop": 5e-3, "adam": 5e-3}


def history(model_class, solver_class, data, cell_type, dtype, update_rule="adam"):
    np.random.seed(231)
    model = model_class(
        WORD_TO_IDX, input_dim=16, wordvec_dim=24, hidden_dim=40, cell_type=cell_type, dtype=dtype
    )
    solver = solver_class(
        model,
        data,
        update_rule=update_rule,
        num_epochs=25,
        batch_size=25,
        optim_config={"learning_rate": LEARNING_RATES[update_rule]},
        lr_decay=0.95,
        verbose=False,
    )
    solver.train()
    return np.array(solver.loss_history, dtype=np.float64), model


@pytest.mark.parametrize("update_rule", LEARNING_RATES)
@pytest.mark.parametrize("cell_type", ["rnn", "lstm"])
def test_float64_history_is_the_references(data, cell_type, update_rule):
    run = (data, cell_type, np.float64, update_rule)
    got, model = history(CaptioningRNN, CaptioningSolver, *run)
    expected, twin = history(reference.CaptioningRNN, reference.CaptioningSolver, *run)
    assert len(got) == 50 and expected[-10:].mean() < 0.97 * expected[:10].mean()
    np.testing.assert_allclose(got, expected, rtol=1e-9)
    for name, w in model.params.items():
        np.testing.assert_allclose(w, twin.params[name], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("cell_type", "bands"),
    [("rnn", {0: 1e-6, 20: 5e-5, 49: 5e-4}), ("lstm", {0: 1e-6, 30: 1e-4, 49: 1e-3})],
)
def test_float32_history_stays_in_the_courses_bands(data, cell_type, bands):
    """The range of ten people's seeded runs; a drop-in must stay inside it."""
    got, model = history(CaptioningRNN, CaptioningSolver, data, cell_type, np.float32)
    expected, _ = history(
        reference.CaptioningRNN, reference.CaptioningSolver, data, cell_type, np.float64
    )
    assert all(w.dtype == np.float32 for w in model.params.values())
    off = np.abs(got - expected) / expected
    first = 0
    for last, band in bands.items():
        assert off[first : last + 1].max() <= band, (first, last, off[first : last + 1].max())
        first = last + 1


@pytest.mark.parametrize(("cell_type", "limit"), [("rnn", 0.1), ("lstm", 0.5)])
def test_overfits_fifty_real_captions(shared_data, cell_type, limit):
    """The notebooks' overfitting cells, on Flickr8k.

    Both cells decay the learning rate by 0.995 here. On COCO the notebook decays the RNN's by
    0.95; with this vocabulary, 2.5 times as large, that stops the learning early (at 0.26).
    """
    np.random.seed(231)
    small_data = load_coco_data(shared_data / "flickr8k", max_train=50)
    model = CaptioningRNN(
        cell_type=cell_type,
        word_to_idx=small_data["word_to_idx"],
        input_dim=small_data["train_features"].shape[1],
        hidden_dim=512,
        wordvec_dim=256,
    )
    solver = CaptioningSolver(
        model,
        small_data,
        update_rule="adam",
        num_epochs=50,
        batch_size=25,
        optim_config={"learning_rate": 5e-3},
        lr_decay=0.995,
        verbose=False,
    )
    solver.train()
    assert len(solver.loss_history) == 100
    assert solver.loss_history[0] > 50
    assert solver.loss_history[-1] < limit
