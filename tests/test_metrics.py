"""BLEU against figures worked out by hand."""

from __future__ import annotations

import math

import pytest

from fastrnn.metrics import bleu_1


def test_clipped_precision_of_papineni():
    # Section 2.1 of the paper: 2 of the 7 words count, and the length is right.
    references = ["the cat is on the mat", "there is a cat on the mat"]
    assert bleu_1(["the the the the the the the"], [references]) == pytest.approx(2 / 7)


def test_brevity_penalty_of_the_corpus():
    # 2 + 4 words for 4 + 4 of the closest references, all of them right.
    candidates = ["a cat", "a dog runs off"]
    references = [["a cat sits down", "the cat is sitting down"], ["a dog runs off"]]
    assert bleu_1(candidates, references) == pytest.approx(math.exp(1 - 8 / 6))


def test_shorter_of_two_references_as_close():
    assert bleu_1(["a b c"], [["a b", "a b c d"]]) == 1.0


def test_perfect_and_empty():
    assert bleu_1(["a cat"], [["a dog", "a cat"]]) == 1.0
    assert bleu_1([""], [["a cat"]]) == 0.0
    assert bleu_1([], []) == 0.0


def test_unknown_word_matches_nothing():
    assert bleu_1(["a <UNK>"], [["a <UNK>"]]) == 0.5


def test_bad_input():
    with pytest.raises(ValueError, match="candidates has 1 entries, references 0"):
        bleu_1(["a"], [])
    with pytest.raises(ValueError, match=r"references\[1\] is empty"):
        bleu_1(["a", "b"], [["a"], []])
