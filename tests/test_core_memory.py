"""Memory: failing allocations, leaks, uninitialized memory and accesses out of bounds."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from equivalence import MODELS, OPS, RAGGED, RULES, compiled, draw, draw_captions, draw_model, run

import fastrnn
from fastrnn import decoding
from fastrnn._core import runtime, scheduled
from fastrnn.classifiers import rnn as classifier
from fastrnn.classifiers.rnn import CaptioningWorkspace, Regularisation

SMAPS = Path("/proc/self/smaps_rollup")
SIZES = {"N": 71, "T": 6, "D": 33, "H": 67, "V": 109, "M": 51, "W": 20}
DEBUGGING = pytest.mark.skipif(
    not runtime.debugging(), reason="allocations fail on demand in a build with FASTRNN_DEBUG=1"
)


def ways() -> dict:
    """Return calls of every entry point of the core, as functions without arguments."""
    found = {}
    for name in OPS:
        for dtype in (np.float32, np.float64):
            arguments, gradients = draw(
                name, SIZES, dtype, np.random.default_rng(7), name in RAGGED
            )
            # a cache in float32 is converted for a gradient in float64
            gradients = {key: a.astype(np.float64) for key, a in gradients.items()}
            found[f"{name} {dtype.__name__}"] = lambda name=name, a=arguments, g=gradients: run(
                compiled, name, copy.deepcopy(a), g
            )
    for cell in ("rnn", "lstm"):
        model, features, rng = draw_model(classifier, SIZES, cell, np.float32)
        captions = draw_captions(SIZES, rng)
        everything = Regularisation(0.2, 0.3, 0.1, 0.5, seed=3)

        def loss(m=model, f=features, c=captions, r=everything):
            value, grads = m.loss(f, c, weights=np.ones(len(f)), regularisation=r)
            return [value, *grads.values()]

        def kept(m=model, f=features, c=captions, w=CaptioningWorkspace()):  # noqa: B008
            value, grads = m.loss(f, c, workspace=w)
            return [value, *(grad.copy() for grad in grads.values())]

        found[f"loss {cell}"] = loss
        found[f"loss in a workspace {cell}"] = kept
        found[f"word_log_probs {cell}"] = lambda m=model, f=features, c=captions: [
            m.word_log_probs(f, c)
        ]
        for n in (2, 71):
            f = features[:n]
            found[f"sample {n} {cell}"] = lambda m=model, f=f: [m.sample(f, 6)]
            found[f"beam_search {n} {cell}"] = lambda m=model, f=f: list(
                vars(decoding.beam_search(m, f, 4, 6, groups=2, n_best=3)).values()
            )
            found[f"draw {n} {cell}"] = lambda m=model, f=f: list(
                vars(decoding.sample(m, f, 6, count=2, top_p=0.8)).values()
            )
        found[f"mix {cell}"] = lambda m=model, f=features, c=captions, cell=cell: [
            scheduled.mix(m.params, f, c, 0.5, 1, 0, cell)
        ]
    return found


WAYS = ways()


def as_bytes(results) -> list[bytes]:
    return [np.asarray(a).tobytes() for a in results]


@DEBUGGING
@pytest.mark.parametrize("way", WAYS)
def test_every_allocation_fails_once(way):
    """Each failure raises MemoryError, and the next call is correct."""
    call = WAYS[way]
    wanted = as_bytes(call())
    call()
    failures = 0
    for k in range(1000):
        runtime.fail_after(k)
        try:
            found = call()
        except MemoryError:
            failures += 1
        else:
            break
        finally:
            runtime.fail_after(-1)
        assert as_bytes(call()) == wanted, f"after allocation {k} failed"
    assert as_bytes(found) == wanted
    assert failures or way.startswith("sgd ")


@DEBUGGING
@pytest.mark.parametrize("way", WAYS)
def test_failures_leak_nothing(way):
    """Repeated failures do not increase the number of allocated blocks."""
    call = WAYS[way]
    call()
    counts = []
    for rounds in (40, 40):
        for k in range(rounds):
            runtime.fail_after(k % 3)
            try:
                call()
            except MemoryError:
                pass
            finally:
                runtime.fail_after(-1)
        call()
        counts.append(runtime.live_blocks())
    assert counts[1] <= counts[0]


def resident() -> int:
    """Return the private resident memory of this process in bytes."""
    lines = SMAPS.read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) << 10


def take_steps(count: int) -> None:
    """Run small steps of all kinds, with varying batch sizes and captions."""
    rng = np.random.default_rng(3)
    sizes = MODELS[1] | {"M": 6}
    models = [draw_model(classifier, sizes, cell, np.float32) for cell in ("rnn", "lstm")]
    workspace = CaptioningWorkspace()
    steps = [draw(name, sizes, np.float32, rng) for name in OPS]
    for step in range(count):
        name, (arguments, gradients) = [*OPS][step % len(OPS)], steps[step % len(OPS)]
        if name not in RULES:
            run(compiled, name, arguments, gradients)
        model, features, _ = models[step % 2]
        n = 1 + step % sizes["N"]
        captions = draw_captions(sizes | {"N": n}, rng)
        model.loss(features[:n], captions, workspace=workspace if step % 3 else None)
        if step % 10 == 0:
            decoding.beam_search(model, features[:n], 2, 5)
            model.sample(features[:n], 5)


@pytest.mark.skipif(not SMAPS.is_file(), reason="no /proc here")
def test_steps_without_end_take_no_more_memory():
    """20,000 steps, or FASTRNN_STEPS."""
    code = f"""
