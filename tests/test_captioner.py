"""The fused training step and decoding against the layers in sequence, in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from equivalence import draw_pair

import fastrnn
from fastrnn.captioning_solver import CaptioningSolver
from fastrnn.classifiers.rnn import CaptioningWorkspace

SIZES = {
    "small": {"N": 5, "T": 7, "V": 11, "D": 6, "W": 4, "H": 5},
    "ragged": {"N": 100, "T": 16, "V": 300, "D": 64, "W": 48, "H": 72},
    # few enough rows for threads to divide the columns
    "columns": {"N": 19, "T": 6, "V": 60, "D": 24, "W": 40, "H": 256},
    "odd": {"N": 33, "T": 9, "V": 40, "D": 7, "W": 20, "H": 33},
    "one": {"N": 1, "T": 3, "V": 5, "D": 2, "W": 2, "H": 3},
    "empty batch": {"N": 0, "T": 3, "V": 5, "D": 2, "W": 2, "H": 3},
    "no steps": {"N": 4, "T": 0, "V": 5, "D": 2, "W": 2, "H": 3},
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("cell_type", ["rnn", "lstm"])
@pytest.mark.parametrize("size", SIZES)
def test_loss_is_that_of_the_layers(size, cell_type, dtype):
    model, twin, features, captions = draw_pair(SIZES[size], cell_type, dtype)
    tolerance = 1e-12 if dtype == np.float64 else 1e-5
    wanted_loss, wanted = twin.loss(features, captions)
    first = None
    for threads in (1, 2, 3):
        fastrnn.set_num_threads(threads)
        loss, grads = model.loss(features, captions)
        assert grads.keys() == wanted.keys()
        assert loss == pytest.approx(wanted_loss, rel=tolerance, abs=tolerance)
        for name, grad in grads.items():
            assert grad.dtype == wanted[name].dtype
            scale = np.abs(wanted[name]).max(initial=0)
            np.testing.assert_allclose(grad, wanted[name], rtol=0, atol=4 * tolerance * scale)
        first = first or grads
        assert all((grads[name] == first[name]).all() for name in grads), "bits depend on threads"


@pytest.mark.parametrize("cell_type", ["rnn", "lstm"])
@pytest.mark.parametrize("size", ["small", "ragged", "columns", "one", "empty batch"])
@pytest.mark.parametrize("stop_at_end", [False, True])
def test_greedy_captions_are_those_of_the_layers(size, cell_type, stop_at_end):
    model, twin, features, _ = draw_pair(SIZES[size], cell_type, np.float64)
    for name in model.params:  # larger weights, so that scores are not close to each other
        model.params[name] = twin.params[name] = 4 * twin.params[name]
    twin.params["b_vocab"][2] += 1  # in large batches, some captions end at each step
    wanted = twin.sample(features, 12, stop_at_end=stop_at_end)
    for threads in (1, 2, 3):
        fastrnn.set_num_threads(threads)
        found = model.sample(features, 12, stop_at_end=stop_at_end)
        assert found.dtype == np.int32
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("cell_type", ["rnn", "lstm"])
def test_a_workspace_changes_nothing(cell_type):
    model, _, features, captions = draw_pair(SIZES["ragged"], cell_type, np.float32)
    workspace = CaptioningWorkspace()
    for rows in (100, 7, 60, 100):  # in the memory of the first, largest batch
        loss, grads = model.loss(features[:rows], captions[:rows], workspace=workspace)
        wanted_loss, wanted = model.loss(features[:rows], captions[:rows])
        assert loss == wanted_loss
        assert all((grads[name] == wanted[name]).all() for name in wanted)


def test_gradients_of_a_workspace_are_written_over_and_others_are_not():
    model, _, features, captions = draw_pair(SIZES["small"], "lstm", np.float64)
    workspace = CaptioningWorkspace()
    _, kept = model.loss(features, captions)
    before = kept["Wx"].copy()
    _, first = model.loss(features, captions, workspace=workspace)
    _, second = model.loss(2 * features, captions, workspace=workspace)
    assert first["Wx"] is second["Wx"]
    assert (kept["Wx"] == before).all()


def test_a_workspace_takes_another_dtype_and_shape():
    model, _, features, captions = draw_pair(SIZES["small"], "lstm", np.float32)
    workspace = CaptioningWorkspace()
    model.loss(features, captions, workspace=workspace)
    model.params = {name: w.astype(np.float64) for name, w in model.params.items()}
    loss, grads = model.loss(features, captions, workspace=workspace)
    wanted_loss, wanted = model.loss(features, captions)
    assert loss == wanted_loss
    assert all(grads[name].dtype == np.float64 for name in grads)
    assert all((grads[name] == wanted[name]).all() for name in wanted)


def test_the_solver_allocates_nothing_in_its_steady_state():
    model, _, features, captions = draw_pair(SIZES["ragged"], "lstm", np.float32)
    captions[:, 1:] = 3  # so that all batches are alike
    data = {
        "train_captions": captions,
        "train_image_idxs": np.arange(100),
        "train_features": features,
        "train_urls": np.array(["url"] * 100),
    }
    solver = CaptioningSolver(model, data, update_rule="adam", batch_size=50, verbose=False)
    solver._step()
    states = {
        (name, key): id(state)
        for name, config in solver.optim_configs.items()
        for key, state in config.items()
        if key in "mv"
    }
    grads = {name: id(grad) for name, grad in solver._workspace.grads.items()}
    held = solver._workspace.nbytes
    for _ in range(5):
        solver._step()
    assert solver._workspace.nbytes == held
    assert {name: id(grad) for name, grad in solver._workspace.grads.items()} == grads
    for (name, key), state in states.items():
        assert id(solver.optim_configs[name][key]) == state


def test_phases_are_timed():
    from fastrnn._core import captioner

    model, _, features, captions = draw_pair(SIZES["ragged"], "lstm", np.float32)
    captioner.profile()
    model.loss(features, captions)
    phases = captioner.profile()
    assert len(phases) == 13
    assert all(seconds > 0 for seconds in phases.values())
    assert not any(captioner.profile().values())


@pytest.mark.parametrize("name", ["W_embed", "W_proj", "b_proj", "Wx", "Wh", "b", "W_vocab"])
def test_a_parameter_that_does_not_fit_is_named(name):
    model, _, features, captions = draw_pair(SIZES["small"], "lstm", np.float64)
    model.params[name] = np.zeros([size + 1 for size in model.params[name].shape])
    with pytest.raises(ValueError, match=r"shape \("):
        model.loss(features, captions)


def test_an_unknown_cell_is_named():
    from fastrnn._core import captioner

    model, _, features, captions = draw_pair(SIZES["small"], "lstm", np.float64)
    with pytest.raises(ValueError, match=r"^cell_type is 'gru'; expected one of rnn, lstm$"):
        captioner.word_log_probs(model.params, features, captions, 0, "gru")
