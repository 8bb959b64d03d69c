"""The former name of `fastrnn.data.scenes.language`."""

from .scenes.language import (
    NUMBERS,
    RELATIONS,
    SPOTS,
    Claim,
    Count,
    Listing,
    Naming,
    Place,
    Relation,
    Thing,
    caption_is_true,
    describe,
    parse_caption,
    related,
    within,
    words_of_the_language,
)

__all__ = [
    "NUMBERS",
    "RELATIONS",
    "SPOTS",
    "Claim",
    "Count",
    "Listing",
    "Naming",
    "Place",
    "Relation",
    "Thing",
    "caption_is_true",
    "describe",
    "parse_caption",
    "related",
    "within",
    "words_of_the_language",
]
