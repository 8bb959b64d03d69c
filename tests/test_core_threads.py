"""The core in programs of many threads and processes: the same bits, whoever calls and when."""

from __future__ import annotations

import concurrent.futures
import copy
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from equivalence import OPS, compiled, draw, draw_captions, draw_model, run

import fastrnn
from fastrnn import decoding
from fastrnn._core import kernels
from fastrnn.classifiers import rnn as classifier
from fastrnn.classifiers.rnn import CaptioningWorkspace

SIZES = {"N": 71, "T": 6, "D": 130, "H": 67, "V": 609, "M": 211, "W": 50}
SECONDS = float(os.environ.get("FASTRNN_SECONDS", "4"))
OPENMP = pytest.mark.skipif(kernels.openmp() == 0, reason="a build without OpenMP")
FORK = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork() here")
NO_WARNING = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def calls() -> dict:
    """One large call of everything, as functions without arguments that give bytes."""
    found = {}
    for name in OPS:
        arguments, gradients = draw(
            name, SIZES, np.float32, np.random.default_rng(7), name in ("rnn", "lstm")
        )

        def op(name=name, arguments=arguments, gradients=gradients):
            # optimisers change their weights: each call has its own; all else is shared
            own = {k: a.copy() if k == "w" else a for k, a in arguments.items()}
            return run(compiled, name, own, gradients)

        found[name] = op
    for cell in ("rnn", "lstm"):
        model, features, rng = draw_model(classifier, SIZES, cell, np.float32)
        captions = draw_captions(SIZES, rng)
        own = threading.local()

        def loss(m=model, f=features, c=captions, own=own):
            if not hasattr(own, "workspace"):
                own.workspace = CaptioningWorkspace()
            value, grads = m.loss(f, c, workspace=own.workspace)
            return [value, *grads.values()]

        found[f"loss {cell}"] = loss
        found[f"sample {cell}"] = lambda m=model, f=features: [m.sample(f, 6)]
        found[f"beam {cell}"] = lambda m=model, f=features: [
            decoding.beam_search(m, f, 3, 6).word_log_probs
        ]
    return {
        name: lambda call=call: b"".join(np.asarray(a).tobytes() for a in call())
        for name, call in found.items()
    }


CALLS = calls()


def test_eight_threads_while_their_number_changes():
    """Shared inputs and own ones, all ops at once, for some seconds."""
    wanted = {name: call() for name, call in CALLS.items()}
    stop = time.monotonic() + SECONDS
    counts, wrong = [0] * 8, []

    def work(k: int) -> None:
        mine = calls() if k % 2 else CALLS
        names = np.random.default_rng(k).permutation([*mine]).tolist()
        while time.monotonic() < stop:
            for name in names:
                if mine[name]() != wanted[name]:
                    wrong.append(name)
                counts[k] += 1

    threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        for count in (1, 3, 2, 4):
            fastrnn.set_num_threads(count)
            time.sleep(0.003)
    for thread in threads:
        thread.join()
    assert not wrong and min(counts) > 0


def check_all(_: int = 0) -> dict[str, bytes]:
    return {name: call() for name, call in CALLS.items()}


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
@NO_WARNING
def test_pools_of_processes(method):
    fastrnn.set_num_threads(2)
    wanted = check_all()
    context = multiprocessing.get_context(method)
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as pool:
        for found in pool.map(check_all, range(3), timeout=120):
            assert found == wanted


@FORK
@NO_WARNING
def test_fork_while_other_threads_compute():
    """A child is alone with its thread, whatever the others were at; so is its own child."""
    fastrnn.set_num_threads(2)
    wanted = check_all()
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            for call in CALLS.values():
                call()

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(5):
            child = os.fork()
            if not child:
                status = 1
                try:
                    signal.alarm(60)
                    if check_all() == wanted and fastrnn.get_num_threads() == 1:
                        grandchild = os.fork()
                        if not grandchild:
                            os._exit(check_all() != wanted)
                        status = os.waitstatus_to_exitcode(os.waitpid(grandchild, 0)[1])
                finally:
                    os._exit(status)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert check_all() == wanted


