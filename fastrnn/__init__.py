"""CS231n's NumPy RNN captioning code, name for name, with its hot loops in Cython and C.

Replace ``cs231n`` by ``fastrnn`` in the imports of a notebook; see the modules `rnn_layers`,
`layers`, `optim`, `classifiers.rnn`, `captioning_solver`, `coco_utils`, `image_utils` and
`gradient_check`. `fastrnn.reference` holds the same layers in plain NumPy.
"""

from __future__ import annotations

import os as _os

__version__ = "0.1.0"

try:
    # libgomp reads these once, when it is loaded. Its threads would spin for some milliseconds
    # after each call and so slow down what runs next, NumPy's own threads included; this lets them
    # sleep after some tenths of a millisecond.
    _patience = None
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & _os.environ.keys():
        _patience = _os.environ["GOMP_SPINCOUNT"] = "10000"
    # unlike "from ._core import runtime", a ModuleNotFoundError where it is missing
    import fastrnn._core.runtime as _runtime
except ModuleNotFoundError as _error:
    if _error.name is None or not _error.name.startswith("fastrnn._core"):
        raise
    raise ImportError(
        "fastrnn is not built here: its compiled core is missing. Run "
        "`python -m pip install -e .` in the folder of setup.py (a C compiler is needed), or leave "
        "that folder to import an installed fastrnn."
    ) from None
finally:
    if _patience is not None:
        del _os.environ["GOMP_SPINCOUNT"]


def set_num_threads(count: int) -> None:
    """Set how many threads the large operations use from now on.

    Results do not depend on it, to the last bit.

    Parameters
    ----------
    count : int
        At least 1.

    Raises
    ------
    TypeError
        If `count` is not an integer.
    ValueError
        If `count` is less than 1.
    """
    if isinstance(count, bool) or not hasattr(count, "__index__"):
        raise TypeError(f"count is {count!r}; expected an integer")
    if count < 1 or count > 1024:
        raise ValueError(f"count is {count}; expected 1 to 1024 threads")
    _runtime.set_threads(count)


def get_num_threads() -> int:
    """Return how many threads the large operations use.

    At the start it is the first of FASTRNN_NUM_THREADS, OMP_NUM_THREADS and the number of
    processors that this process may use. It is 1 in a build without OpenMP, and in a child of
    ``os.fork()``.
    """
    return _runtime.get_threads()


def _start() -> None:
    """Choose the instruction set and the number of threads by the environment, once."""
    cap = _os.environ.get("FASTRNN_MAX_ISA") or None
    if not _runtime.choose_isa(cap):
        raise ImportError(f"FASTRNN_MAX_ISA is {cap!r}; expected baseline, avx2 or avx512")
    try:
        count = len(_os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        count = _os.cpu_count() or 1
    for name in ("OMP_NUM_THREADS", "FASTRNN_NUM_THREADS"):
        # OMP_NUM_THREADS may be a list, a number for each level of nesting
        value = _os.environ.get(name, "").split(",")[0].strip()
        if value:
            if not value.isdecimal() or not 1 <= int(value) <= 1024:
                raise ImportError(f"{name} is {value!r}; expected a number of threads, 1 to 1024")
            count = int(value)
    set_num_threads(count)


_start()
