"""What a notebook shows of an object: its sizes in a line, neither an address nor arrays."""

from __future__ import annotations

import numpy as np
import pytest
from coco_layout import write_layout

from fastrnn import decoding
from fastrnn.captioning_solver import CaptioningSolver
from fastrnn.classifiers.rnn import CaptioningRNN
from fastrnn.coco_utils import read_captioning_directory
from fastrnn.data.pca import PCA
from fastrnn.data.scenes import dataset
from fastrnn.evaluation import Evaluator
from fastrnn.explain import Saliency
from fastrnn.training import TrainConfig, Trainer, start_model


@pytest.fixture
def data(tmp_path) -> dict:
    write_layout(tmp_path)
    return read_captioning_directory(tmp_path)


def small(data: dict) -> CaptioningRNN:
    return start_model(data, "lstm", 8, 16)


MODEL = "CaptioningRNN(11 words, input_dim=7, wordvec_dim=8, hidden_dim=16, cell_type='lstm', "


def test_model(data):
    model = small(data)
    assert repr(model) == MODEL + "dtype=float32)"
    model.params = {}  # whatever users put there
    assert "hidden_dim=?" in repr(model)


def test_solver(data):
    solver = CaptioningSolver(small(data), data, update_rule="adam", batch_size=5, verbose=False)
    assert repr(solver) == (
        f"CaptioningSolver({MODEL}dtype=float32), update_rule='adam', batch_size=5, "
        "num_epochs=10, 0 steps done)"
    )


def test_decoded(data):
    found = decoding.beam_search(small(data), data["val_features"], 3, 9, n_best=2)
    assert repr(found) == "Decoded(5 images, 2 captions each, at most 9 words)"
    one = decoding.greedy(small(data), data["val_features"][:1], 1)
    assert repr(one) == "Decoded(1 image, 1 caption each, at most 1 word)"


def test_trainer_and_config(data, tmp_path):
    assert repr(TrainConfig()) == "TrainConfig()"
    config = TrainConfig(epochs=2, schedule="constant", clip_norm=5.0)
    assert eval(repr(config)) == config
    assert "weight_decay" not in repr(config)
    trainer = Trainer(small(data), data, config, run=tmp_path / "run")
    captions = len(data["train_captions"])
    said = repr(trainer)
    assert said.startswith(f"Trainer({MODEL}dtype=float32), {captions} captions, TrainConfig(")
    assert said.endswith(f"run='{tmp_path / 'run'}', step 0 of {2 * trainer.steps_per_epoch})")


def test_what_holds_arrays(data):
    scenes = dataset.make_scenes(12, 3, 0)["train"]
    assert repr(scenes) == "SceneSet(12 scenes)"
    assert repr(PCA(np.zeros(9), np.zeros((4, 9)))) == "PCA(9 to 4 features)"
    references = len(data["val_captions"])
    assert repr(Evaluator(data)) == f"Evaluator(5 images, {references} references)"
    saliency = Saliency(np.zeros((1, 7, 7)), ["dog"], np.zeros((7, 7, 3)))
    assert "array" not in repr(saliency)
    assert "dog" in repr(saliency)
