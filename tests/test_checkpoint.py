"""A model and a checkpoint written and read back, and files that are neither."""

from __future__ import annotations

import numpy as np
import pytest

from fastrnn.checkpoint import (
    Checkpoint,
    checkpoint_path,
    checkpoint_steps,
    load_model,
    read_checkpoint,
    remove_checkpoints,
    save_model,
)
from fastrnn.classifiers.rnn import CaptioningRNN
from fastrnn.files import read_sealed, write_sealed

WORDS = {"<NULL>": 0, "<START>": 1, "<END>": 2, "été": 3, "dog": 7}


@pytest.mark.parametrize("cell", ["rnn", "lstm"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_round_trip(tmp_path, cell, dtype):
    model = CaptioningRNN(WORDS, 5, 4, 3, cell, dtype)
    save_model(tmp_path / "model.npz", model)
    state = np.random.get_state()[1].copy()
    for path in (tmp_path / "model.npz", tmp_path):
        again = load_model(path)
        assert again.word_to_idx == WORDS
        assert again.cell_type == cell
        assert again.params.keys() == model.params.keys()
        for name, w in model.params.items():
            assert again.params[name].dtype == dtype
            np.testing.assert_array_equal(again.params[name], w)
    np.testing.assert_array_equal(np.random.get_state()[1], state)
    assert [p.name for p in tmp_path.iterdir()] == ["model.npz"]
    with np.load(tmp_path / "model.npz", allow_pickle=False) as file:
        assert all(file[name].dtype.kind in "fiU" for name in file.files)


def test_missing(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        load_model(tmp_path)
    assert caught.value.filename == str(tmp_path / "model.npz")


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.99])
def test_cut_short(tmp_path, keep):
    path = tmp_path / "model.npz"
    save_model(path, CaptioningRNN(WORDS, 5, 4, 3, "lstm"))
    whole = path.read_bytes()
    path.write_bytes(whole[: keep if keep > 1 else int(len(whole) * keep)])
    with pytest.raises(ValueError, match=r"model\.npz: "):
        load_model(path)


def test_not_a_model(tmp_path):
    write_sealed(tmp_path / "model.npz", {"W_proj": np.ones((2, 2))})
    with pytest.raises(ValueError, match="is not a model"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"words": np.array(["<START>", "<END>", "a", "b", "c"])},
        {"words": np.array(["<NULL>"])},
        {"words": np.array("<NULL>")},
        {"W_embed": np.ones((5, 4), int)},
        {"cell_type": np.array("gru")},
    ],
)
def test_arrays_that_make_no_model(change):
    arrays = CaptioningRNN(WORDS, 5, 4, 3, "lstm").to_arrays() | change
    with pytest.raises(ValueError, match="is not a model"):
        CaptioningRNN.from_arrays(arrays)


def test_wrong_shape_is_named(tmp_path):
    model = CaptioningRNN(WORDS, 5, 4, 3, "lstm")
    model.params["Wh"] = np.ones((3, 11), np.float32)
    save_model(tmp_path / "model.npz", model)
    with pytest.raises(ValueError, match=r"Wh is float32 of shape \(3, 11\); .* \(3, 12\)"):
        load_model(tmp_path)


def test_format_of_another_time(tmp_path):
    save_model(tmp_path / "model.npz", CaptioningRNN(WORDS, 5, 4, 3, "lstm"))
    with np.load(tmp_path / "model.npz") as file:
        arrays = {name: file[name] for name in file.files if name != "checksum"}
    for others in (arrays, {}):  # whatever its arrays are then
        write_sealed(tmp_path / "model.npz", {**others, "format": np.array(99)})
        with pytest.raises(ValueError, match="format is 99"):
            load_model(tmp_path)


def test_failure_leaves_the_old_model(tmp_path):
    model = CaptioningRNN(WORDS, 5, 4, 3, "lstm")
    save_model(tmp_path / "model.npz", model)
    whole = (tmp_path / "model.npz").read_bytes()
    model.params["Wh"] = np.array([object()])
    with pytest.raises(TypeError):
        save_model(tmp_path / "model.npz", model)
    assert (tmp_path / "model.npz").read_bytes() == whole
    assert [p.name for p in tmp_path.iterdir()] == ["model.npz"]


