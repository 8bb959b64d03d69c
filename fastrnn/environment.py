"""The environment variables that fastrnn reads, and what it says about values that it refuses."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

DATA = "FASTRNN_DATA"
"""Names a data directory, where none is given (`fastrnn.data.layout.named_directory`)."""
INSTRUCTION_SET = "FASTRNN_MAX_ISA"
"""The highest instruction set to use; ``src_c/dispatch.c`` knows their names."""
THREADS = ("FASTRNN_NUM_THREADS", "OMP_NUM_THREADS")
"""The number of threads: of those that are set, the first counts."""
COLUMNS = "COLUMNS"
"""The width of the terminal (`fastrnn.terminal.columns`)."""
_SPINS = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


def value_of(name: str) -> str:
    """Return the value of a variable; it is "" if the variable is not set."""
    return os.environ.get(name, "")


def refusal(name: str, expected: str) -> str:
    """Return what is said about the value of a variable that is none of the expected ones."""
    return f"{name} is {value_of(name)!r}; expected {expected}"


def threads() -> int | None:
    """Return the number of threads that the environment asks for, or None.

    Raises
    ------
    ImportError
        A variable does not hold a number of threads, even if another one counts.
    """
    counts = []
    for name in THREADS:
        # OMP_NUM_THREADS may be a comma-separated list, with one number per nesting level
        first = value_of(name).split(",")[0].strip()
        if not first:
            continue
        if not first.isdecimal() or not 1 <= int(first) <= 1024:
            # `python -m fastrnn` prints an error that names the package in one line
            expected = "a number of threads, 1 to 1024"
            raise ImportError(refusal(name, expected), name=__package__)
        counts.append(int(first))
    return counts[0] if counts else None


@contextlib.contextmanager
def short_spins() -> Iterator[None]:
    """Let a libgomp that is loaded now have threads that soon sleep; a user's setting counts.

    It reads these variables once, when it is loaded. By default, its threads spin for a few
    milliseconds after each call, which slows down the code that runs next, including NumPy's
    threads. With this spin count they sleep after a few tenths of a millisecond.
    """
    if any(name in os.environ for name in _SPINS):
        yield
        return
    os.environ[_SPINS[0]] = "10000"
    try:
        yield
    finally:
        del os.environ[_SPINS[0]]
