"""The core in its process: environment variables, threads, fork, the GIL, denormals, stubs."""

from __future__ import annotations

import ast
import copy
import inspect
import multiprocessing
import os
import pickle
import re
import runpy
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from equivalence import OPS, compiled, draw, run

import fastrnn
from fastrnn import rnn_layers
from fastrnn._core import runtime

PACKAGE = Path(fastrnn.__file__).parent
LARGE = {"N": 71, "T": 6, "D": 130, "H": 67, "V": 609, "M": 211}  # large enough for all threads
OPENMP = pytest.mark.skipif(runtime.openmp() == 0, reason="a build without OpenMP")
FORK = pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods(), reason="no fork() here"
)


@pytest.fixture
def two_threads():
    """Run with two threads."""
    fastrnn.set_num_threads(2)


VARIABLES = (
    "FASTRNN_NUM_THREADS",
    "OMP_NUM_THREADS",
    "FASTRNN_MAX_ISA",
    "GOMP_SPINCOUNT",
    "OMP_WAIT_POLICY",
)


def python(code, tree=PACKAGE.parent, **environment):
    """Run code in a new interpreter, in the directory that holds the package to import."""
    env = {k: v for k, v in os.environ.items() if k not in (*VARIABLES, "PYTHONSAFEPATH")}
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=tree,
        env=env | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


# ---- Environment ---------------------------------------------------------------------------------


@OPENMP
@pytest.mark.parametrize(
    ("environment", "count"),
    [
        ({"FASTRNN_NUM_THREADS": "3"}, 3),
        ({"OMP_NUM_THREADS": "4"}, 4),
        ({"OMP_NUM_THREADS": "5,2"}, 5),  # one number for each nesting level
        ({"FASTRNN_NUM_THREADS": "1", "OMP_NUM_THREADS": "4"}, 1),
        ({"FASTRNN_NUM_THREADS": "", "OMP_NUM_THREADS": "2"}, 2),
    ],
)
def test_threads_by_environment(environment, count):
    done = python("import fastrnn; print(fastrnn.get_num_threads())", **environment)
    assert done.stdout.split() == [str(count)], done.stderr


@OPENMP
def test_threads_by_default():
    done = python(
        "import os, fastrnn\n"
        "own = getattr(os, 'sched_getaffinity', None)\n"
        "print(fastrnn.get_num_threads(), len(own(0)) if own else os.cpu_count())"
    )
    got, processors = done.stdout.split()
    assert got == processors


@pytest.mark.parametrize("name", ["FASTRNN_NUM_THREADS", "OMP_NUM_THREADS"])
@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5", "100000", "²"])
def test_bad_number_of_threads(name, value):
    done = python("import fastrnn", **{name: value})
    assert done.returncode == 1
    assert f"ImportError: {name} is {value!r}; expected a number of threads" in done.stderr


def test_bad_instruction_set():
    done = python("import fastrnn", FASTRNN_MAX_ISA="sse9")
    assert done.returncode == 1
    assert "ImportError: FASTRNN_MAX_ISA is 'sse9'; expected baseline, avx2" in done.stderr


def test_import_leaves_the_environment_alone():
    done = python(
        "import os\nbefore = dict(os.environ)\nimport fastrnn\nprint(dict(os.environ) == before)"
    )
    assert done.stdout.split() == ["True"], done.stderr


@pytest.mark.parametrize(
    ("count", "error"),
    [(0, ValueError), (-2, ValueError), (1025, ValueError), (2.0, TypeError), ("2", TypeError),
     (True, TypeError), (None, TypeError)],
)  # fmt: skip
def test_bad_number_of_threads_in_a_call(count, error):
    before = fastrnn.get_num_threads()
    with pytest.raises(error, match="count is"):
        fastrnn.set_num_threads(count)
    assert fastrnn.get_num_threads() == before


@OPENMP
def test_number_of_threads_is_set(two_threads):
    assert fastrnn.get_num_threads() == 2
    fastrnn.set_num_threads(np.int64(3))
    assert fastrnn.get_num_threads() == 3


