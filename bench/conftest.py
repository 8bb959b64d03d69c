"""Threads pinned before any library is loaded, and what the figures were measured on."""

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
        help="threads of fastrnn and of NumPy's BLAS alike",
    )


def pytest_configure(config: pytest.Config) -> None:
    threads = config.getoption("--threads")
    if threads < 1:
        raise pytest.UsageError(f"--threads is {threads}; expected at least 1")
    late = "numpy" in sys.modules
    for name in machine.THREAD_VARIABLES:
        os.environ[name] = str(threads)
    if late:
        # another plugin has loaded NumPy already: its BLAS must be told in person
        try:
            import threadpoolctl
        except ImportError:
            raise pytest.UsageError(
                "NumPy was loaded before its threads could be pinned: install threadpoolctl, "
                "or run with OPENBLAS_NUM_THREADS set"
            ) from None
        LIMITS.append(threadpoolctl.threadpool_limits(threads))

    import fastrnn

    fastrnn.set_num_threads(threads)


def pytest_benchmark_update_machine_info(
    config: pytest.Config, machine_info: dict[str, object]
) -> None:
    # kept with every saved run; --benchmark-compare warns when it differs
    machine_info["fastrnn"] = machine.describe()
