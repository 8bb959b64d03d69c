"""The fused training step and decoding against the layers one after the other, in NumPy."""

from __future__ import annotations

import numpy as np
import pytest

import fastrnn
from fastrnn import reference
from fastrnn.captioning_solver import CaptioningSolver
from fastrnn.classifiers.rnn import CaptioningRNN, CaptioningWorkspace

SIZES = {  # N, T, V, D, W, H
    "small": (5, 7, 11, 6, 4, 5),
    "ragged": (100, 16, 300, 64, 48, 72),
    "columns": (19, 6, 60, 24, 40, 256),  # so few rows that threads share out columns
    "odd": (33, 9, 40, 7, 20, 33),
    "one": (1, 3, 5, 2, 2, 3),
    "empty batch": (0, 3, 5, 2, 2, 3),
    "no steps": (4, 0, 5, 2, 2, 3),
}


@pytest.fixture(autouse=True)
def threads_afterwards():
    before = fastrnn.get_num_threads()
    yield
    fastrnn.set_num_threads(before)


def vocabulary(V):
    return {"<NULL>": 0, "<START>": 1, "<END>": 2, **{f"w{i}": i for i in range(3, V)}}


def pair(size, cell_type, dtype, rng):
    """The same model twice, compiled and in NumPy, with a batch that has NULLs everywhere."""
    N, T, V, D, W, H = SIZES[size]
    models = []
    for make in (CaptioningRNN, reference.CaptioningRNN):
        np.random.seed(1)
        models.append(make(vocabulary(V), D, W, H, cell_type, dtype))
    captions = rng.integers(0, V, (N, T + 1))
    for row in captions:
        row[rng.integers(0, T + 2) :] = 0
    captions[rng.random(captions.shape) < 0.05] = 0
    return *models, rng.standard_normal((N, D)).astype(dtype), captions


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("cell_type", ["rnn", "lstm"])
@pytest.mark.parametrize("size", SIZES)
def test_loss_is_that_of_the_layers(size, cell_type, dtype, rng):
    model, twin, features, captions = pair(size, cell_type, dtype, rng)
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
def test_greedy_captions_are_those_of_the_layers(size, cell_type, stop_at_end, rng):
    model, twin, features, _ = pair(size, cell_type, np.float64, rng)
    for name in model.params:  # larger weights: scores that are not close to one another
        model.params[name] = twin.params[name] = 4 * twin.params[name]
    wanted = twin.sample(features, 12, stop_at_end=stop_at_end)
    for threads in (1, 2, 3):
        fastrnn.set_num_threads(threads)
        found = model.sample(features, 12, stop_at_end=stop_at_end)
        assert found.dtype == np.int32
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("cell_type", ["rnn", "lstm"])
def test_a_workspace_changes_nothing(cell_type, rng):
    model, _, features, captions = pair("ragged", cell_type, np.float32, rng)
    workspace = CaptioningWorkspace()
    for rows in (100, 7, 60, 100):  # smaller and larger batches in what the first one needed
        loss, grads = model.loss(features[:rows], captions[:rows], workspace=workspace)
        wanted_loss, wanted = model.loss(features[:rows], captions[:rows])
        assert loss == wanted_loss
        assert all((grads[name] == wanted[name]).all() for name in wanted)


def test_gradients_of_a_workspace_are_written_over_and_others_are_not(rng):
    model, _, features, captions = pair("small", "lstm", np.float64, rng)
    workspace = CaptioningWorkspace()
    _, kept = model.loss(features, captions)
    before = kept["Wx"].copy()
    _, first = model.loss(features, captions, workspace=workspace)
    _, second = model.loss(2 * features, captions, workspace=workspace)
    assert first["Wx"] is second["Wx"]
    assert (kept["Wx"] == before).all()


def test_a_workspace_takes_another_dtype_and_shape(rng):
    model, _, features, captions = pair("small", "lstm", np.float32, rng)
    workspace = CaptioningWorkspace()
    model.loss(features, captions, workspace=workspace)
    model.params = {name: w.astype(np.float64) for name, w in model.params.items()}
    loss, grads = model.loss(features, captions, workspace=workspace)
    wanted_loss, wanted = model.loss(features, captions)
    assert loss == wanted_loss
    assert all(grads[name].dtype == np.float64 for name in grads)
    assert all((grads[name] == wanted[name]).all() for name in wanted)


def test_the_solver_allocates_nothing_in_its_steady_state(rng):
    model, _, features, captions = pair("ragged", "lstm", np.float32, rng)
    captions[:, 1:] = 3  # every batch alike
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


def test_phases_are_timed(rng):
    from fastrnn._core import captioner

    model, _, features, captions = pair("ragged", "lstm", np.float32, rng)
    captioner.profile()
    model.loss(features, captions)
    phases = captioner.profile()
    assert len(phases) == 8
    assert all(seconds > 0 for seconds in phases.values())
    assert not any(captioner.profile().values())


@pytest.mark.parametrize("name", ["W_embed", "W_proj", "b_proj", "Wx", "Wh", "b", "W_vocab"])
def test_a_parameter_that_does_not_fit_is_named(name, rng):
    model, _, features, captions = pair("small", "lstm", np.float64, rng)
    model.params[name] = np.zeros([size + 1 for size in model.params[name].shape])
    with pytest.raises(ValueError, match=r"shape \("):
        model.loss(features, captions)
