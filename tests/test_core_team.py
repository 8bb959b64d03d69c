"""How threads share out the loops of the core (src_c/team.h), beside other programs too."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from equivalence import draw_captions, draw_model

import fastrnn
from fastrnn import rnn_layers
from fastrnn._core import runtime
from fastrnn.classifiers import rnn as classifier

OPENMP = pytest.mark.skipif(runtime.openmp() == 0, reason="a build without OpenMP")
AFFINITY = pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or not Path("/proc/self/task").is_dir(),
    reason="no affinity of threads here",
)
# rows for several chains a thread, and rows for which the threads divide the columns
CHAINS = {"N": 150, "T": 7, "D": 60, "H": 80, "V": 300, "M": 1, "W": 40}
COLUMNS = {"N": 12, "T": 7, "D": 60, "H": 256, "V": 300, "M": 1, "W": 40}


@pytest.fixture(autouse=True)
def number_of_threads() -> Iterator[None]:
    before = fastrnn.get_num_threads()
    yield
    fastrnn.set_num_threads(before)


@contextlib.contextmanager
def busy_processors() -> Iterator[None]:
    """Keep all processors busy with other programs."""
    program = [sys.executable, "-c", "while True: pass"]
    with contextlib.ExitStack() as stack:
        for _ in range(os.cpu_count() or 1):
            stack.callback(stack.enter_context(subprocess.Popen(program)).kill)
        yield


def step(sizes: dict, cell: str, dtype: type, precision: str = "float32"):
    """Return a function that does a training step and returns its results as bytes."""
    model, features, rng = draw_model(classifier, sizes, cell, dtype)
    model.precision = precision
    captions = draw_captions(sizes, rng)

    def loss() -> bytes:
        value, grads = model.loss(features, captions)
        return b"".join(np.asarray(a).tobytes() for a in (value, *grads.values()))

    return loss


def layer(sizes: dict, dtype: type):
    """Return a function that runs an LSTM layer forward and backward."""
    rng = np.random.default_rng(4)
    N, T, D, H = (sizes[name] for name in "NTDH")
    x, h0 = rng.standard_normal((N, T, D)).astype(dtype), np.zeros((N, H), dtype)
    Wx = 0.1 * rng.standard_normal((D, 4 * H)).astype(dtype)
    Wh = 0.1 * rng.standard_normal((H, 4 * H)).astype(dtype)
    lengths = rng.integers(0, T + 1, N)

    def both() -> bytes:
        out, cache = rnn_layers.lstm_forward(x, h0, Wx, Wh, np.ones(4 * H, dtype), lengths=lengths)
        grads = rnn_layers.lstm_backward(np.ones_like(out), cache)
        return b"".join(a.tobytes() for a in (out, *grads))

    return both


@OPENMP
@pytest.mark.parametrize("sizes", [CHAINS, COLUMNS], ids=["chains", "columns"])
def test_results_beside_busy_programs(sizes: dict) -> None:
    calls = [
        step(sizes, "lstm", np.float32),
        step(sizes, "rnn", np.float64),
        step(sizes, "lstm", np.float32, "bfloat16"),
        layer(sizes, np.float32),
    ]
    fastrnn.set_num_threads(1)
    wanted = [call() for call in calls]
    with busy_processors():
        for threads in (2, 3, 8):
            fastrnn.set_num_threads(threads)
            for _ in range(4):
                assert [call() for call in calls] == wanted, threads


@OPENMP
def test_more_threads_than_rows_words_and_shares() -> None:
    sizes = {"N": 3, "T": 4, "D": 5, "H": 200, "V": 700, "M": 1, "W": 6}
    calls = [step(sizes, "lstm", np.float32), step(CHAINS, "lstm", np.float32)]
    fastrnn.set_num_threads(1)
    wanted = [call() for call in calls]
    for threads in (7, 129, 300):  # a loop has up to 128 shares
        fastrnn.set_num_threads(threads)
        assert [call() for call in calls] == wanted, threads


def affinities() -> dict[int, set[int]]:
    """Return the processors that each thread of this process may use."""
    found = {}
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(ProcessLookupError):
            found[int(task.name)] = os.sched_getaffinity(int(task.name))
    return found


@OPENMP
@AFFINITY
def test_threads_are_free_again_after_a_step() -> None:
    allowed = os.sched_getaffinity(0)
    fastrnn.set_num_threads(len(allowed))
    step(CHAINS, "lstm", np.float32)()
    assert set(map(frozenset, affinities().values())) == {frozenset(allowed)}


BOUND = """
import json, os, sys, threading
import numpy as np, fastrnn
sys.path.insert(0, {tests!r})
from test_core_team import CHAINS, affinities, step
call = step({{**CHAINS, "N": 2000}}, "lstm", np.float32)
allowed = sorted(os.sched_getaffinity(0))
fastrnn.set_num_threads({threads})
call()  # the OpenMP library may look at each processor when it starts
seen, ends = set(), threading.Event()
def watch():
    while not ends.is_set():
        seen.update(tuple(sorted(cpus)) for cpus in affinities().values())
watcher = threading.Thread(target=watch)
watcher.start()
for _ in range(10):
    call()
ends.set()
watcher.join()
print(json.dumps([allowed, sorted(seen)]))
"""


@OPENMP
@AFFINITY
@pytest.mark.parametrize("other", [0, 1])
def test_threads_keep_to_processors_if_there_is_one_for_each(other: int) -> None:
    threads = len(os.sched_getaffinity(0)) + other
    if threads < 2:
        pytest.skip("one processor")
    code = BOUND.format(tests=str(Path(__file__).parent), threads=threads)
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    allowed, seen = json.loads(found.stdout)
    alone = [] if other else [[cpu] for cpu in allowed]
    assert seen == sorted([*alone, allowed])


@OPENMP
def test_teams_at_the_same_time() -> None:
    call = step(CHAINS, "lstm", np.float32)
    fastrnn.set_num_threads(2)
    wanted, wrong = call(), []

    def repeat() -> None:
        for _ in range(10):
            if call() != wanted:
                wrong.append(threading.current_thread().name)

    threads = [threading.Thread(target=repeat) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    if hasattr(os, "sched_getaffinity") and Path("/proc/self/task").is_dir():
        assert len(set(map(frozenset, affinities().values()))) == 1
