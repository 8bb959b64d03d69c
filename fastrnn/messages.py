"""What several modules tell a user: what a mistyped word may mean, and warnings."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path

_PACKAGE = str(Path(__file__).parent) + os.sep


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return "; did you mean X?" for the most similar of some words, or nothing."""
    from difflib import get_close_matches

    # Without their dashes, which would make all options similar.
    bare = {name.lstrip("-"): name for name in known}
    found = get_close_matches(word.lstrip("-"), bare, 1, cutoff=0.65)
    return "".join(f"; did you mean {bare[name]}?" for name in found)


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn about the line, outside the package, that called it."""
    frame, level = sys._getframe(), 1
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)
