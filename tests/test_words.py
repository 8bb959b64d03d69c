"""Captions as text, without the special words at their ends."""

import pytest

from fastrnn.words import END, NULL, SPECIAL_WORDS, START, UNK, strip_end, strip_start_and_end


def test_special_words_are_those_of_the_course_in_the_order_of_their_ids():
    assert SPECIAL_WORDS == ("<NULL>", "<START>", "<END>", "<UNK>") == (NULL, START, END, UNK)


@pytest.mark.parametrize(
    "caption, without_end, without_both",
    [
        ("<START> a dog <END>", "<START> a dog", "a dog"),
        ("a dog <END>", "a dog", "a dog"),
        ("<START> a dog", "<START> a dog", "a dog"),
        ("<START> <END>", "<START>", ""),
        ("<END>", "", ""),
        ("<START> a <UNK> dog", "<START> a <UNK> dog", "a <UNK> dog"),
        ("", "", ""),
        # Only the first and the last word are markers.
        ("<START> a <START> dog <END> <END>", "<START> a <START> dog <END>", "a <START> dog <END>"),
    ],
)
def test_strip(caption, without_end, without_both):
    assert strip_end(caption) == without_end
    assert strip_start_and_end(caption) == without_both
