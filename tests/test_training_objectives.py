"""Objectives: their batches, and the gradients and sums of a batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from coco_layout import write_layout

from fastrnn.classifiers.rnn import CaptioningWorkspace
from fastrnn.coco_utils import read_captioning_directory
from fastrnn.reference.classifier import CaptioningRNN as ReferenceRNN
from fastrnn.training import TrainConfig, start_model
from fastrnn.training.objectives import CaptionObjective, RewardObjective, TrainingSet


@pytest.fixture
def data(tmp_path: Path) -> dict:
    write_layout(tmp_path)
    return read_captioning_directory(tmp_path)


def objective(kind: type, data: dict, **options: object) -> CaptionObjective | RewardObjective:
    network = start_model(data, "lstm", 4, 5, dtype=np.float64)
    training = TrainingSet(data, network, batch_size=8)
    return kind(training, network, TrainConfig(**options), CaptioningWorkspace())


def test_captions(data):
    captions = objective(CaptionObjective, data)
    batches = captions.batches(0)
    assert [len(rows) for rows in batches] == [8, 7, 7, 7, 7]
    assert sorted(np.concatenate(batches)) == [*range(36)]
    rows = batches[1]
    found = captions.gradients(rows, 1)
    features = data["train_features"][data["train_image_idxs"][rows]].astype(np.float64)
    every = data["train_features"].astype(np.float64)
    features = (features - every.mean(axis=0)) / np.sqrt(every.var(axis=0).mean())
    twin = ReferenceRNN(data["word_to_idx"], features.shape[1], 4, 5, "lstm", np.float64)
    twin.params = captions._network.params
    loss, grads = twin.loss(features, data["train_captions"][rows])
    assert found.loss == pytest.approx(loss)
    for name, grad in grads.items():
        np.testing.assert_allclose(found.grads[name], grad, rtol=1e-7, atol=1e-12)
    assert found.count == np.count_nonzero(data["train_captions"][rows, 1:])
    assert captions.summary(found.total, found.count) == {
        "loss": pytest.approx(loss * len(rows) / found.count)
    }
    assert captions.summary(0.0, 0) == {"loss": 0.0}


def test_rewards(data):
    data["train_image_idxs"][data["train_image_idxs"] == 4] = 5  # an image without captions
    rewards = objective(RewardObjective, data, reward_captions=3, weight_decay=0.1)
    batches = rewards.batches(2)
    assert len(batches) == 5
    assert sorted(np.concatenate(batches)) == [i for i in range(12) if i != 4]
    found = rewards.gradients(batches[0], 10)
    assert found.count == 3 * len(batches[0])
    assert rewards.summary(found.total, found.count)["loss"] is None
    assert 0 <= rewards.summary(found.total, found.count)["reward"] <= 10
    assert (rewards.weight_decay, rewards.captions_per_row) == (0, 3)
    again = rewards.gradients(batches[0], 10)
    assert (again.loss, again.total) == (found.loss, found.total)
    assert rewards.gradients(batches[0], 11).loss != found.loss
