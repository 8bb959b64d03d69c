"""The trainer against a plain loop over the NumPy twin, its records and its signals."""

from __future__ import annotations

import math
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from coco_layout import write_layout
from training_helpers import recorder, untimed

import fastrnn.reference.optim as reference_optim
from fastrnn.checkpoint import checkpoint_steps
from fastrnn.classifiers.rnn import CaptioningRNN, Regularisation
from fastrnn.coco_utils import read_captioning_directory
from fastrnn.evaluation import caption_images, references_of
from fastrnn.metrics import CaptionScorer
from fastrnn.reference.classifier import CaptioningRNN as ReferenceRNN
from fastrnn.reference.decoding import sample as reference_sample
from fastrnn.rewards import CiderReward
from fastrnn.runs import epoch_records, step_records
from fastrnn.training import Interrupted, TrainConfig, Trainer, start_model
from fastrnn.training.start import feature_scale


@pytest.fixture
def data(tmp_path: Path) -> dict:
    write_layout(tmp_path)
    return read_captioning_directory(tmp_path)


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
            for row in reference_sample(
                plain, features[images], 8, count=3, seed=seed, min_length=0
            )
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
    rewards = [record["reward"] for record in epoch_records(history) if "reward" in record]
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
    assert epoch_records(history) == records
    assert [r["epoch"] for r in records] == [1, 2, 3]
    # Four steps an epoch: a record every three steps, and one for what is left of the epoch.
    steps = [r["step"] for r in step_records(history)]
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
    said = caption_images(model, data["train_features"], suppress_unk=False)
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
    with pytest.raises(ValueError, match="word_to_idx has 12 words; expected 11, as in the model"):
        Trainer(model, {**data, "word_to_idx": words})
    words = {**data["word_to_idx"], "cat": 6, "dog": 5}
    with pytest.raises(ValueError, match="word_to_idx has 'cat' as 6; expected 5, as in the model"):
        Trainer(model, {**data, "word_to_idx": words})
    with pytest.raises(ValueError, match="train_captions has shape"):
        Trainer(model, {**data, "train_captions": data["train_captions"][:0]})


def test_callbacks(data):
    """Functions first, then objects in their order; an object may have some of the methods."""
    told: list[tuple] = []

    class Steps:
        def on_step(self, trainer: Trainer, record: dict) -> None:
            told.append(("object", record["step"]))

    class Epochs:
        def on_epoch(self, trainer: Trainer, record: dict) -> None:
            told.append(("epoch", record["epoch"], record is trainer.history[-1]))

        def on_validation(self, trainer: Trainer, metrics: dict, captions: list) -> None:
            told.append(("validation", metrics["loss"], len(captions)))

    trainer = Trainer(
        start_model(data, "rnn", 4, 5), data, TrainConfig(epochs=1, batch_size=18),
        on_step=lambda _, record: told.append(("function", record["step"])),
        callbacks=[Epochs(), Steps()],
    )  # fmt: skip
    trainer.fit()
    assert told == [
        ("function", 1), ("object", 1), ("function", 2), ("object", 2),
        ("validation", trainer.history[-1]["val_loss"], 5), ("epoch", 1, True),
    ]  # fmt: skip


@pytest.mark.parametrize("config", [{"epochs": 1}, 3, "coco"])
def test_a_configuration_of_another_type_is_refused(data, config):
    model = start_model(data, "rnn", 4, 5)
    with pytest.raises(TypeError, match=f"^config is {type(config).__name__}; expected a TrainCon"):
        Trainer(model, data, config)