def drawn_checkpoint(rng: np.random.Generator, averaged: bool) -> Checkpoint:
    """A checkpoint as in training: all but the feature projection equals the model."""
    model = CaptioningRNN(WORDS, 5, 4, 3, "lstm")

    def like(shared: dict[str, np.ndarray] | None = None) -> dict[str, np.ndarray]:
        return {
            name: w.copy() if shared and name not in ("W_proj", "b_proj")
            else rng.standard_normal(w.shape).astype(w.dtype)
            for name, w in model.params.items()
        }  # fmt: skip

    derived = like(model.params)
    weights, average = (like(), derived) if averaged else (derived, None)
    moments = {name: {"m": rng.random(w.shape), "v": rng.random(w.shape)}
               for name, w in model.params.items()}  # fmt: skip
    about = {
        "step": 7, "history": [{"loss": 0.1}], "sums": [0.5, 2, 0.5, 2], "seconds": 1.5,
        "best": None, "epochs_without_gain": 0, "config": {}, "data": {},
    }  # fmt: skip
    return Checkpoint(model, weights, average, moments, about)


@pytest.mark.parametrize("averaged", [False, True])
def test_checkpoint_round_trip(tmp_path, rng, averaged):
    path = tmp_path / "step.npz"
    written = drawn_checkpoint(rng, averaged)
    write_sealed(path, written.to_arrays())
    again = read_checkpoint(path)
    pairs = [(again.model.params, written.model.params), (again.weights, written.weights)]
    if averaged:
        pairs.append((again.average, written.average))
    else:
        assert again.average is None
    for name, moments in written.moments.items():
        pairs.append((again.moments[name], moments))
    for found, expected in pairs:
        assert found.keys() == expected.keys()
        for name, w in expected.items():
            np.testing.assert_array_equal(found[name], w, strict=True)
    assert again.about == {"format": 1, **written.about}
    # What is trained is changed in place, so that it lies in no memory of the others.
    sets = [again.model.params, again.weights, *([again.average] if averaged else [])]
    for number, one in enumerate(sets):
        for other in sets[:number]:
            assert not any(np.shares_memory(one[name], other[name]) for name in one)
    # A checkpoint can be loaded as a model, too.
    np.testing.assert_array_equal(load_model(path).params["W_proj"], written.model.params["W_proj"])


def test_what_is_no_checkpoint(tmp_path, rng):
    path = tmp_path / "step.npz"
    save_model(path, CaptioningRNN(WORDS, 5, 4, 3, "lstm"))
    with pytest.raises(ValueError, match=r"step\.npz: contains a model without its training state"):
        read_checkpoint(path)
    checkpoint = drawn_checkpoint(rng, averaged=False)
    write_sealed(path, checkpoint.to_arrays())
    arrays = read_sealed(path)
    del arrays["training/m/Wh"]
    write_sealed(path, arrays)
    with pytest.raises(ValueError, match=r"step\.npz: has no 'training/m/Wh'; it is not"):
        read_checkpoint(path)
    checkpoint.about["format"] = 99
    write_sealed(path, checkpoint.to_arrays())
    with pytest.raises(ValueError, match=r"step\.npz: format is 99; this fastrnn reads format 1"):
        read_checkpoint(path)
    with pytest.raises(FileNotFoundError):
        read_checkpoint(tmp_path / "none.npz")


def test_checkpoints_of_a_run(tmp_path):
    assert checkpoint_steps(tmp_path) == []
    (tmp_path / "checkpoints").mkdir()
    for step in (3, 123456789, 20):
        checkpoint_path(tmp_path, step).write_bytes(b"")
    others = [
        tmp_path / "checkpoints" / name for name in ("step-5.npz", "best.npz", "step-20.npz~")
    ]
    for other in others:
        other.write_bytes(b"")
    assert checkpoint_steps(tmp_path) == [3, 20, 123456789]
    remove_checkpoints(tmp_path, keep=[20, 4])
    assert checkpoint_steps(tmp_path) == [20]
    assert all(other.exists() for other in others)
