"""A model written and read back, and files that are no model."""

from __future__ import annotations

import numpy as np
import pytest

from fastrnn.checkpoint import load_model, save_model
from fastrnn.classifiers.rnn import CaptioningRNN
from fastrnn.files import write_sealed

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
    with pytest.raises(ValueError, match="holds no model"):
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
    with pytest.raises(ValueError, match="holds no model"):
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