def test_source_tree_that_is_not_built(tmp_path):
    """If the core is not compiled, `import fastrnn` says what to run."""
    tree = tmp_path / "fastrnn"
    shutil.copytree(PACKAGE, tree, ignore=lambda _, names: [n for n in names if is_binary(n)])
    done = python("import fastrnn", tree=tmp_path)
    assert done.returncode == 1
    message = done.stderr.strip().splitlines()[-1]
    assert message.startswith("ImportError: fastrnn is not built here")
    assert "python -m pip install -e ." in message
    assert done.stderr.count("Traceback") == 1


def is_binary(name):
    return name == "__pycache__" or name.endswith((".so", ".pyd", ".c"))


# ---- Threads and processes -----------------------------------------------------------------------


def large_calls():
    """Return one large call of every op, as functions without arguments."""

    def call(name):
        arguments, gradients = draw(name, LARGE, np.float32, np.random.default_rng(7))
        return lambda: run(compiled, name, {k: a.copy() for k, a in arguments.items()}, gradients)

    return {name: call(name) for name in OPS}


def as_bytes(results):
    return b"".join(np.asarray(a).tobytes() for a in results)


@pytest.mark.parametrize("name", OPS)
def test_several_python_threads_at_once(name, two_threads):
    call = large_calls()[name]
    alone = as_bytes(call())
    with ThreadPoolExecutor(4) as pool:
        for together in pool.map(lambda _: as_bytes(call()), range(12)):
            assert together == alone


def test_different_ops_at_once(two_threads):
    calls = large_calls()
    alone = {name: as_bytes(call()) for name, call in calls.items()}
    with ThreadPoolExecutor(4) as pool:
        for name, together in pool.map(lambda name: (name, as_bytes(calls[name]())), [*OPS] * 2):
            assert together == alone[name], name


@OPENMP
def test_libgomp_reads_the_spin_count():
    """Workers that spin for longer take the processor from other programs on a busy machine."""
    found = python("import fastrnn, fastrnn.rnn_layers", OMP_DISPLAY_ENV="verbose")
    if "GOMP_SPINCOUNT" not in found.stderr:
        pytest.skip("built with another OpenMP runtime than libgomp")
    assert "GOMP_SPINCOUNT = '10000'" in found.stderr


@OPENMP
def test_workers_sleep_soon_after_a_call():
    """After a call, idle workers use no CPU time: measured over 0.4 s."""
    code = """
import time
import numpy as np
import fastrnn
from fastrnn import rnn_layers
from fastrnn.rnn_layers import lstm_forward

fastrnn.set_num_threads(2)
x, h0 = np.ones((64, 8, 64)), np.zeros((64, 128))
Wx, Wh, b = np.ones((64, 512)), np.ones((128, 512)), np.zeros(512)
lstm_forward(x, h0, Wx, Wh, b)
before = time.process_time()
time.sleep(0.4)
print(time.process_time() - before)
"""
    found = python(code)
    assert found.returncode == 0, found.stderr
    assert float(found.stdout) < 0.1


def in_a_child(queue):
    results = {name: as_bytes(call()) for name, call in large_calls().items()}
    queue.put((fastrnn.get_num_threads(), results))


@FORK
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_child_of_fork_computes_the_same(two_threads):
    """The child has no threads of libgomp, and would hang if the core used them."""
    context = multiprocessing.get_context("fork")
    calls = large_calls()
    expected = {name: as_bytes(call()) for name, call in calls.items()}
    queue = context.Queue()
    child = context.Process(target=in_a_child, args=(queue,), daemon=True)
    child.start()
    try:
        threads, results = queue.get(timeout=60)
    finally:
        child.kill()
        child.join()
    assert threads == 1
    assert results == expected
    # the parent still has its threads
    assert fastrnn.get_num_threads() == (2 if runtime.openmp() else 1)
    assert {name: as_bytes(call()) for name, call in calls.items()} == expected


@pytest.mark.parametrize("name", ["rnn", "lstm", "temporal_affine", "temporal_softmax_loss"])
def test_gil_is_released(name, two_threads):
    """Another thread runs during a call.

    With this long a switch interval, the interpreter does not make a thread release the GIL, so the
    other thread runs only if the call releases it.
    """
    arguments, gradients = draw(
        name,
        {"N": 100, "T": 16, "D": 128, "H": 128, "V": 1004, "M": 1004},
        np.float32,
        np.random.default_rng(7),
    )
    ticks = 0
    started, stop = threading.Event(), threading.Event()

    def tick():
        nonlocal ticks
        while not stop.is_set():
            ticks += 1
            started.set()
            time.sleep(1e-4)

    interval = sys.getswitchinterval()
    other = threading.Thread(target=tick, daemon=True)
    other.start()
    assert started.wait(30)
    sys.setswitchinterval(1000)
    try:
        for _ in range(200):
            before = ticks
            run(compiled, name, arguments, gradients)
            if ticks > before:
                break
        else:
            pytest.fail("the other thread stood still during every call")
    finally:
        sys.setswitchinterval(interval)
        stop.set()
        other.join()


