"""The core in multithreaded and multiprocess programs: results are always bit-identical."""

from __future__ import annotations

import concurrent.futures
import copy
import functools
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import sysconfig
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from equivalence import OPS, RAGGED, compiled, draw, draw_captions, draw_model, run

import fastrnn
from fastrnn import decoding, optim
from fastrnn._core import runtime
from fastrnn.classifiers import rnn as classifier
from fastrnn.classifiers.rnn import CaptioningWorkspace

SIZES = {"N": 71, "T": 6, "D": 130, "H": 67, "V": 609, "M": 211, "W": 50}
SECONDS = float(os.environ.get("FASTRNN_SECONDS", "4"))
OPENMP = pytest.mark.skipif(runtime.openmp() == 0, reason="a build without OpenMP")
FORK = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork() here")
FREE_THREADED = pytest.mark.skipif(
    not sysconfig.get_config_var("Py_GIL_DISABLED"), reason="an interpreter with a GIL"
)
NO_WARNING = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def calls() -> dict:
    """Return large calls of everything, as functions without arguments that return bytes."""
    found = {}
    for name in OPS:
        arguments, gradients = draw(
            name, SIZES, np.float32, np.random.default_rng(7), name in RAGGED
        )

        def op(name=name, arguments=arguments, gradients=gradients):
            # optimizers change the weights, so each call has its own; the rest is shared
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
    """All ops concurrently, with shared and with private inputs, for some seconds."""
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


def descend(model, features, captions, workspace) -> dict[str, bytes]:
    """Train for three steps on copies of the weights of a model, which may have been pickled."""
    model, states = copy.copy(model), {}
    model.params = {name: w.copy() for name, w in model.params.items()}
    for _ in range(3):
        _, grads = model.loss(features, captions, workspace=workspace)
        for name, w in model.params.items():
            _, states[name] = optim.adam(w, grads[name], states.get(name), in_place=True)
    return {name: w.tobytes() for name, w in model.params.items()}


def executor(method: str) -> concurrent.futures.Executor:
    if method == "thread":
        return concurrent.futures.ThreadPoolExecutor(8)
    context = multiprocessing.get_context(method)
    return concurrent.futures.ProcessPoolExecutor(2, mp_context=context)


@pytest.mark.parametrize("method", ["thread", *multiprocessing.get_all_start_methods()])
@pytest.mark.parametrize("busy", [False, True], ids=["alone", "while others compute"])
@NO_WARNING
def test_executors(method, busy):
    """concurrent.futures, with data that the workers have and with data that is pickled."""
    fastrnn.set_num_threads(2)
    wanted = check_all()
    model, features, rng = draw_model(classifier, SIZES, "lstm", np.float32)
    captions, workspace = draw_captions(SIZES, rng), CaptioningWorkspace()
    trained = descend(model, features, captions, workspace)
    stop = threading.Event()

    def work() -> bool:
        same = True
        while not stop.is_set():
            same &= all(call() == wanted[name] for name, call in CALLS.items())
        return same

    with concurrent.futures.ThreadPoolExecutor(2) as others:
        working = [others.submit(work) for _ in range(2 * busy)]
        try:
            with executor(method) as pool:
                jobs = [
                    pool.submit(descend, model, features, captions, copy.copy(workspace))
                    for _ in range(3)
                ]
                for found in pool.map(check_all, range(3), timeout=120):
                    assert found == wanted
                for job in concurrent.futures.as_completed(jobs, timeout=120):
                    assert job.result() == trained
        finally:
            stop.set()
        assert all(job.result() for job in working)


@FORK
@NO_WARNING
def test_fork_while_other_threads_compute():
    """A child has one thread, whatever the other threads were doing; so has its own child."""
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
    """Results do not depend on how many threads OpenMP provides."""
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
    """Handlers call the core, and raise exceptions, between calls."""
    wanted = check_all()
    seen, armed = [], []  # raise exceptions only during a call

    def handler(*_: object) -> None:
        try:
            compute()
        finally:  # one at a time: on a busy machine, the next might come too early
            signal.setitimer(signal.ITIMER_REAL, 0.01 if going else 0)

    def compute() -> None:
        name = [*CALLS][len(seen) % len(CALLS)]
        if not name.startswith("loss"):  # its workspace may be in use
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


@functools.cache
def neighbours(order: str, *names: str) -> dict:
    """Run tests/neighbours.py in a separate process and return its output."""
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("neighbours.py"), order, *names],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


OTHERS = ["torch", "sklearn", "scipy"]
BESIDE = [*([name] for name in OTHERS), OTHERS]


@pytest.mark.parametrize(
    ("names", "order"),
    # The last holds for each of them as far as they take turns; for a long run also one by one.
    [*((names, "after") for names in BESIDE),
     *((names, "before") for names in (BESIDE if SECONDS > 4 else BESIDE[-1:]))],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)  # fmt: skip
