"""The special words of a vocabulary, and captions as text without them."""

from __future__ import annotations

__all__ = ["END", "NULL", "SPECIAL_WORDS", "START", "UNK", "strip_end", "strip_start_and_end"]

NULL = "<NULL>"
"""Padding: fills a row of word ids after the caption."""
START = "<START>"
"""The first word of every caption."""
END = "<END>"
"""The last word of a complete caption."""
UNK = "<UNK>"
"""Replaces a word that is not in the vocabulary."""

SPECIAL_WORDS = (NULL, START, END, UNK)
"""In the order of their ids in data sets that this package writes."""


def strip_end(caption: str) -> str:
    """Remove the ``<END>`` of a decoded caption: what a model generated has no ``<START>``."""
    return caption.removesuffix(END).strip()


def strip_start_and_end(caption: str) -> str:
    """Remove the ``<START>`` and the ``<END>`` of a decoded caption of a data set."""
    return caption.removeprefix(START).removesuffix(END).strip()