# ---- Denormals -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", OPS)
def test_callers_denormals_are_left_alone(name, dtype, two_threads):
    """Denormals are flushed during a call only."""
    tiny = np.finfo(dtype).smallest_normal
    half = np.array([tiny, -tiny, 0.75 * tiny], dtype=dtype)
    for sizes in (LARGE, {"N": 2, "T": 1, "D": 4, "H": 5, "V": 7, "M": 3}):
        arguments, gradients = draw(name, sizes, dtype, np.random.default_rng(7))
        run(compiled, name, arguments, gradients)
        assert (half / 2 != 0).all() and (half / 2 * 2 == half).all()
        assert float(tiny) / 2 > 0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", OPS)
def test_denormal_numbers_count_as_zero_or_as_themselves(name, dtype):
    """Denormal inputs cause no larger errors."""
    sizes = {"N": 9, "T": 2, "D": 21, "H": 19, "V": 23, "M": 18}
    for group in (0, 1):
        drawn = draw(name, sizes, dtype, np.random.default_rng(7))
        flushed = draw(name, sizes, dtype, np.random.default_rng(7))
        for key, value in drawn[group].items():
            if value.dtype == dtype and key not in ("v", "cache"):
                value.flat[::3] = np.finfo(dtype).smallest_normal / 8
                flushed[group][key].flat[::3] = 0
        for a, b in zip(run(compiled, name, *drawn), run(compiled, name, *flushed), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=100 * np.finfo(dtype).eps)


# ---- Caches --------------------------------------------------------------------------------------

RECURRENT = ["rnn_step", "rnn", "lstm_step", "lstm"]


def test_cache_of_something_else():
    """A wrong cache raises. In a separate process, because a missing check would crash it."""
    code = f"""
import sys
sys.path[:0] = {sys.path!r}
import numpy as np
from equivalence import OPS, compiled, draw
sizes = {{"N": 2, "T": 3, "D": 4, "H": 4, "V": 7, "M": 3}}
drawn = {{name: draw(name, sizes, float, np.random.default_rng(7)) for name in {RECURRENT!r}}}
caches = {{name: compiled(name + "_forward")(**a)[-1] for name, (a, _) in drawn.items()}}
caches |= {{"None": None, "tuple": (), "number": 3}}
for name, (_, gradients) in drawn.items():
    for of, cache in caches.items():
        try:
            compiled(name + "_backward")(*gradients.values(), cache)
        except (TypeError, ValueError) as error:
            assert of != name and str(error).startswith("cache is"), (name, of, error)
        else:
            assert of == name, (name, of)
print("done")
"""
    done = python(code)
    assert done.stdout.split() == ["done"], done.stderr or f"exit status {done.returncode}"


@pytest.mark.parametrize("name", RECURRENT)
@pytest.mark.parametrize("take", [pickle.dumps, copy.copy, copy.deepcopy])
def test_cache_cannot_be_copied(name, take):
    arguments, _ = draw(name, LARGE, np.float32, np.random.default_rng(7))
    cache = compiled(f"{name}_forward")(**arguments)[-1]
    with pytest.raises(TypeError):
        take(cache)


@pytest.mark.parametrize("name", RECURRENT)
def test_cache_serves_twice(name):
    arguments, gradients = draw(name, LARGE, np.float32, np.random.default_rng(7))
    cache = compiled(f"{name}_forward")(**arguments)[-1]
    first = compiled(f"{name}_backward")(*gradients.values(), cache)
    again = compiled(f"{name}_backward")(*gradients.values(), cache)
    assert as_bytes(first) == as_bytes(again)


