"""The trainer against a plain loop over the NumPy twin, and what it promises besides."""

from __future__ import annotations

import errno
import json
import math
import os
import signal
import warnings
from pathlib import Path

import numpy as np
import pytest
from coco_layout import write_layout

import fastrnn.reference.optim as reference_optim
import fastrnn.training.saving
from fastrnn.checkpoint import checkpoint_path, checkpoint_steps, read_checkpoint
from fastrnn.classifiers.rnn import CaptioningRNN, Regularisation
from fastrnn.coco_utils import read_captioning_directory
from fastrnn.metrics import CaptionScorer
from fastrnn.reference.classifier import CaptioningRNN as ReferenceRNN
from fastrnn.reference.decoding import sample as reference_sample
from fastrnn.rewards import CiderReward
from fastrnn.runs import read_history
from fastrnn.training import (
    RECIPES,
    Interrupted,
    TrainConfig,
    Trainer,
    caption_images,
    evaluate,
    feature_scale,
    read_run,
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
        ("schedule", "linear", ValueError),
        ("schedule", 3, TypeError),
        ("lr_decay", 0.0, ValueError),
        ("lr_decay", 0.5, ValueError),  # nothing for it to act on
        ("lr_decay", "cosine", TypeError),
        ("decay_every", 0, ValueError),
        ("warmup_steps", -1, ValueError),
        ("weight_decay", -0.1, ValueError),
        ("clip_value", -1.0, ValueError),
        ("clip_norm", -1.0, ValueError),
        ("embed_dropout", 1.0, ValueError),
        ("vocab_dropout", -0.1, ValueError),
        ("label_smoothing", 1, ValueError),
        ("scheduled_sampling", 1.1, ValueError),
        ("feature_noise", math.inf, ValueError),
        ("weight_average", 1.0, ValueError),
        ("consensus", -1.0, ValueError),
        ("reward_epochs", -1, ValueError),
        ("reward_captions", 1, ValueError),
        ("reward_rate", 0.0, ValueError),
        ("bucket_by_length", 1, TypeError),
        ("patience", -1, ValueError),
        ("monitor", "meteor", ValueError),
        ("val_images", 1.0, TypeError),
        ("keep_last", 0, ValueError),
        ("save_every", -1, ValueError),
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
    def rates(steps: list[int], **fields: object) -> list[float]:
        config = TrainConfig(epochs=4, learning_rate=0.1, **fields)
        return [config.rate(step, 10) for step in steps]

    assert rates([0, 15, 40]) == [0.1, 0.1, 0.1]
    assert rates([0, 20, 40], schedule="cosine") == pytest.approx([0.1, 0.05, 0.0])
    step = {"schedule": "step", "lr_decay": 0.5}
    assert rates([0, 9, 10, 35], **step) == pytest.approx([0.1, 0.1, 0.05, 0.0125])
    assert rates([0, 19, 20], **step, decay_every=2) == pytest.approx([0.1, 0.1, 0.05])
    smooth = {"schedule": "exponential", "lr_decay": 0.25}
    assert rates([0, 5, 10, 20], **smooth) == pytest.approx([0.1, 0.05, 0.025, 0.00625])
    assert rates([5, 10], **smooth, decay_every=2) == pytest.approx([0.1 / 2**0.5, 0.05])
    rewarded = {**step, "reward_epochs": 2, "reward_rate": 0.01}
    assert rates([0, 39, 40, 50, 59], **rewarded) == pytest.approx(
        [0.1, 0.0125, 0.01, 0.005, 0.005 * (1 - math.cos(math.pi / 20))]
    )
    assert rates([0, 1, 3, 4], warmup_steps=4) == pytest.approx([0.025, 0.05, 0.1, 0.1])


def test_recipes_are_configurations():
    for recipe in RECIPES.values():
        fields = {k: v for k, v in recipe.items() if k not in ("hidden_dim", "wordvec_dim")}
        TrainConfig(**fields)


# -- training

ALL_ON = {
    "schedule": "exponential", "lr_decay": 0.7, "decay_every": 2, "warmup_steps": 5,
    "weight_decay": 0.1, "clip_value": 0.05, "clip_norm": 0.4, "embed_dropout": 0.3,
    "vocab_dropout": 0.4, "label_smoothing": 0.1, "scheduled_sampling": 0.5, "feature_noise": 0.2,
    "consensus": 0.5, "weight_average": 0.9, "bucket_by_length": True,
}  # fmt: skip


@pytest.mark.parametrize("cell", ["rnn", "lstm"])
@pytest.mark.parametrize("options", [{}, ALL_ON], ids=["plain", "all"])
def test_same_as_a_plain_loop_over_the_twin(data, cell, options):
    words, width = data["word_to_idx"], data["train_features"].shape[1]
    models = []
    for make in (CaptioningRNN, ReferenceRNN):
        np.random.seed(3)
        models.append(make(words, width, 4, 5, cell, np.float64))
    fast, plain = models
    # Features of mean 0 and deviation 1 need no standardising: the loop below can do without.
    features = data["train_features"].astype(np.float64)
    features -= features.mean(axis=0)
    data["train_features"] = features / np.sqrt(features.var(axis=0).mean())
    if options:  # so that some steps are clipped by their norm
        options = {**options, "clip_norm": {"rnn": 0.6, "lstm": 0.4}[cell]}
    c = TrainConfig(epochs=4, batch_size=7, learning_rate=0.02, seed=5, val_images=0, **options)
    losses: list[float] = []
    Trainer(fast, data, c, on_step=lambda _, record: losses.append(record["loss"])).fit()

    states: dict[str, dict] = {name: {} for name in plain.params}
    captions, clipped, expected, step = data["train_captions"], 0, [], 0
    means, weight = {name: np.zeros_like(w) for name, w in plain.params.items()}, 0.0
    lengths = (captions[:, 1:] != 0).sum(axis=1)
    agreement = CiderReward(captions, data["train_image_idxs"], 12, words).agreement()
    counts = agreement**c.consensus / (agreement**c.consensus).mean()
    for epoch in range(4):
        rng = np.random.default_rng([5, 1, epoch])
        order = rng.permutation(len(captions))
        if c.bucket_by_length:
            order = np.array(sorted(order, key=lambda row: lengths[row]))
        batches = np.array_split(order, 6)
        if c.bucket_by_length:
            batches = [batches[i] for i in rng.permutation(6)]
        for rows in batches:
            inputs = data["train_features"][data["train_image_idxs"][rows]]
            noise = np.random.default_rng([5, 2, step]).standard_normal(inputs.shape, np.float32)
            inputs = inputs + np.float32(c.feature_noise) * noise
            seed = int(np.random.SeedSequence([5, 3, step]).generate_state(1, np.uint64)[0])
            mix = c.scheduled_sampling * step / 23
            masks = Regularisation(c.embed_dropout, c.vocab_dropout, c.label_smoothing, mix, seed)
            loss, grads = plain.loss(
                inputs, captions[rows], weights=counts[rows], regularisation=masks
            )
            expected.append(loss * len(rows) / lengths[rows].sum())
            if c.clip_value:
                reference_optim.clip_by_value(grads, c.clip_value)
            if c.clip_norm:
                clipped += reference_optim.clip_by_norm(grads, c.clip_norm) > c.clip_norm
            rate = 0.02
            if options:
                rate *= 0.7 ** (step / 6 / 2) * min(1, (step + 1) / 5)
            for name, w in plain.params.items():
                states[name]["learning_rate"] = rate
                states[name]["weight_decay"] = c.weight_decay if w.ndim == 2 else 0.0
                reference_optim.adamw(w, grads[name], states[name])
                means[name] = c.weight_average * means[name] + (1 - c.weight_average) * w
            weight = c.weight_average * weight + (1 - c.weight_average)
            step += 1
    assert step == len(losses) == 24
    assert bool(options) == (0 < clipped < step)
    np.testing.assert_allclose(losses, expected, rtol=1e-9)
    for name in plain.params:
        np.testing.assert_allclose(fast.params[name], means[name] / weight, rtol=1e-7, atol=1e-9)


def test_rewarded_epochs_are_a_plain_loop_over_the_twin(data):
    words, width = data["word_to_idx"], data["train_features"].shape[1]
    features = data["train_features"].astype(np.float64)
    features -= features.mean(axis=0)
    features /= np.sqrt(features.var(axis=0).mean())
    data["train_features"] = features
    data["train_image_idxs"][data["train_image_idxs"] == 4] = 5  # an image without captions
    model = start_model(data, "lstm", 6, 8, dtype=np.float64)
    c = TrainConfig(
        epochs=2, batch_size=7, learning_rate=0.05, weight_decay=0.1, embed_dropout=0.5,
        feature_noise=0.3, clip_norm=0.2, weight_average=0.8, reward_epochs=2, reward_captions=3,
        reward_rate=0.01, seed=5, val_images=0, record_every=1,
    )  # fmt: skip
    at: dict[str, dict] = {}

    def on_epoch(trainer, record):
        at[record["epoch"]] = {name: w.copy() for name, w in trainer.model.params.items()}

    history = Trainer(model, data, c, on_epoch=on_epoch).fit()
    plain = ReferenceRNN(words, width, 6, 8, "lstm", np.float64)
    # from the average that the epochs of captions came to
    plain.params = {name: w.copy() for name, w in at[2].items()}
    reward = CiderReward(data["train_captions"], data["train_image_idxs"], 12, words)
    states: dict[str, dict] = {name: {} for name in plain.params}
    clipped, seen = 0, []
    rewards = [record["reward"] for record in history if record.get("reward") is not None]
    for step in range(12):
        epoch, number = divmod(step, 6)
        if not number:
            order = np.random.default_rng([5, 1, 2 + epoch]).permutation(
                np.setdiff1d(np.arange(12), 4)
            )
        images = np.array_split(order, 6)[number]
        seen += images.tolist()
        seed = int(np.random.SeedSequence([5, 4, 12 + step]).generate_state(1, np.uint64)[0])
        drawn = [
            hypothesis.words
            for row in reference_sample(plain, features[images], 8, count=3, seed=seed)
            for hypothesis in row
        ]
        captions = np.zeros((len(drawn), 9), int)
        captions[:, 0] = words["<START>"]
        for row, said in zip(captions, drawn, strict=True):
            row[1 : 1 + len(said)] = said
        of = np.repeat(images, 3)
        value = reward(captions[:, 1:], of)
        others = [value[of == image].sum() / 2 - v / 2 for image, v in zip(of, value, strict=True)]
        _, grads = plain.loss(features[of], captions, weights=value - others)
        clipped += reference_optim.clip_by_norm(grads, 0.2) > 0.2
        rate = 0.01 * 0.5 * (1 + math.cos(math.pi * step / 12))
        for name, w in plain.params.items():
            states[name]["learning_rate"] = rate
            reference_optim.adam(w, grads[name], states[name])
        # each step's line, and behind each epoch's last one that of the epoch
        assert rewards[step + epoch] == pytest.approx(value.mean(), rel=1e-9)
    assert 0 < clipped < 12
    assert sorted(seen) == sorted(2 * [i for i in range(12) if i != 4])
    for name, w in plain.params.items():
        np.testing.assert_allclose(model.params[name], w, rtol=1e-7, atol=1e-9)
    assert all(record["loss"] is None for record in history if "reward" in record)


def test_rewards_rise(data):
    config = TrainConfig(
        epochs=20, learning_rate=0.02, reward_epochs=60, reward_rate=0.01, val_captions=0
    )
    model = start_model(data, "lstm", 16, 32)
    history = Trainer(model, data, config).fit()
    rewards = [
        record["reward"] for record in history if "reward" in record and "val_loss" in record
    ]
    assert len(rewards) == 60
    assert np.mean(rewards[-5:]) > 1.3 * np.mean(rewards[:5])


def test_few_images_are_drawn_for_more_than_once_an_epoch(data):
    data["train_image_idxs"][:] = np.arange(36) % 2
    model = recorder(data)
    config = TrainConfig(epochs=1, batch_size=7, reward_epochs=1, reward_captions=2, val_captions=0)
    history = Trainer(model, data, config).fit()
    assert [len(captions) for _, captions in model.seen] == [6] * 6 + [2] * 6
    assert history[-1]["epoch"] == 2


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
    rows = np.random.default_rng([0, 1, 0]).permutation(len(data["train_captions"]))
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


def untimed(history: list[dict]) -> list[dict]:
    timed = ("seconds", "captions_per_second", "validation_seconds")
    return [{k: v for k, v in record.items() if k not in timed} for record in history]


def test_seed_decides_everything(data):
    def train(seed: int) -> tuple[list[dict], dict]:
        model = start_model(data, "lstm", 4, 5, seed)
        config = TrainConfig(epochs=2, batch_size=10, seed=seed, feature_noise=0.1)
        history = Trainer(model, data, config).fit()
        return untimed(history), model.params

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
    said = caption_images(model, data["val_features"], captions.shape[1] - 1)
    scores = CaptionScorer(references_of(data)).evaluate(said)
    assert records[-1]["val_bleu_4"] == scores["bleu_4"]
    assert records[-1]["val_cider"] == scores["cider"]
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
    record = trainer.fit()[-1]
    assert record["val_loss"] is record["val_bleu_4"] is record["val_cider"] is None
    assert trainer.best["epoch"] == 1
    for name in [name for name in data if name.startswith("val_")]:
        del data[name]
    trainer = Trainer(start_model(data, "rnn", 4, 5), data, TrainConfig(epochs=2))
    assert trainer.fit()[-1]["val_loss"] is None
    assert trainer.best["epoch"] == 2, "the newest, where nothing can be measured"


def test_error_leaves_a_whole_model(data):
    def stop(trainer: Trainer, record: dict) -> None:
        if record["step"] == 3:
            raise KeyboardInterrupt

    data["train_features"] = 30 * data["train_features"] + 100
    model = start_model(data, "lstm", 4, 5)
    before = {name: w.copy() for name, w in model.params.items()}
    config = TrainConfig(batch_size=10, learning_rate=1e-6)
    with pytest.raises(KeyboardInterrupt):
        Trainer(model, data, config, on_step=stop).fit()
    assert not np.array_equal(model.params["W_vocab"], before["W_vocab"])
    for name, w in model.params.items():
        np.testing.assert_allclose(w, before[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_finishes_the_step_and_saves(data, tmp_path, number):
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]

    def stop(trainer: Trainer, record: dict) -> None:
        if record["step"] == 3:
            os.kill(os.getpid(), number)

    model = start_model(data, "lstm", 4, 5)
    trainer = Trainer(model, data, TrainConfig(batch_size=10), run=tmp_path / "r", on_step=stop)
    with pytest.raises(Interrupted) as caught:
        trainer.fit()
    assert (caught.value.signal, caught.value.step) == (number, 3)
    assert checkpoint_steps(tmp_path / "r")[-1] == 3
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_second_signal_stops_at_once(data):
    class Waiting(CaptioningRNN):
        def loss(self, *args: object, **kwargs: object):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)
            raise AssertionError("it should have been stopped by now")

    model = Waiting(data["word_to_idx"], data["train_features"].shape[1], 4, 5, "lstm")
    with pytest.raises(Interrupted) as caught:
        Trainer(model, data).fit()
    assert caught.value.signal == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_handlers_of_others_stay(data):
    seen: list[int] = []
    old = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    try:
        config = TrainConfig(epochs=1, batch_size=10)
        trainer = Trainer(
            start_model(data, "rnn", 4, 5), data, config,
            on_step=lambda *_: os.kill(os.getpid(), signal.SIGTERM),
        )  # fmt: skip
        trainer.fit()
    finally:
        signal.signal(signal.SIGTERM, old)
    assert len(seen) == 4


# -- what comes of validation


def scored(monkeypatch: pytest.MonkeyPatch, scores: list[dict]) -> None:
    """Let validations have these scores, one after the other."""
    following = iter(scores)

    def evaluate(self: CaptionScorer, captions: list[str], **_: bool) -> dict:
        return {"bleu_4": 0.1, **next(following)}

    monkeypatch.setattr(CaptionScorer, "evaluate", evaluate)


def test_patience(data, monkeypatch, tmp_path):
    values = [0.1, 0.3, 0.2, 0.25, 0.31, 0.2, 0.3, 0.1, 0.5]
    scored(monkeypatch, [{"cider": value} for value in values])
    config = TrainConfig(epochs=9, batch_size=18, patience=3, keep_last=1)
    trainer = Trainer(start_model(data, "rnn", 4, 5), data, config, run=tmp_path / "r")
    history = trainer.fit()
    assert trainer.finished
    assert [r["val_cider"] for r in history if "val_loss" in r] == values[:8]
    assert {k: trainer.best[k] for k in ("monitor", "value", "epoch", "step")} == {
        "monitor": "cider", "value": 0.31, "epoch": 5, "step": 10,
    }  # fmt: skip
    # The best is kept beside the newest, and is the run's model.
    assert checkpoint_steps(tmp_path / "r") == [10, 16]
    best = CaptioningRNN.load(checkpoint_path(tmp_path / "r", 10))
    kept = CaptioningRNN.load(tmp_path / "r")
    for name, w in best.params.items():
        np.testing.assert_array_equal(kept.params[name], w)
    assert not np.array_equal(kept.params["W_vocab"], trainer.model.params["W_vocab"])


def test_patience_goes_on_where_it_was(data, monkeypatch, tmp_path):
    scored(monkeypatch, [{"cider": value} for value in [0.4, 0.3, 0.2, 0.1, 0.5]])
    config = TrainConfig(epochs=9, batch_size=18, patience=3, keep_last=1)

    def stop(trainer: Trainer, record: dict) -> None:
        if record["epoch"] == 3:
            trainer.stop()

    model = start_model(data, "rnn", 4, 5)
    Trainer(model, data, config, run=tmp_path / "r", on_epoch=stop).fit()
    trainer = Trainer.resume(tmp_path / "r", data)
    trainer.fit()
    assert trainer.step == 8
    assert trainer.best["epoch"] == 1
    assert checkpoint_steps(tmp_path / "r") == [2, 8]


@pytest.mark.parametrize(("monitor", "best"), [("cider", 1), ("bleu_4", 3), ("loss", 4)])
def test_monitors(data, monkeypatch, monitor, best):
    scored(
        monkeypatch,
        [{"cider": c, "bleu_4": b} for c, b in [(0.4, 0.1), (0.3, 0.2), (0.2, 0.3), (0.1, 0.2)]],
    )
    config = TrainConfig(epochs=4, batch_size=18, monitor=monitor, learning_rate=1e-3)
    trainer = Trainer(start_model(data, "rnn", 4, 5), data, config)
    losses = [r["val_loss"] for r in trainer.fit() if "val_loss" in r]
    if monitor == "loss":
        best = 1 + int(np.argmin(losses))
    assert trainer.best["epoch"] == best


def test_each_epoch_of_rewards_is_a_gain_where_the_loss_decides(data):
    config = TrainConfig(epochs=3, monitor="loss", reward_epochs=2, reward_rate=0.1, patience=1)
    trainer = Trainer(start_model(data, "lstm", 8, 8), data, config)
    history = [record for record in trainer.fit() if "val_loss" in record]
    assert history[-1]["val_loss"] > history[2]["val_loss"]
    assert trainer.best["epoch"] == 5


def test_loss_takes_the_place_of_a_metric_that_is_missing(data, monkeypatch):
    scored(monkeypatch, [{"cider": None}] * 3)
    trainer = Trainer(start_model(data, "rnn", 4, 5), data, TrainConfig(epochs=3))
    with pytest.warns(UserWarning, match="monitor is 'cider', which cannot be computed") as said:
        trainer.fit()
    assert len(said) == 1
    assert trainer.best["monitor"] == "loss"
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # who wants no captions wants no warning about them
        trainer = Trainer(start_model(data, "rnn", 4, 5), data, TrainConfig(val_images=0))
        trainer.fit()
    assert trainer.best["monitor"] == "loss"


def test_own_references(data):
    data["val_references"] = [["a cat on the mat"]] * 4 + [[]]
    seen: list[tuple[dict, list[str]]] = []
    trainer = Trainer(
        start_model(data, "rnn", 4, 5), data, TrainConfig(epochs=1),
        on_validation=lambda _, metrics, captions: seen.append((metrics, captions)),
    )  # fmt: skip
    trainer.fit()
    ((metrics, captions),) = seen
    assert captions == caption_images(trainer.model, data["val_features"][:4], 8)
    assert (
        metrics["bleu_4"] == CaptionScorer(data["val_references"][:4]).evaluate(captions)["bleu_4"]
    )


# -- the run directory


def test_run_directory_from_code(data, tmp_path):
    """Five lines: what they leave, and that training goes on from it."""
    model = start_model(data, "lstm", 4, 5)
    config = TrainConfig(epochs=2, batch_size=10, save_every=3, weight_average=0.9)
    Trainer(model, data, config, run=tmp_path / "r").fit()
    assert {p.name for p in (tmp_path / "r").iterdir()} == {
        "settings.json", "history.jsonl", "model.npz", "checkpoints",
    }  # fmt: skip
    run = read_run(tmp_path / "r")
    assert run.config == config
    assert run.data_directory is None
    assert (run.settings["cell"], run.settings["hidden_dim"]) == ("lstm", 5)
    with pytest.raises(ValueError, match="does not say where its data are"):
        Trainer.resume(tmp_path / "r")
    with pytest.raises(ValueError, match=r"holds checkpoints; Trainer\.resume"):
        Trainer(model, data, config, run=tmp_path / "r")

    trainer = Trainer.resume(tmp_path / "r", data, epochs=4)
    assert trainer.step == 8
    trainer.fit()
    whole = Trainer(
        start_model(data, "lstm", 4, 5), data,
        TrainConfig(epochs=4, batch_size=10, weight_average=0.9),
    )  # fmt: skip
    whole.fit()
    for name, w in whole.model.params.items():
        np.testing.assert_array_equal(trainer.model.params[name], w)
    assert untimed(trainer.history) == untimed(whole.history)
    lines = (tmp_path / "r" / "history.jsonl").read_text().splitlines()
    assert [json.loads(line)["kind"] for line in lines] == 4 * ["steps", "epoch"]
    assert read_history(tmp_path / "r") == trainer.history
    assert read_run(tmp_path / "r").config.epochs == 4


def test_a_checkpoint_that_cannot_be_written_stops_the_training(data, tmp_path, monkeypatch):
    write, model = fastrnn.training.saving.write_sealed, start_model(data, "lstm", 4, 5)

    def until_full(path, arrays):
        if path.name == checkpoint_path(path.parent.parent, 6).name:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write(path, arrays)

    monkeypatch.setattr("fastrnn.training.saving.write_sealed", until_full)
    config = TrainConfig(epochs=50, batch_size=12, val_captions=0, val_images=0)
    trainer = Trainer(model, data, config, run=tmp_path / "run")
    with pytest.raises(OSError, match="No space left"):
        trainer.fit()
    assert 6 <= trainer.step < 150
    assert checkpoint_steps(tmp_path / "run") == [0, 3]
    monkeypatch.undo()
    resumed = Trainer.resume(tmp_path / "run", data, epochs=2)
    assert resumed.step == 3
    resumed.fit()
    assert resumed.step == 6


def test_stop_and_go_on(data, tmp_path):
    trainer = Trainer(
        start_model(data, "lstm", 4, 5), data, TrainConfig(epochs=2, batch_size=10),
        run=tmp_path / "r", on_step=lambda t, record: t.step == 5 and t.stop(),
    )  # fmt: skip
    trainer.fit()
    assert (trainer.step, trainer.finished) == (5, False)
    assert checkpoint_steps(tmp_path / "r")[-1] == 5
    trainer.fit()
    assert trainer.finished


def test_more_epochs_stretch_what_runs_over_all_of_them(data, tmp_path):
    config = TrainConfig(epochs=1, batch_size=10, schedule="cosine")
    Trainer(start_model(data, "rnn", 4, 5), data, config, run=tmp_path / "r").fit()
    with pytest.warns(UserWarning, match="epochs is 2, was 1: the learning rate goes on as in"):
        trainer = Trainer.resume(tmp_path / "r", data, epochs=2)
    rates: list[float] = []
    trainer.on_step = lambda _, record: rates.append(record["learning_rate"])
    trainer.fit()
    assert rates == pytest.approx(
        [0.001 * (1 + math.cos(math.pi * (4 + i) / 8)) / 2 for i in range(4)]
    )


def test_epochs_of_rewards_are_added_and_others_stay(data, tmp_path):
    config = TrainConfig(epochs=1, batch_size=12, reward_epochs=1, val_captions=0, val_images=0)
    model = start_model(data, "lstm", 4, 5)
    Trainer(model, data, config, run=tmp_path / "run").fit()
    with pytest.raises(
        ValueError, match=r"^epochs is 2; expected 1, because the run is in its reward epochs"
    ):
        Trainer.resume(tmp_path / "run", data, epochs=2)
    with pytest.raises(ValueError, match=r"^epochs is 1; the run has done 2"):
        Trainer.resume(tmp_path / "run", data, reward_epochs=0)
    with pytest.warns(UserWarning, match=r"^reward_epochs is 2, was 1: the learning rate goes on"):
        trainer = Trainer.resume(tmp_path / "run", data, reward_epochs=2)
    assert [r["epoch"] for r in trainer.fit() if "val_loss" in r] == [1, 2, 3]


def test_only_the_same_run_is_resumed(data, tmp_path):
    run = tmp_path / "r"
    config = TrainConfig(epochs=2, batch_size=10)
    Trainer(start_model(data, "lstm", 4, 5), data, config, run=run).fit()
    with pytest.raises(ValueError, match=r"learning_rate cannot change .* 0\.001"):
        Trainer.resume(run, data, learning_rate=0.1)
    with pytest.raises(ValueError, match="epochs is 1; the run has done 2"):
        Trainer.resume(run, data, epochs=1)
    other = {**data, "train_captions": data["train_captions"][::-1]}
    with pytest.raises(ValueError, match="train_captions is not what the run"):
        Trainer.resume(run, other)
    with pytest.raises(ValueError, match="features has shape"):
        Trainer.resume(run, {**data, "train_features": data["train_features"][:, :5]})
    settings = json.loads((run / "settings.json").read_text())
    settings["training"]["batch_size"] = 9
    (run / "settings.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=r"batch_size is 9 in settings\.json, but 10"):
        Trainer.resume(run, data)


def test_no_run(data, tmp_path):
    with pytest.raises(FileNotFoundError):
        read_run(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"no run directory; it has no settings\.json"):
        read_run(tmp_path)
    for text, wanted in (
        ("{", "not a JSON file"),
        ("[]", "no run directory"),
        ('{"editor": "vi"}', "no run directory"),
        ('{"fastrnn": "0.1", "epochs": 0}', "epochs is 0"),
    ):
        (tmp_path / "settings.json").write_text(text)
        with pytest.raises(ValueError, match=wanted):
            Trainer.resume(tmp_path, data)
    (tmp_path / "settings.json").write_text('{"fastrnn": "0.1"}')
    with pytest.raises(ValueError, match="has no checkpoint"):
        Trainer.resume(tmp_path, data)


def test_falls_back_to_the_previous_checkpoint(data, tmp_path):
    run = tmp_path / "r"
    config = TrainConfig(epochs=3, batch_size=10, keep_last=3)
    whole = Trainer(start_model(data, "lstm", 4, 5), data, config, run=run)
    whole.fit()
    newest = checkpoint_path(run, 12)
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    previous = checkpoint_path(run, 8)
    with pytest.warns(UserWarning, match=rf"{newest.name}.*going on from step 8"):
        trainer = Trainer.resume(run, data)
    assert trainer.step == 8
    trainer.fit()
    for name, w in whole.model.params.items():
        np.testing.assert_array_equal(trainer.model.params[name], w)
    read_checkpoint(newest)
    for path in (newest, previous, checkpoint_path(run, 4)):
        path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ValueError, match="has no checkpoint that is whole"):
        Trainer.resume(run, data)


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
    val = {**data, "val_features": data["val_features"][:, :6]}
    with pytest.raises(ValueError, match=r"val_features has shape \(5, 6\).*\(images, 7\)"):
        Trainer(model, val)
    words = {**data["word_to_idx"], "sun": 11}
    with pytest.raises(ValueError, match="word_to_idx has 12 words; the model knows 11"):
        Trainer(model, {**data, "word_to_idx": words})
    words = {**data["word_to_idx"], "cat": 6, "dog": 5}
    with pytest.raises(ValueError, match="word_to_idx has 'cat' as 6; the model knows it as 5"):
        Trainer(model, {**data, "word_to_idx": words})
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
    assert metrics["bleu_1"] == pytest.approx(1.0)
    assert metrics["true_share"] == 0.75
    assert metrics["images"] == 5
    assert "true_share" not in evaluate(said, references)
    assert evaluate(["a"], [[]])["bleu_1"] is None