def test_beside_other_libraries(names, order):
    """Other libraries, imported before or after, with alternating and concurrent calls.

    All results are the same as alone, and no library changes the number of threads of another.
    scikit-learn's KMeans limits the process's BLAS to one thread while it runs, and SciPy's last
    bits depend on that, with or without fastrnn. So with several libraries, only what they compute
    in turn is compared with what each computes alone; for fastrnn it is always everything.
    """
    for name in names:
        pytest.importorskip(name)
    found = neighbours(order, *names)
    alone = neighbours("alone")["results"]["fastrnn"]
    assert set(found["results"]["fastrnn"]) == set(alone) and len(set(alone)) == 1
    for name in names:
        without = neighbours("without", name)
        assert len(set(without["results"][name])) == 1
        results = found["results"][name]
        if len(names) > 1:
            results = [*results[:3], results[-1]]  # before and after those at once
        assert set(results) == set(without["results"][name])
        first, last = found["threads"][name]
        assert first.items() <= last.items()
        [expected, _] = without["threads"][name]
        assert all(first[pool] == expected[pool] for pool in first.keys() & expected.keys())


# ---- Without the GIL -----------------------------------------------------------------------------


@FREE_THREADED
def test_import_leaves_the_gil_off():
    modules = sorted(
        f"fastrnn._core.{path.name.split('.')[0]}"
        for path in Path(runtime.__file__).parent.glob(f"*{sysconfig.get_config_var('EXT_SUFFIX')}")
    )
    assert "fastrnn._core.runtime" in modules
    code = f"""
import sys
sys.path[:0] = {sys.path!r}
import importlib
import numpy
assert not sys._is_gil_enabled()
for name in {modules}:
    importlib.import_module(name)
    print(name, sys._is_gil_enabled())
"""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHON_GIL"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.splitlines() == [f"{name} False" for name in modules], done.stderr


def test_blocks_have_one_owner():
    """Eight threads keep results of many sizes for a while: no thread overwrites another's."""
    stop = time.monotonic() + SECONDS / 2
    counts, wrong = [0] * 8, []

    def work(k: int) -> None:
        rng, mine = np.random.default_rng(k), []
        while time.monotonic() < stop:
            x = np.full(rng.integers(1 << 15, 1 << 18), rng.standard_normal(), np.float32)
            y = fastrnn.rnn_layers.sigmoid(x)
            mine.append((y, y[0]))
            if len(mine) == 6:
                y, value = mine.pop(rng.integers(6))
                wrong.extend(y[y != value])
            counts[k] += 1

    threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and min(counts) > 6


def test_gradients_that_another_thread_takes_out_of_a_workspace():
    """A call keeps the arrays that it writes to, even if they are removed from the dict."""
    model, features, rng = draw_model(classifier, SIZES, "lstm", np.float32)
    captions, workspace = draw_captions(SIZES, rng), CaptioningWorkspace()
    wanted, grads = model.loss(features, captions)
    model.loss(features, captions, workspace=workspace)
    expected = grads["W_vocab"].tobytes()
    x = np.zeros_like(model.params["W_vocab"])
    stop, wrong = threading.Event(), []

    def work() -> None:
        while not stop.is_set():
            workspace.grads["W_vocab"] = fastrnn.rnn_layers.sigmoid(x)
            other = fastrnn.rnn_layers.sigmoid(x)  # in the block that the line above freed
            time.sleep(0.002)
            wrong.extend(other[other != 0.5])

    thread = threading.Thread(target=work)
    thread.start()
    try:
        stop_at = time.monotonic() + SECONDS / 2
        while time.monotonic() < stop_at:
            loss, grads = model.loss(features, captions, workspace=workspace)
            assert loss == wanted and grads["W_vocab"].tobytes() == expected
    finally:
        stop.set()
        thread.join()
    assert not wrong


def test_weights_of_one_model_in_many_threads():
    """Threads that update copies of the same weights do not affect each other."""
    w, dw = np.random.default_rng(3).standard_normal((2, 300_001))

    def step(_: int) -> bytes:
        mine, config = w.copy(), None
        for _ in range(3):
            mine, config = compiled("adam")(mine, dw, copy.copy(config), in_place=True)
        return mine.tobytes()

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(step, range(24)))) == 1


@pytest.mark.parametrize("size", [(100, 16), (7, 16)])
def test_more_threads_than_processors(size):
    """Sixteen threads end, on any number of processors, with the bits of one."""
    N, T = size
    rng = np.random.default_rng(0)
    words = {word: i for i, word in enumerate(["<NULL>", "<START>", "<END>", *map(str, range(90))])}
    model = classifier.CaptioningRNN(words, 64, 32, 256, "lstm", np.float32)
    captions = rng.integers(3, len(words), (N, T + 1))
    captions[np.arange(T + 1) > rng.integers(4, T, (N, 1))] = 0
    features = rng.standard_normal((N, 64)).astype(np.float32)
    count = fastrnn.get_num_threads()
    found = {}
    try:
        for threads in (1, 16):
            fastrnn.set_num_threads(threads)
            for _ in range(3):
                found[threads] = model.loss(features, captions)
    finally:
        fastrnn.set_num_threads(count)
    assert found[1][0] == found[16][0]
    for name, grad in found[1][1].items():
        np.testing.assert_array_equal(found[16][1][name], grad)