# ---- Stubs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("stub", sorted(PACKAGE.rglob("*.pyi")), ids=lambda path: path.stem)
def test_stub_names_what_the_module_has(stub):
    """The stub of a compiled module lists exactly its functions, with their parameters."""
    module = import_module(".".join(stub.relative_to(PACKAGE.parent).with_suffix("").parts))
    stubbed = {
        node.name: [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
        for node in ast.parse(stub.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef)
    }
    compiled_functions = {
        name: list(inspect.signature(value).parameters)
        for name, value in vars(module).items()
        if type(value).__name__ == "cython_function_or_method" and not name.startswith("_")
    }
    assert stubbed == compiled_functions


def test_every_compiled_module_has_a_stub():
    for source in PACKAGE.rglob("*.pyx"):
        assert source.with_suffix(".pyi").is_file()


@pytest.mark.parametrize("cell", ["rnn", "lstm"])
def test_large_results_own_their_memory_and_use_it_again(cell, rng):
    N, D, H = 64, 128, 256
    k = 4 if cell == "lstm" else 1
    x, h = rng.standard_normal((N, D)), rng.standard_normal((N, H))
    state = (h, h) if cell == "lstm" else (h,)
    weights = rng.standard_normal((D, k * H)), rng.standard_normal((H, k * H)), np.zeros(k * H)
    forward = getattr(rnn_layers, f"{cell}_step_forward")
    backward = getattr(rnn_layers, f"{cell}_step_backward")
    cache = forward(x, *state, *weights)[-1]

    first = backward(*state, cache)
    kept = [grad.copy() for grad in first]
    second = backward(*(2 * s for s in state), cache)
    for grad, other, wanted in zip(first, second, kept, strict=True):
        assert grad.flags.owndata
        assert not np.shares_memory(grad, other)
        np.testing.assert_array_equal(grad, wanted)
    assert len({backward(*state, cache)[-2].ctypes.data for _ in range(20)}) < 4
    # NumPy can resize and pickle the arrays
    grown = second[-2]
    before = grown.copy()
    grown.resize((H + 5, k * H), refcheck=False)
    np.testing.assert_array_equal(grown[:H], before)
    assert not grown[H:].any()
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(before)), before)


# ---- Kernels -------------------------------------------------------------------------------------

GENERATOR = PACKAGE.parent / "src_c" / "generate_pxd.py"


@pytest.mark.skipif(not GENERATOR.is_file(), reason="not in the source tree")
def test_every_kernel_is_declared_to_cython():
    """The generator understands every prototype, and refuses one that it does not."""
    module = runpy.run_path(str(GENERATOR))
    text = module["HEADER"].read_text(encoding="utf-8")
    kernels = module["read_kernels"](text)
    assert [name for _, name, _ in kernels] == re.findall(r"(?m)^FRN_KERNEL\(\w+, (\w+),", text)
    softmax = next(kernel for kernel in kernels if kernel[1] == "softmax_loss")
    assert softmax == ("double", "softmax_loss", [
        ("REAL*", "dx"), ("const REAL*", "x"), ("ptrdiff_t", "V"), ("ptrdiff_t", "target"),
        ("REAL", "weight"), ("double", "smoothing"),
    ])  # fmt: skip
    bf16_kernels = module["read_kernels"](module["BF16_HEADER"].read_text(encoding="utf-8"))
    pxd = module["generate"](kernels, bf16_kernels)
    assert "(*gemm_tiles_bf16)(float*, ptrdiff_t, const float*, ptrdiff_t, const float*" in pxd
    assert "double (*softmax_loss_f32)(float*, const float*, ptrdiff_t, ptrdiff_t, float," in pxd
    assert max(map(len, pxd.splitlines())) <= 120  # as in the other Cython files
    for bad in ("FRN_KERNEL(void, f, (REAL x[3]));", "FRN_KERNEL(void, f, (REAL (*x)(int)));"):
        with pytest.raises(ValueError, match="expected"):
            module["read_kernels"](text + bad)


SETUP = PACKAGE.parent / "setup.py"


@pytest.mark.skipif(not SETUP.is_file(), reason="not in the source tree")
@pytest.mark.parametrize(
    ("change", "what"),
    [("byteorder = 'big'", "64-bit, big-endian"), ("maxsize = 2**31 - 1", "32-bit, little-endian")],
)
def test_other_platforms_are_refused_at_build(change, what):
    """With a sentence, and before anything else; .ci/compilers asks compilers for them."""
    code = f"import runpy, sys; sys.{change}; runpy.run_path({str(SETUP)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr == f"this Python is {what}; expected 64-bit, little-endian\n"
