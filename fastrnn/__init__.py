"""CS231n's NumPy RNN captioning code, with the same names and its hot loops in Cython and C.

To use it in a course notebook, replace ``cs231n`` with ``fastrnn`` in the imports. The modules
are `rnn_layers`, `layers`, `optim`, `classifiers.rnn`, `captioning_solver`, `coco_utils`,
`image_utils` and `gradient_check`. `fastrnn.reference` has the same layers in plain NumPy.
"""

from __future__ import annotations

import os as _os
from operator import index as _index

from . import environment as _environment
from .checks import ArgumentError as _ArgumentError

#: The version of the package.
__version__ = "0.1.0"

# An error, before OpenMP's runtime would print one of its own.
_threads = _environment.threads()
try:
    with _environment.short_spins():
        # This module is linked with libgomp; runtime is not. If it is missing, this form of import
        # raises ModuleNotFoundError; "from ._core import products" would raise a plain ImportError.
        import fastrnn._core.products as _products  # noqa: F401
        import fastrnn._core.runtime as _runtime
except ModuleNotFoundError as _error:
    if _error.name is None or not _error.name.startswith("fastrnn._core"):
        raise
    raise ImportError(
        "fastrnn is not built here: its compiled core is missing. Run "
        "`python -m pip install -e .` in the directory of setup.py (needs a C compiler), or change "
        "to another directory to import an installed fastrnn."
    ) from None

__all__ = ["__version__", "get_num_threads", "set_num_threads"]


def set_num_threads(count: int) -> None:
    """Set the number of threads that large operations use.

    Results are bit-identical for any number of threads.

    Parameters
    ----------
    count : int
        Number of threads, 1 to 1024.

    Raises
    ------
    TypeError
        If `count` is not an integer.
    ValueError
        If `count` is not in 1..1024.
    """
    if isinstance(count, bool) or not hasattr(count, "__index__"):
        raise TypeError(f"count is {count!r}; expected an integer")
    count = _index(count)  # once: what is checked is what is used
    if count < 1 or count > 1024:
        raise _ArgumentError("count", f"is {count}; expected 1 to 1024 threads")
    _runtime.set_threads(count)


def get_num_threads() -> int:
    """Return the number of threads that large operations use.

    The initial value is the environment variable FASTRNN_NUM_THREADS, else OMP_NUM_THREADS, else
    the number of processors available to this process. It is 1 in a build without OpenMP and in a
    child process made by ``os.fork()``.

    Returns
    -------
    int
        The number of threads.
    """
    return _runtime.get_threads()


def _start() -> None:
    """Set the instruction set and the number of threads from the environment, at import."""
    cap = _environment.value_of(_environment.INSTRUCTION_SET) or None
    if not _runtime.choose_isa(cap):
        expected = "baseline, avx2, avx512 or avx512_bf16"
        raise ImportError(
            _environment.refusal(_environment.INSTRUCTION_SET, expected), name=__name__
        )
    count = _threads
    if count is None:
        try:
            count = len(_os.sched_getaffinity(0))
        except AttributeError:  # not on macOS and Windows
            count = _os.cpu_count() or 1
    set_num_threads(count)


_start()
