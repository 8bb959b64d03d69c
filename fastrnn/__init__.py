"""CS231n's NumPy RNN captioning code, with the same names and its hot loops in Cython and C.

To use it in a course notebook, replace ``cs231n`` with ``fastrnn`` in the imports. The modules
are `rnn_layers`, `layers`, `optim`, `classifiers.rnn`, `captioning_solver`, `coco_utils`,
`image_utils` and `gradient_check`. `fastrnn.reference` has the same layers in plain NumPy.
"""

from __future__ import annotations

import os as _os
from operator import index as _index

#: The version of the package.
__version__ = "0.1.0"

try:
    # libgomp reads these variables once, when it is loaded. By default, its threads spin for a few
    # milliseconds after each call, which slows down the code that runs next, including NumPy's
    # threads. With this spin count they sleep after a few tenths of a millisecond.
    _spin_count = None
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & _os.environ.keys():
        _spin_count = _os.environ["GOMP_SPINCOUNT"] = "10000"
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
finally:
    if _spin_count is not None:
        del _os.environ["GOMP_SPINCOUNT"]

from .checks import ArgumentError as _ArgumentError

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
    cap = _os.environ.get("FASTRNN_MAX_ISA") or None
    if not _runtime.choose_isa(cap):
        raise ImportError(
            f"FASTRNN_MAX_ISA is {cap!r}; expected baseline, avx2, avx512 or avx512_bf16"
        )
    try:
        count = len(_os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        count = _os.cpu_count() or 1
    for name in ("OMP_NUM_THREADS", "FASTRNN_NUM_THREADS"):
        # OMP_NUM_THREADS may be a comma-separated list, with one number per nesting level
        value = _os.environ.get(name, "").split(",")[0].strip()
        if value:
            if not value.isdecimal() or not 1 <= int(value) <= 1024:
                raise ImportError(f"{name} is {value!r}; expected a number of threads, 1 to 1024")
            count = int(value)
    set_num_threads(count)


_start()
