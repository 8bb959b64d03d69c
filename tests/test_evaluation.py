"""Captions and their metrics."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
from coco_layout import write_layout

from fastrnn.classifiers.rnn import CaptioningRNN, CaptioningWorkspace
from fastrnn.coco_utils import read_captioning_directory
from fastrnn.data.scenes.dataset import write_scenes
from fastrnn.decoding import Decoded, beam_search
from fastrnn.evaluation import (
    Evaluator,
    caption_images,
    decode_images,
    evaluate,
    find_references,
    longest_caption,
    perplexity,
    references_of,
    shorten,
    shown_perplexity,
    truth_of,
)
from fastrnn.metrics import CaptionScorer
from fastrnn.training import TrainConfig, Trainer, start_model
from fastrnn.training.validation import Validation


@pytest.fixture
def data(tmp_path: Path) -> dict:
    write_layout(tmp_path)
    return read_captioning_directory(tmp_path)


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


def trained(data: dict) -> CaptioningRNN:
    model = start_model(data, "lstm", 8, 16)
    Trainer(model, data, TrainConfig(epochs=20, learning_rate=0.02, val_images=0)).fit()
    return model


def test_evaluator(data):
    """Some of the images, one of them without references."""
    model = trained(data)
    references = references_of(data)
    references[3] = []
    evaluator = Evaluator(data, images=[4, 3, 0], references=references)
    assert (evaluator.judged, evaluator.missing) == ([0, 2], None)
    captions = evaluator.caption(model, 8)
    assert captions == caption_images(model, data["val_features"][[4, 3, 0]], 8)
    scorer = CaptionScorer([references[4], references[0]])
    judged = [captions[0], captions[2]]
    assert evaluator.score(captions) == scorer.evaluate(judged)
    assert evaluator.score(captions, rouge=False)["rouge_l"] is None
    first, none, last = evaluator.cider(captions)
    assert none is None
    assert [first, last] == scorer.cider(judged)[1].tolist()
    with pytest.raises(ValueError, match="captions has 2 entries; expected 3"):
        evaluator.score(judged)
    empty = Evaluator(data, images=[3], references=references)
    assert empty.score(["a"]) == dict.fromkeys(evaluator.score(captions))
    assert empty.missing == "no captions to compare with"


def test_options_of_decoding(data):
    model, evaluator = trained(data), Evaluator(data)
    options = {"length_penalty": 0.0, "no_repeat_ngram": None, "suppress_unk": False}
    beam = evaluator.decode(model, 8, beam=3, **options)
    wanted = beam_search(model, data["val_features"], 3, 8, length_penalty=0.0)
    np.testing.assert_array_equal(beam.ids, wanted.ids)
    default = beam_search(model, data["val_features"], 3, 8)
    assert not np.array_equal(wanted.scores, default.scores), "0 is not the default"
    captions = evaluator.caption(model, 8, beam=3, suppress_unk=True)
    decoded = beam_search(model, data["val_features"], 3, 8, suppress_unk=True)
    assert captions == [best[0] for best in decoded.captions(model.idx_to_word)]


@pytest.mark.parametrize("beam", [1, 3])
@pytest.mark.parametrize("at_once", [1, 7, 50, 10**6])
def test_blocks_change_no_bit(data, monkeypatch, beam, at_once):
    """Whatever the size of the blocks, and with or without a bar."""
    model = trained(data)
    rng = np.random.default_rng(0)
    features = rng.standard_normal((73, data["val_features"].shape[1])).astype(np.float32)
    wanted = beam_search(model, features, beam, 9, suppress_unk=True)
    monkeypatch.setattr("fastrnn.evaluation._ROWS_AT_ONCE", max(at_once, 5 * beam))
    calls = []
    found = decode_images(
        model, features, 9, beam=beam, progress=lambda done, total: calls.append((done, total))
    )
    for field in dataclasses.fields(Decoded):
        found_field, wanted_field = getattr(found, field.name), getattr(wanted, field.name)
        np.testing.assert_array_equal(found_field, wanted_field)
    assert calls[0] == (0, 73)
    assert calls[-1] == (73, 73)
    assert sorted(calls) == calls
    assert len(calls) == 2 + (at_once < 73 * beam and 73 * beam // max(at_once, 5 * beam) - 1)
    assert decode_images(model, features[:0]).ids.shape == (0, 1, 30)


def test_unknown_words_and_empty_captions_are_off_by_default(data):
    model = trained(data)
    evaluator = Evaluator(data)
    model.params["b_vocab"][data["word_to_idx"]["<UNK>"]] += 50
    model.params["b_vocab"][data["word_to_idx"]["<END>"]] += 20
    assert all(len(caption.split()) == 1 for caption in evaluator.caption(model, 8))
    assert not any("<UNK>" in caption for caption in evaluator.caption(model, 8))
    assert evaluator.caption(model, 8) == caption_images(model, data["val_features"], 8)
    asked = evaluator.caption(model, 8, suppress_unk=False)
    assert asked == [" ".join(["<UNK>"] * 8)] * len(asked)
    assert set(evaluator.caption(model, 8, min_length=0)) == {""}


def test_validation_during_training_is_what_evaluate_measures(data):
    model = trained(data)
    config = TrainConfig(val_images=1000)
    found, captions = Validation(data, config).measure(model, CaptioningWorkspace())
    evaluator = Evaluator(data)
    wanted = evaluator.caption(model, longest_caption(data))
    assert captions == wanted
    assert found["bleu_4"] == evaluator.score(wanted)["bleu_4"]


def test_shorten(data):
    model = trained(data)
    long = decode_images(model, data["val_features"], 12)
    short, wanted = shorten(long, 3), decode_images(model, data["val_features"], 3)
    np.testing.assert_array_equal(short.ids, wanted.ids)
    for name in ("word_log_probs", "log_probs"):
        np.testing.assert_allclose(getattr(short, name), getattr(wanted, name), rtol=1e-5)
    assert np.count_nonzero(long.ids[:, :, 3:]) > 0


def test_measures_with_and_without_an_evaluator(data):
    """An evaluator has counted the n-grams of the references once; the results are the same."""
    evaluator = Evaluator(data)
    captions = evaluator.caption(trained(data), 8)
    true = [True, *[False] * (len(captions) - 1)]
    for marks in (None, true):
        assert evaluator.evaluate(captions, marks) == evaluate(
            captions, evaluator.references, marks
        )
    assert evaluator.evaluate(captions, true)["true_share"] == 1 / len(captions)
    assert evaluator.evaluate(captions)["distinct_captions"] == len(set(captions))


def test_perplexity():
    assert perplexity(None) is None
    assert perplexity(math.log(7)) == pytest.approx(7)
    assert math.isfinite(perplexity(1e6))


def test_a_perplexity_of_any_size_is_short_text():
    assert [shown_perplexity(value) for value in (1.0, 23.456, 999999.0)] == [
        "1.00", "23.46", "999999.00"
    ]  # fmt: skip
    assert shown_perplexity(perplexity(1e6)) == "1.01e+304"


def test_truth_of_scenes(tmp_path):
    assert truth_of(tmp_path, 3) is None
    write_scenes(tmp_path, 2, 3, seed=0)
    assert truth_of(tmp_path, 4) is None, "of other images"
    true = truth_of(tmp_path, 3)
    for image, known in enumerate(references_of(read_captioning_directory(tmp_path))):
        assert all(true(image, caption) for caption in known)
        assert not true(image, "a purple tree")


def test_where_references_come_from(data, tmp_path):
    known, source = find_references(data, tmp_path)
    assert (known, source) == (
        references_of(data), "coco2014_captions.h5 (cut at 7 words, rare words <UNK>)",
    )  # fmt: skip
    beside, other = [["a"]] * 5, [["b"]] * 5
    (tmp_path / "val_references.json").write_text(json.dumps(beside))
    assert find_references(data, tmp_path) == (beside, str(tmp_path / "val_references.json"))
    (tmp_path / "other.json").write_text(json.dumps(other))
    assert find_references(data, tmp_path, "val", tmp_path / "other.json")[0] == other