import sys
sys.path[:0] = {sys.path!r}
from test_core_memory import resident, take_steps
take_steps(3000)
before = resident()
take_steps({int(os.environ.get("FASTRNN_STEPS", "20000"))})
print(resident() - before)
"""
    # exclude the memory of BLAS threads and of additional malloc arenas
    env = os.environ | {
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "MALLOC_ARENA_MAX": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=900, env=env
    )
    assert done.returncode == 0, done.stderr
    if "libasan" in os.environ.get("LD_PRELOAD", ""):
        pytest.skip("a sanitizer keeps freed memory")
    assert int(done.stdout) < 1 << 20


@DEBUGGING
def test_results_begin_as_nan():
    """In this build, an element that is never written is NaN."""
    from fastrnn.rnn_layers import sigmoid

    fastrnn.set_num_threads(2)
    for n in (3, 256_001):
        assert np.isfinite(sigmoid(np.zeros(n))).all()


@pytest.mark.skipif(
    "libasan" not in os.environ.get("LD_PRELOAD", ""), reason="a build with AddressSanitizer"
)
@pytest.mark.parametrize(
    ("size", "place"),
    [(3, -1), (3, 12), (100_003, -1), (100_003, 400_012), (3_000_017, -1), (3_000_017, 12_000_068)],
)
def test_bytes_beside_a_result_are_nobodys(size, place):
    """AddressSanitizer reports access to the byte before and after a result, within its block."""
    own = 0 if place < 0 else place - 1  # a byte of the array, which may be read
    code = f"""
import ctypes
import numpy as np
from fastrnn.rnn_layers import sigmoid
x = np.zeros({size}, dtype=np.float32)
kept = sigmoid(np.zeros({size} + 1000, dtype=np.float32))
del kept  # the next result reuses this larger block
y, to = sigmoid(x), ctypes.create_string_buffer(1)
ctypes.memmove(to, y.ctypes.data + {own}, 1)
print("so far", flush=True)
ctypes.memmove(to, y.ctypes.data + {place}, 1)
"""
    env = os.environ | {"ASAN_OPTIONS": "detect_leaks=0:log_path=stderr"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.stdout == "so far\n", done.stderr
    assert "ERROR: AddressSanitizer: use-after-poison" in done.stderr
