"""The trainer against a plain loop over the NumPy twin, and what it promises besides."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from coco_layout import write_layout

import fastrnn.reference.optim as reference_optim
from fastrnn.classifiers.rnn import CaptioningRNN
from fastrnn.coco_utils import read_captioning_directory
from fastrnn.reference.classifier import CaptioningRNN as ReferenceRNN
from fastrnn.training import (
    TrainConfig,
    Trainer,
    caption_images,
    evaluate,
    feature_scale,
    references_of,
    start_model,
)


@pytest.fixture
def data(tmp_path: Path) -> dict:
    write_layout(tmp_path)
    return read_captioning_directory(tmp_path)


class Recorder(CaptioningRNN):
    """Remembers what it was trained on."""

    def loss(self, features, captions, **kwargs):
        self.seen.append((features.copy(), captions.copy()))
        return super().loss(features, captions, **kwargs)


def recorder(data: dict) -> Recorder:
    model = Recorder(data["word_to_idx"], data["train_features"].shape[1], 4, 5, "lstm")
    model.seen = []
    return model


# -- the configuration


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [
        ("epochs", 0, ValueError),
        ("epochs", 1.5, TypeError),
        ("epochs", True, TypeError),
        ("batch_size", -1, ValueError),
        ("learning_rate", 0, ValueError),
        ("learning_rate", math.nan, ValueError),
        ("learning_rate", "fast", TypeError),
        ("lr_decay", 0.0, ValueError),
        ("lr_decay", "linear", ValueError),
        ("clip_norm", -1.0, ValueError),
        ("feature_noise", math.inf, ValueError),
        ("val_captions", -1, ValueError),
        ("record_every", 0, ValueError),
        ("seed", -1, ValueError),
        ("seed", 2**32, ValueError),
    ],
)
def test_config_names_the_field(field, value, error):
    with pytest.raises(error, match=f"^{field} is "):
        TrainConfig(**{field: value})


def test_learning_rates():
    cosine = TrainConfig(epochs=4, learning_rate=0.1)
    assert [cosine.rate(e) for e in (0, 2, 4)] == pytest.approx([0.1, 0.05, 0.0])
    steps = TrainConfig(epochs=4, learning_rate=0.1, lr_decay=0.5)
    assert [steps.rate(e) for e in (0, 0.99, 1, 3.5)] == pytest.approx([0.1, 0.1, 0.05, 0.0125])


# -- training


@pytest.mark.parametrize("cell", ["rnn", "lstm"])
def test_same_as_a_plain_loop_over_the_twin(data, cell):
    words, width = data["word_to_idx"], data["train_features"].shape[1]
    models = []
    for make in (CaptioningRNN, ReferenceRNN):
        np.random.seed(3)
        models.append(make(words, width, 4, 5, cell, np.float64))
    fast, plain = models
    config = TrainConfig(epochs=3, batch_size=7, learning_rate=0.02, lr_decay=0.5, clip_norm=1.5)
    # Features of mean 0 and deviation 1 need no standardising: the loop below can do without.
    features = data["train_features"].astype(np.float64)
    features -= features.mean(axis=0)
    data["train_features"] = features / np.sqrt(features.var(axis=0).mean())
    losses = []
    Trainer(fast, data, config, on_step=lambda _, record: losses.append(record["loss"])).fit()

    rng, states, expected = np.random.default_rng(0), {}, []
    captions, clipped = data["train_captions"], 0
    for epoch in range(3):
        order = rng.permutation(len(captions))
        for rows in np.array_split(order, math.ceil(len(captions) / 7)):
            images = data["train_image_idxs"][rows]
            loss, grads = plain.loss(data["train_features"][images], captions[rows])
            expected.append(loss * len(rows) / (captions[rows, 1:] != 0).sum())
            norm = np.sqrt(sum((g**2).sum() for g in grads.values()))
            clipped += norm > 1.5
            for name, w in plain.params.items():
                grad = grads[name] * min(1, 1.5 / norm)
                state = states.setdefault(name, {})
                state["learning_rate"] = 0.02 * 0.5**epoch
                plain.params[name], states[name] = reference_optim.adam(w, grad, state)
    assert 0 < clipped < len(expected)
    np.testing.assert_allclose(losses, expected, rtol=1e-9)
    for name, w in plain.params.items():
        np.testing.assert_allclose(fast.params[name], w, rtol=1e-6, atol=1e-9)


def test_every_caption_once_an_epoch_in_a_new_order(data):
    model = recorder(data)
    # 36 captions in steps of at most 10: four even ones, not three and a rest.
    trainer = Trainer(model, data, TrainConfig(epochs=2, batch_size=10, val_captions=0))
    trainer.fit()
    assert [len(captions) for _, captions in model.seen] == [9] * 8
    epochs = [np.concatenate([c for _, c in model.seen[i : i + 4]]) for i in (0, 4)]
    assert not np.array_equal(*epochs)
    wanted = sorted(map(tuple, data["train_captions"].tolist()))
    for captions in epochs:
        assert sorted(map(tuple, captions.tolist())) == wanted


def test_model_reads_features_as_they_are(data):
    data["train_features"] = 30 * data["train_features"] + 100
    data["val_features"] = 30 * data["val_features"] + 100
    mean, deviation = feature_scale(data["train_features"])
    standard = (data["train_features"] - mean) / deviation
    np.testing.assert_allclose(standard.mean(axis=0), 0, atol=1e-6)
    assert np.mean(standard.var(axis=0)) == pytest.approx(1)

    model = recorder(data)
    trainer = Trainer(model, data, TrainConfig(epochs=1, val_captions=0, feature_noise=0.0))
    trainer.fit()
    features, captions = model.seen[0]
    assert abs(features.mean()) < 0.3
    # What the first step saw, and what the trained model makes of the same pictures unscaled.
    rows = np.random.default_rng(0).permutation(len(data["train_captions"]))
    np.testing.assert_array_equal(captions, data["train_captions"][rows])
    raw = data["train_features"][data["train_image_idxs"][rows]]
    inner = CaptioningRNN(data["word_to_idx"], raw.shape[1], 4, 5, "lstm")
    inner.params.update({name: w.astype(np.float64) for name, w in model.params.items()})
    inner.params["b_proj"] = inner.params["b_proj"] + mean @ inner.params["W_proj"]
    inner.params["W_proj"] = inner.params["W_proj"] * deviation
    assert model.loss(raw, captions)[0] == pytest.approx(inner.loss(features, captions)[0], 1e-4)


def test_noise_is_of_the_size_asked_for(data):
    quiet, noisy = recorder(data), recorder(data)
    for model, noise in ((quiet, 0.0), (noisy, 0.5)):
        config = TrainConfig(epochs=1, batch_size=100, feature_noise=noise, val_captions=0)
        Trainer(model, data, config).fit()
    added = noisy.seen[0][0] - quiet.seen[0][0]
    assert added.std() == pytest.approx(0.5, rel=0.15)
    assert abs(added.mean()) < 0.1


def test_seed_decides_everything(data):
    def train(seed: int) -> tuple[list[dict], dict]:
        model = start_model(data, "lstm", 4, 5, seed)
        config = TrainConfig(epochs=2, batch_size=10, seed=seed, feature_noise=0.1)
        history = Trainer(model, data, config).fit()
        timed = ("seconds", "captions_per_second")
        return [{k: v for k, v in r.items() if k not in timed} for r in history], model.params

    state = np.random.get_state()[1].copy()
    (history, params), (again, same), (other, _) = train(1), train(1), train(2)
    np.testing.assert_array_equal(np.random.get_state()[1], state)
    assert history == again != other
    for name in params:
        np.testing.assert_array_equal(params[name], same[name])


def test_history(data):
    records: list[dict] = []
    model = start_model(data, "rnn", 4, 5)
    config = TrainConfig(epochs=3, batch_size=9, record_every=3, learning_rate=0.01)
    trainer = Trainer(model, data, config, on_epoch=lambda _, record: records.append(record))
    history = trainer.fit()
    assert history is trainer.history
    assert [r for r in history if "val_loss" in r] == records
    assert [r["epoch"] for r in records] == [1, 2, 3]
    # Four steps an epoch: a record every three steps, and one for what is left of the epoch.
    steps = [r["step"] for r in history if "val_loss" not in r]
    assert steps == [3, 4, 6, 8, 9, 12]
    for r in records:
        assert r["val_perplexity"] == pytest.approx(math.exp(r["val_loss"]))
        assert r["seconds"] > 0
    assert records[-1]["val_loss"] == pytest.approx(trainer.validate())
    null, captions = data["word_to_idx"]["<NULL>"], data["val_captions"]
    loss, _ = model.loss(data["val_features"][data["val_image_idxs"]], captions)
    words = (captions[:, 1:] != null).sum()
    assert trainer.validate() == pytest.approx(float(loss) * len(captions) / words, rel=1e-5)


def test_learns_what_there_is_to_learn(data):
    # As many images as captions, so that each can be known by heart.
    first = np.arange(0, len(data["train_captions"]), 3)
    data["train_captions"] = data["train_captions"][first]
    data["train_image_idxs"] = np.arange(len(first))
    model = start_model(data, "lstm", 16, 32)
    Trainer(model, data, TrainConfig(epochs=150, batch_size=12, learning_rate=0.02)).fit()
    said = caption_images(model, data["train_features"])
    assert said == [texts[0] for texts in references_of(data, "train")]


def test_without_validation_captions(data):
    data["val_captions"], data["val_image_idxs"] = data["val_captions"][:0], np.arange(0)
    trainer = Trainer(start_model(data, "rnn", 4, 5), data, TrainConfig(epochs=1))
    assert trainer.fit()[-1]["val_loss"] is None


def test_interrupt_leaves_a_whole_model(data):
    def stop(trainer: Trainer, record: dict) -> None:
        if record["step"] == 3:
            raise KeyboardInterrupt

    data["train_features"] = 30 * data["train_features"] + 100
    model = start_model(data, "lstm", 4, 5)
    before = model.params["W_proj"].copy()
    trainer = Trainer(model, data, TrainConfig(batch_size=10, learning_rate=1e-9), on_step=stop)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    np.testing.assert_allclose(model.params["W_proj"], before, rtol=1e-4, atol=1e-8)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_diverged(data, value):
    data["train_features"][0, 0] = value
    with pytest.raises(FloatingPointError, match="at step 1"):
        Trainer(start_model(data, "lstm", 4, 5), data).fit()


def test_bad_data(data):
    model = start_model(data, "lstm", 4, 5)
    with pytest.raises(ValueError, match=r"train_features has shape \(12, 6\).*\(images, 7\)"):
        Trainer(model, {**data, "train_features": data["train_features"][:, :6]})
    with pytest.raises(ValueError, match="train_captions has shape"):
        Trainer(model, {**data, "train_captions": data["train_captions"][:0]})


# -- the first weights, and the figures at the end


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


def test_references_and_evaluation(data):
    unknown, dog = (data["word_to_idx"][word] for word in ("<UNK>", "dog"))
    data["val_captions"][data["val_captions"] == unknown] = dog
    references = references_of(data)
    assert [len(texts) for texts in references] == [3] * 5
    row = int(np.flatnonzero(data["val_image_idxs"] == 2)[0])
    ids = data["val_captions"][row]
    words = [data["idx_to_word"][i] for i in ids if i > 2]
    assert references[2][0] == " ".join(words)

    said = [texts[0] for texts in references]
    metrics = evaluate(said, references, [True, True, False, True])
    assert metrics["bleu_1"] == 1.0
    assert metrics["true_share"] == 0.75
    assert metrics["images"] == 5
    assert "true_share" not in evaluate(said, references)
    assert evaluate(["a"], [[]])["bleu_1"] is None
