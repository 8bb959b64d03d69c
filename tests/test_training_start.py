"""The initial weights of a model."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from coco_layout import write_layout

from fastrnn._core import runtime
from fastrnn.classifiers.rnn import CaptioningRNN
from fastrnn.coco_utils import read_captioning_directory
from fastrnn.training import (
    start,
    start_model,
)


@pytest.fixture
def data(tmp_path: Path) -> dict:
    write_layout(tmp_path)
    return read_captioning_directory(tmp_path)


def test_start_model_knows_the_frequencies(data):
    model = start_model(data, "lstm", 8, 16)
    bias = model.params["b_vocab"].astype(np.float64)
    assert np.exp(bias).sum() == pytest.approx(1, rel=1e-5)
    ids, counts = np.unique(data["train_captions"][:, 1:], return_counts=True)
    said = ids != data["word_to_idx"]["<NULL>"]
    wanted = counts[said] / counts[said].sum()
    np.testing.assert_allclose(np.exp(bias)[ids[said]], wanted, rtol=0.02)
    assert (model.params["b"][16:32] == 1).all()
    assert (model.params["b"][:16] == 0).all()
    h0 = data["train_features"] @ model.params["W_proj"] + model.params["b_proj"]
    np.testing.assert_allclose(h0.mean(axis=0), 0, atol=1e-5)


def test_start_model_as_the_course_has_it(data):
    model = start_model(data, "lstm", 8, 16, bias_start="zero", forget_bias=0.0, embed_scale=0.01)
    np.random.seed(0)
    plain = CaptioningRNN(data["word_to_idx"], data["train_features"].shape[1], 8, 16, "lstm")
    for name, w in plain.params.items():
        if name not in ("W_proj", "b_proj"):
            np.testing.assert_allclose(model.params[name], w, rtol=1e-6)
    for bad in ({"bias_start": "uniform"}, {"forget_bias": math.nan}, {"embed_scale": 0.0}):
        with pytest.raises(ValueError, match=f"^{next(iter(bad))} is "):
            start_model(data, "lstm", 8, 16, **bad)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("shape", [(7, 5), (3000, 200), (1200, 512)])
def test_the_scale_in_blocks_is_numpys_to_the_bit(shape, dtype, monkeypatch):
    monkeypatch.setattr(start, "_BLOCK", 4096)
    features = (3 * np.random.default_rng(0).standard_normal(shape) + 1).astype(dtype)
    for threads in (1, 3):
        monkeypatch.setattr(runtime, "get_threads", lambda threads=threads: threads)
        mean, deviation = start.feature_scale(features)
        np.testing.assert_array_equal(mean, features.mean(axis=0, dtype=np.float64))
        assert deviation == np.sqrt(features.var(axis=0, dtype=np.float64).mean())
