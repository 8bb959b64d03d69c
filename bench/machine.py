"""Describe the machine: processor, libraries, load by other programs, and peak FLOP/s."""

from __future__ import annotations

import os
import platform
import threading
import time
from pathlib import Path

# Environment variables that the libraries of the contenders read when they are loaded.
THREAD_VARIABLES = (
    "FASTRNN_NUM_THREADS",
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NPROC",  # XLA's pool of workers
)

# What the libraries of the contenders read to keep to an instruction set, when they are loaded.
ISA_VARIABLES = {
    "avx2": {
        "FASTRNN_MAX_ISA": "avx2",
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "OPENBLAS_CORETYPE": "Haswell",
        "XLA_FLAGS": "--xla_cpu_max_isa=AVX2",
    },
}


def processors() -> int:
    """Return the number of processors available to this process."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        return os.cpu_count() or 1


def processor_name() -> str:
    """Return the model name of the processor."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def busy_seconds() -> float | None:
    """Return the CPU seconds used on this machine since boot, or None if unknown."""
    try:
        fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    except OSError:
        return None
    user, nice, system, _idle, _iowait, irq, softirq, steal = (int(f) for f in fields[:8])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def own_seconds() -> float:
    """Return the CPU seconds used by this process and its children that have ended."""
    import resource

    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(sum(resource.getrusage(kind)[:2]) for kind in kinds)


class Others:
    """Measure how many processors other programs keep busy, from now on."""

    def __init__(self) -> None:
        self.busy, self.start = busy_seconds(), time.perf_counter()
        self.own = own_seconds() if self.busy is not None else 0.0

    def average(self) -> float | None:
        """Return the average number of processors that other programs kept busy, or None.

        The time of a child process counts as our own only after it has ended. None means that the
        system does not report it.
        """
        busy = busy_seconds()
        if busy is None or self.busy is None:
            return None
        theirs = busy - self.busy - (own_seconds() - self.own)
        return max(0.0, theirs / (time.perf_counter() - self.start))


def describe() -> dict[str, object]:
    """Return what the results depend on: CPU, instruction set, threads, NumPy and its BLAS."""
    import numpy as np

    import fastrnn
    from fastrnn._core import runtime

    blas = np.show_config(mode="dicts")["Build Dependencies"].get("blas", {})
    return {
        "cpu": processor_name(),
        "processors": processors(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "fastrnn": fastrnn.__version__,
        "isa": runtime.isa(),
        "threads": fastrnn.get_num_threads(),
        "numpy": np.__version__,
        "blas": f"{blas.get('name', 'unknown')} {blas.get('version', '')}".strip(),
    }


def fma_peak(dtype: str, threads: int, seconds: float = 0.1, repeats: int = 5) -> float:
    """Measure the peak rate of fused multiply-adds (FMA) on registers.

    Parameters
    ----------
    dtype : {'float32', 'float64', 'bfloat16'}
        dtype of the registers. With bfloat16, the sums are float32.
    threads : int
        Number of threads that run at the same time.
    seconds : float, optional
        Approximate duration of one run. Default 0.1.
    repeats : int, optional
        Number of runs; the fastest counts. Default 5.

    Returns
    -------
    float
        Total FLOP/s of all threads. A multiply-add counts as two operations.
    """
    from fastrnn._core import runtime

    size = {"bfloat16": 2, "float32": 4, "float64": 8}[dtype]
    rounds = 100_000
    while True:
        start = time.perf_counter()
        runtime.fma_flops(size, rounds)
        taken = time.perf_counter() - start
        if taken > 0.01:
            break
        rounds *= 4
    rounds = max(1, int(rounds * seconds / taken))

    best = 0.0
    for _ in range(repeats):
        together = threading.Barrier(threads)
        spans: list[tuple[float, float, float]] = []

        def run(together: threading.Barrier = together, spans: list = spans) -> None:
            together.wait()
            start = time.perf_counter()
            flops = runtime.fma_flops(size, rounds)
            spans.append((start, time.perf_counter(), flops))

        workers = [threading.Thread(target=run) for _ in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        starts, ends, flops = zip(*spans, strict=True)
        best = max(best, sum(flops) / (max(ends) - min(starts)))
    return best
