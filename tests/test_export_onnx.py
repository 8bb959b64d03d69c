"""Models in ONNX: the same words and log-probabilities in ONNX Runtime."""

from __future__ import annotations

import json

import numpy as np
import pytest
from coco_layout import draw_captions
from export_models import CELLS, DTYPES, TOLERANCE, WORD_TO_IDX, D, H, V, W, small_model

from fastrnn import reference
from fastrnn.export import save_onnx, to_onnx


@pytest.fixture
def onnx():
    return pytest.importorskip("onnx")


@pytest.fixture
def ort():
    pytest.importorskip("onnx")
    return pytest.importorskip("onnxruntime")


def twin_of(model):
    """Return the NumPy twin of a model, with the same parameters."""
    state = np.random.get_state()
    twin = reference.CaptioningRNN(WORD_TO_IDX, D, W, H, model.cell_type)
    np.random.set_state(state)
    twin.params = model.params
    return twin


def sessions_of(ort, graphs):
    return {
        name: ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
        for name, proto in graphs.items()
    }


def run_steps(sessions, features, words):
    """Run the step along words (N, T), or along its own best ones from <START> if T is given.

    Returns the words that went in and log_probs (N, T, V).
    """
    (h,) = sessions["project"].run(["h"], {"features": features})
    states = [i.name for i in sessions["step"].get_inputs()][1:]
    state = {name: h if name == "h" else np.zeros_like(h) for name in states}
    greedy = isinstance(words, int)
    word = np.full(len(features), WORD_TO_IDX["<START>"], dtype=np.int64)
    went_in, log_probs = [], []
    for t in range(words if greedy else words.shape[1]):
        if not greedy:
            word = words[:, t].astype(np.int64)
        out = ["log_probs", *(f"next_{name}" for name in states)]
        found, *new = sessions["step"].run(out, {"word": word, **state})
        state = dict(zip(states, new, strict=True))
        went_in.append(word)
        log_probs.append(found)
        word = found.argmax(axis=1)
    return np.stack(went_in, axis=1), np.stack(log_probs, axis=1)


@CELLS
@DTYPES
@pytest.mark.parametrize("rows", [1, 40])
def test_onnx_generates_the_same_words(ort, cell_type, dtype, rows, rng):
    model = small_model(cell_type, dtype)
    features = rng.standard_normal((rows, D)).astype(dtype)
    _, log_probs = run_steps(sessions_of(ort, to_onnx(model)), features, 12)
    ids = log_probs.argmax(axis=2)
    np.testing.assert_array_equal(ids, twin_of(model).sample(features, 12))
    np.testing.assert_array_equal(ids, model.sample(features, 12))
    if rows > 1:
        assert len(np.unique(ids, axis=0)) > 3  # the captions depend on the features
    assert log_probs.dtype == dtype


@CELLS
@DTYPES
def test_onnx_log_probs_are_those_of_the_loss(ort, cell_type, dtype, rng):
    model = small_model(cell_type, dtype)
    features = rng.standard_normal((30, D)).astype(dtype)
    captions = draw_captions(rng, 30)
    _, log_probs = run_steps(sessions_of(ort, to_onnx(model)), features, captions[:, :-1])
    np.testing.assert_allclose(np.exp(log_probs).sum(axis=2), 1, rtol=10 * TOLERANCE[dtype])
    of_words = np.take_along_axis(log_probs, captions[:, 1:, None].astype(int), axis=2)[..., 0]
    loss = -of_words[captions[:, 1:] != 0].sum(dtype=np.float64) / 30
    expected, _ = twin_of(model).loss(features, captions)
    np.testing.assert_allclose(loss, expected, rtol=TOLERANCE[dtype])


def test_onnx_ids_from_the_end_and_beyond(ort):
    model = small_model("lstm")
    session = sessions_of(ort, to_onnx(model))["step"]
    state = {"h": np.full((2, H), 0.5), "c": np.full((2, H), 0.25)}
    last, again = (
        session.run(None, {"word": np.array(word), **state}) for word in ([V - 1, 3], [-1, 3])
    )
    for a, b in zip(last, again, strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(Exception, match="out of data bounds"):
        session.run(None, {"word": np.array([V, 3]), **state})


@CELLS
def test_onnx_interface_and_metadata(onnx, cell_type):
    model = small_model(cell_type, np.float32)
    model.word_to_idx = {**WORD_TO_IDX, "été": np.int32(V)}
    graphs = to_onnx(model)
    assert list(graphs) == ["project", "step"]
    for proto in graphs.values():
        onnx.checker.check_model(proto, full_check=True)
        about = {entry.key: entry.value for entry in proto.metadata_props}
        assert about["cell_type"] == cell_type
        assert json.loads(about["word_to_idx"]) == model.word_to_idx

    def shapes(values):
        return {
            v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]
            for v in values
        }

    states = ["h", "c"][: 2 if cell_type == "lstm" else 1]
    step, project = graphs["step"].graph, graphs["project"].graph
    assert shapes(project.input) == {"features": ["N", D]}
    assert shapes(project.output) == {"h": ["N", H]}
    assert shapes(step.input) == {"word": ["N"]} | {name: ["N", H] for name in states}
    assert shapes(step.output) == {"log_probs": ["N", V]} | {
        f"next_{name}": ["N", H] for name in states
    }


def test_onnx_accepts_weights_in_fortran_order(ort, rng):
    model = small_model("lstm")
    features = rng.standard_normal((5, D))
    expected = run_steps(sessions_of(ort, to_onnx(model)), features, 4)[1]
    model.params = {name: np.asfortranarray(w) for name, w in model.params.items()}
    found = run_steps(sessions_of(ort, to_onnx(model)), features, 4)[1]
    np.testing.assert_array_equal(found, expected)


def test_onnx_files(onnx, tmp_path):
    model = small_model("lstm", np.float32)
    for _ in range(2):  # the second time over the files of the first
        save_onnx(tmp_path / "new" / "folder", model)
        graphs = to_onnx(model)
        found = {p.name: onnx.load(p) for p in (tmp_path / "new" / "folder").iterdir()}
        assert found == {f"{name}.onnx": proto for name, proto in graphs.items()}
        model.params["b"] += 1