@OPENMP
@pytest.mark.parametrize(
    "environment",
    [
        {"OMP_THREAD_LIMIT": "1"},
        {"OMP_THREAD_LIMIT": "2"},
        {"OMP_DYNAMIC": "true"},
        {"OMP_MAX_ACTIVE_LEVELS": "0"},
        {"OMP_STACKSIZE": "64K"},
        {"OMP_PROC_BIND": "true"},
        {"GOMP_CPU_AFFINITY": "0"},
    ],
    ids=str,
)
def test_fewer_threads_than_were_asked_for(environment):
    """Shares are done by whoever is there."""
    wanted = {name: hash_of(call()) for name, call in CALLS.items()}
    code = f"""
import sys
sys.path[:0] = {sys.path!r}
import fastrnn
from test_core_threads import CALLS, hash_of
fastrnn.set_num_threads(4)
print({{name: hash_of(call()) for name, call in CALLS.items()}})
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.strip() == str(wanted), done.stderr


def hash_of(data: bytes) -> str:
    import hashlib

    return hashlib.sha256(data).hexdigest()[:12]


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no such timers here")
def test_signals_in_the_middle_of_calls():
    """Handlers run between calls and compute themselves; an exception of theirs breaks nothing."""
    wanted = check_all()
    seen, armed = [], []  # an exception is raised within a call alone

    def handler(*_: object) -> None:
        try:
            compute()
        finally:  # the next one in a while: on a busy machine it would come before this one ends
            signal.setitimer(signal.ITIMER_REAL, 0.01 if going else 0)

    def compute() -> None:
        name = [*CALLS][len(seen) % len(CALLS)]
        if not name.startswith("loss"):  # its workspace may be at work
            seen.append(CALLS[name]() == wanted[name])
        else:
            seen.append(True)
        if armed and len(seen) % 3 == 0:
            armed.clear()
            raise KeyboardInterrupt

    going = True
    before = signal.signal(signal.SIGALRM, handler)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    signal.setitimer(signal.ITIMER_REAL, 0.01)
    interrupted = 0
    try:
        stop = time.monotonic() + SECONDS / 2
        while time.monotonic() < stop:
            for name, call in CALLS.items():
                try:
                    armed.append(name)
                    found = call()
                    armed.clear()
                    assert found == wanted[name]
                except KeyboardInterrupt:
                    interrupted += 1
    finally:
        going = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        sys.setswitchinterval(interval)
    assert all(seen) and len(seen) > 10 and interrupted
    assert check_all() == wanted


@pytest.mark.parametrize("first", [True, False], ids=["before", "after"])
@pytest.mark.parametrize(
    ("module", "use"),
    [
        ("torch", "torch.nn.LSTM(64, 128)(torch.ones(50, 64, 64))"),
        ("sklearn.cluster", "sklearn.cluster.KMeans(3, n_init=1).fit(np.random.rand(3000, 5))"),
        ("scipy.linalg", "scipy.linalg.svd(np.random.rand(300, 300))"),
    ],
)
def test_beside_other_libraries(module, use, first):
    """Theirs before ours or after, two OpenMP libraries in one process: the same bits, no wait."""
    pytest.importorskip(module)
    wanted = {name: hash_of(call()) for name, call in CALLS.items()}
    imports = [f"import {module}", "import fastrnn"]
    code = f"""
import sys
sys.path[:0] = {sys.path!r}
import numpy as np
{chr(10).join(imports if first else imports[::-1])}
from test_core_threads import CALLS, hash_of
fastrnn.set_num_threads(2)
for _ in range(3):
    {use}
    found = {{name: hash_of(call()) for name, call in CALLS.items()}}
{use}
print(found)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip().splitlines()[-1:] == [str(wanted)], done.stderr


def test_weights_of_one_model_in_many_threads():
    """Threads that step copies of the same weights do not meet."""
    w, dw = np.random.default_rng(3).standard_normal((2, 300_001))

    def step(_: int) -> bytes:
        mine, config = w.copy(), None
        for _ in range(3):
            mine, config = compiled("adam")(mine, dw, copy.copy(config), in_place=True)
        return mine.tobytes()

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(step, range(24)))) == 1
