"""Set the number of threads before any library is loaded, and record the machine."""

from __future__ import annotations

import os
import sys

import pytest

from bench import machine

LIMITS: list[object] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--threads",
        type=int,
        default=min(2, machine.processors()),
        help="number of threads for fastrnn and for NumPy's BLAS",
    )


def pytest_configure(config: pytest.Config) -> None:
    threads = config.getoption("--threads")
    if threads < 1:
        raise pytest.UsageError(f"--threads is {threads}; expected at least 1")
    late = "numpy" in sys.modules
    for name in machine.THREAD_VARIABLES:
        os.environ[name] = str(threads)
    if late:
        # another plugin has already loaded NumPy, so set the threads of its BLAS by a call
        try:
            import threadpoolctl
        except ImportError:
            raise pytest.UsageError(
                "NumPy was loaded before its number of threads could be set: install "
                "threadpoolctl, or run with OPENBLAS_NUM_THREADS set"
            ) from None
        LIMITS.append(threadpoolctl.threadpool_limits(threads))

    import fastrnn

    fastrnn.set_num_threads(threads)


def pytest_benchmark_update_machine_info(
    config: pytest.Config, machine_info: dict[str, object]
) -> None:
    # saved with every run; --benchmark-compare warns if it differs
    machine_info["fastrnn"] = machine.describe()
