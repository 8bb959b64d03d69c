"""Lines for a terminal: they fit its width and break between words.

Output that does not go to a terminal keeps its lines whole, so that it can be searched.
"""

from __future__ import annotations

import os
import re
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from . import environment

__all__ = [
    "columns",
    "duration",
    "fold",
    "in_notebook",
    "is_terminal",
    "say",
    "say_facts",
    "shown_path",
]

_GLUE = "\1"
"""Stands for a space at which a line is not broken."""
_LEAST = 20
"""Columns that a line is folded to at least; in fewer, hardly a word fits."""


def is_terminal(file: TextIO | None) -> bool:
    """Return whether a file is a terminal; standard streams may be None, or closed."""
    try:
        return file is not None and file.isatty()
    except (AttributeError, ValueError):
        return False


def in_notebook() -> bool:
    """Return whether the code runs in a cell of a notebook."""
    # Without IPython, or before it is imported, there is no notebook.
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return getattr(shell, "kernel", None) is not None


def columns(file: TextIO | None) -> int | None:
    """Return the width of a terminal in characters, or None if a file is not a terminal.

    The environment variable ``COLUMNS`` overrides it, as for ``--help``.
    """
    if not is_terminal(file):
        return None
    assert file is not None
    given = environment.value_of(environment.COLUMNS)
    if given.isdecimal() and int(given) > 0:
        return int(given)
    try:
        return os.get_terminal_size(file.fileno()).columns or None
    except (OSError, ValueError):
        return None


class _Wrapper(textwrap.TextWrapper):
    """Breaks lines at spaces, and at the null characters in words that are too long for one."""

    wordsep_simple_re = re.compile(r"( +)|\0")


def fold(text: str, width: int | None, indent: int = 0) -> str:
    """Break a line that is too long.

    Parameters
    ----------
    text : str
        A line. Parts that are separated by two spaces, such as a name with its value, stay whole
        if they fit into a line.
    width : int or None
        The largest number of characters in a line; None keeps the line as it is.
    indent : int, optional
        The number of spaces before all lines but the first.

    Returns
    -------
    str
        Words that are wider than `width` are broken after ``/`` and ``-``, as in paths.
    """
    if width is None or len(text) <= width:
        return text
    width = max(width, _LEAST)
    indent = min(indent, width // 4)
    room = width - indent
    glued = "  ".join(
        part.replace(" ", _GLUE) if len(part) <= room else part for part in text.split("  ")
    )
    broken = re.sub(
        rf"[^ ]{{{room + 1},}}", lambda word: re.sub(r"(?<=[/-])(?!$)", "\0", word[0]), glued
    )
    lines = _Wrapper(
        width, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False
    ).wrap(broken)
    return "\n".join(lines).replace(_GLUE, " ")


def say(text: str, indent: int = 2, file: TextIO | None = None) -> None:
    """Print a line at once, folded if it goes to a terminal; see `fold`."""
    file = sys.stdout if file is None else file
    print(fold(text, columns(file), indent), file=file, flush=True)


def say_facts(facts: Mapping[str, Any], width: int = 9) -> None:
    """Print a line for each fact: its name, padded to `width` characters, and its value."""
    for name, value in facts.items():
        say(f"{name:<{width}}{value}", indent=width)


def shown_path(path: str | os.PathLike[str]) -> str:
    """Return a path as it is typed: relative to the working directory, if it is in there."""
    try:
        return str(Path(path).absolute().relative_to(Path.cwd()))
    except (OSError, ValueError):
        return os.fspath(path)


def duration(seconds: float) -> str:
    """Return a duration as minutes and seconds, with hours if there are any."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
