"""CIDEr-D of word ids against pycocoevalcap's CIDEr-D of the same words."""

from __future__ import annotations

import numpy as np
import pytest

from fastrnn import rewards
from fastrnn._core import runtime
from fastrnn.rewards import CiderReward

WORDS = ["<NULL>", "<START>", "<END>", "<UNK>", *"abcdefgh"]
WORD_TO_IDX = {word: i for i, word in enumerate(WORDS)}


def some_captions(rng, count, longest=9, start=True):
    """Draw captions that start with <START>; some have no <END>, some have no words."""
    captions = np.zeros((count, longest + 2), np.int64)
    captions[:, 0] = 1
    for row in captions:
        words = rng.integers(0, longest + 1)
        # draw small ids often, so that n-grams repeat
        row[1 : words + 1] = 3 + np.minimum(rng.geometric(0.35, words) - 1, len(WORDS) - 4)
        if rng.random() < 0.8:
            row[words + 1] = 2
    return captions if start else captions[:, 1:]


def text(ids, unknown="<UNK>"):
    return " ".join(unknown if i == 3 else WORDS[i] for i in ids if i > 1)


def package_scores(candidates, images, references, image_idxs, leave_out=None):
    """Return pycocoevalcap's CIDEr-D of candidates, with document frequencies over all images.

    If given, leave_out has one reference per candidate that it is not compared with.
    """
    scorer_module = pytest.importorskip("pycocoevalcap.cider.cider_scorer")
    cooked = [scorer_module.precook(text(c, "?"), 4) for c in references]
    scorer = scorer_module.CiderScorer(n=4)
    known = np.unique(image_idxs)
    scorer.crefs = [[cooked[i] for i in np.flatnonzero(image_idxs == k)] for k in known]
    scorer.compute_doc_freq()
    scores = []
    for number, (candidate, image) in enumerate(zip(candidates, images, strict=True)):
        against = np.flatnonzero(image_idxs == image)
        if leave_out is not None:
            against = np.setdiff1d(against, leave_out[number])
        scorer.ctest = [scorer_module.cook_test(text(candidate), 4)]
        # the scorer takes the number of images from the length of crefs
        scorer.crefs = [[cooked[i] for i in against]] + [[]] * (len(known) - 1)
        scores += scorer.compute_cider()
    return np.array(scores)


def test_rewards_are_the_packages_cider(rng):
    references, image_idxs = some_captions(rng, 150), rng.permutation(np.arange(150) % 40)
    image_idxs[image_idxs == 7] = 8  # an image without captions
    reward = CiderReward(references, image_idxs, 41, WORD_TO_IDX)
    images = rng.choice(np.setdiff1d(np.arange(40), 7), 200)
    ids = some_captions(rng, 200, 12, start=False)
    found = reward(ids, images)
    assert found.dtype == np.float64
    np.testing.assert_allclose(
        found, package_scores(ids, images, references, image_idxs), rtol=1e-10, atol=1e-12
    )
    assert found.max() > 1
    np.testing.assert_array_equal(reward(ids[:2], np.array([7, 40])), 0)


def test_unfinished_caption_scores_less_than_the_reference_itself():
    words = {word: i for i, word in enumerate(WORDS)}
    captions = np.array([[1, 4, 5, 6, 7, 2], [1, 8, 9, 10, 11, 2]])
    reward = CiderReward(captions, np.array([0, 1]), 2, words)
    whole, broken, other, empty = reward(
        np.array([[4, 5, 6, 7, 2], [4, 5, 6, 7, 0], [8, 9, 10, 11, 2], [0, 0, 0, 0, 0]]),
        np.zeros(4, int),
    )
    assert whole == pytest.approx(10)
    assert 0 < broken < whole
    # every image has captions with <END>, so its idf is 0
    assert other == 0
    assert empty == 0


def test_unknown_words_match_nothing():
    captions = np.array([[1, 3, 4, 2], [1, 5, 6, 2]])
    reward = CiderReward(captions, np.array([0, 1]), 2, WORD_TO_IDX)
    unknown, known = reward(np.array([[3, 3, 2], [5, 4, 2]]), np.zeros(2, int))
    assert unknown == 0
    assert known > 0


def test_agreement_leaves_the_caption_itself_out(rng):
    references, image_idxs = some_captions(rng, 60), np.arange(60) % 13
    image_idxs[5] = 13  # the only caption of its image
    found = CiderReward(references, image_idxs, 14, WORD_TO_IDX).agreement()
    rest = np.setdiff1d(np.arange(60), 5)
    wanted = package_scores(references[rest], image_idxs[rest], references, image_idxs, rest)
    np.testing.assert_allclose(found[rest], wanted, rtol=1e-10, atol=1e-12)
    assert found[5] == pytest.approx(wanted.mean())


def test_agreement_in_chunks(rng, monkeypatch):
    references, image_idxs = some_captions(rng, 60), np.arange(60) % 13
    whole = CiderReward(references, image_idxs, 13, WORD_TO_IDX).agreement()
    monkeypatch.setattr("fastrnn.rewards._ROWS", 7)
    found = CiderReward(references, image_idxs, 13, WORD_TO_IDX).agreement()
    np.testing.assert_allclose(found, whole, rtol=1e-13)


@pytest.mark.parametrize("bound", [200, 1 << 62])
def test_n_grams_are_numbered_as_numpy_does(rng, bound):
    keys = rng.integers(0, 200, 1000)
    wanted = np.unique(keys, return_inverse=True)
    numbers, scratch = np.empty(1000, np.int32), np.empty((2, 1000), np.int32)
    values = rewards._number(keys.copy(), bound, numbers, scratch)
    np.testing.assert_array_equal(values, wanted[0])
    np.testing.assert_array_equal(numbers, wanted[1])


def test_chunks_and_threads_change_no_bit(rng, monkeypatch):
    captions, images = some_captions(rng, 200), rng.integers(0, 40, 200)
    whole = CiderReward(captions, images, 40, WORD_TO_IDX).agreement()
    monkeypatch.setattr(rewards, "_ROWS", 7)
    monkeypatch.setattr(rewards, "_IMAGES", 3)
    for threads in (1, 3):
        monkeypatch.setattr(runtime, "get_threads", lambda threads=threads: threads)
        again = CiderReward(captions, images, 40, WORD_TO_IDX)
        np.testing.assert_array_equal(again.agreement(), whole)


def test_nothing_to_compare_with():
    reward = CiderReward(np.zeros((0, 5), int), np.zeros(0, int), 3, WORD_TO_IDX)
    np.testing.assert_array_equal(reward(np.array([[4, 2]]), np.array([1])), 0)
    assert reward.agreement().shape == (0,)


def test_errors():
    captions = np.ones((3, 4), int)
    with pytest.raises(ValueError, match=r"image_idxs has shape \(2,\); expected an image for"):
        CiderReward(captions, np.zeros(2, int), 3, WORD_TO_IDX)
    with pytest.raises(IndexError, match="image_idxs has 3; expected images from 0 to 2"):
        CiderReward(captions, np.array([0, 1, 3]), 3, WORD_TO_IDX)
    with pytest.raises(ValueError, match="word_to_idx has 60000 words"):
        CiderReward(captions, np.zeros(3, int), 3, {str(i): i for i in range(60000)})
