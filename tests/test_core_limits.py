"""Invalid caches, extreme sizes, and workspaces or gradients that cannot be used."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import threading
import warnings

import numpy as np
import pytest
from equivalence import compiled, draw, draw_captions, draw_model, draw_pair, twin

import fastrnn
from fastrnn import decoding
from fastrnn._core import runtime
from fastrnn.captioning_solver import CaptioningSolver
from fastrnn.classifiers import rnn as classifier
from fastrnn.classifiers.rnn import CaptioningWorkspace, Regularisation
from fastrnn.reference import decoding as twin_decoding

SMALL = {"N": 2, "T": 3, "D": 4, "H": 5, "V": 7, "M": 6, "W": 4}
DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64])


# ---- Division among threads ----------------------------------------------------------------------


@DTYPES
@pytest.mark.parametrize("threads", [2, 3, 5])
@pytest.mark.parametrize("name", ["sigmoid", "tanh", "exp", "log"])
def test_every_element_is_written(name, dtype, threads):
    """Also if the size is not a multiple of 64, the unit in which threads divide the elements."""
    from fastrnn._core import layers

    fastrnn.set_num_threads(threads)
    function = getattr(layers, name)
    for n in (256_000, 256_001, 192_000 + threads - 1, 64 * 3000 * threads + 1):
        x = np.linspace(0.5, 3, n, dtype=dtype)
        function(x[::-1])  # leaves other values in the block that the next call reuses
        fastrnn.set_num_threads(1)
        alone = function(x)
        function(x[::-1])
        fastrnn.set_num_threads(threads)
        np.testing.assert_array_equal(function(x), alone)


# ---- Caches --------------------------------------------------------------------------------------


def cache_of(name, **sizes):
    arguments, gradients = draw(name, SMALL | sizes, np.float64, np.random.default_rng(7))
    return compiled(f"{name}_forward")(**arguments)[-1], gradients


WITH_TUPLES = ["affine", "temporal_affine", "word_embedding"]


@pytest.mark.parametrize("name", WITH_TUPLES)
@pytest.mark.parametrize("find", [compiled, twin])
@pytest.mark.parametrize("cache", [None, (), (0,), 3, (np.ones((2, 3)),) * 7, "cache", {}])
def test_cache_that_is_none(name, find, cache):
    _, gradients = cache_of(name)
    with pytest.raises((TypeError, ValueError), match=r"^cache"):
        find(f"{name}_backward")(*gradients.values(), cache)


@pytest.mark.parametrize("name", WITH_TUPLES)
@pytest.mark.parametrize("other", [*WITH_TUPLES, "rnn", "lstm", "rnn_step", "lstm_step"])
@pytest.mark.parametrize("sizes", [{}, {"T": 0}, {"N": 0}, {"T": 1, "D": 1}])
def test_cache_of_another_function(name, other, sizes):
    cache, _ = cache_of(other, **sizes)
    _, gradients = cache_of(name, **sizes)
    if other != name:
        for find in (compiled, twin):
            with pytest.raises((TypeError, ValueError)):
                find(f"{name}_backward")(*gradients.values(), cache)


@pytest.mark.parametrize("name", WITH_TUPLES)
@pytest.mark.parametrize("change", ["longer", "shorter", "flat", "deep", "list", "text", "None"])
def test_cache_with_other_parts(name, change):
    """Each part in turn has another shape or type: both raise the same exception, or agree."""
    changes = {
        "longer": lambda a: np.concatenate([a, a]),
        "shorter": lambda a: a[:-1],
        "flat": lambda a: a.ravel(),
        "deep": lambda a: a[None],
        "list": lambda a: a.tolist(),
        "text": lambda a: a.astype(str),
        "None": lambda a: None,
    }
    cache, gradients = cache_of(name)
    for k in range(len(cache)):
        wrong = (*cache[:k], changes[change](cache[k]), *cache[k + 1 :])
        results = []
        for find in (compiled, twin):
            try:
                found = find(f"{name}_backward")(*gradients.values(), wrong)
                results.append([a.shape for a in (found if isinstance(found, tuple) else [found])])
            except Exception as error:
                results.append((type(error), str(error).split()[0]))
        assert results[0] == results[1], (name, k)


@pytest.mark.parametrize(
    "ids",
    [
        np.full((2, 3), 10**9),
        np.full((2, 3), -(10**9)),
        np.full((2, 3), 7),
        np.full((2, 3), -8),
        np.full((2, 3), 2**63 - 1),
        np.full((2, 3), -(2**63)),
        np.full((2, 3), 2**63, dtype=np.uint64),
        np.full((2, 3), 7, dtype=np.int32),
        np.full((2, 3), 1.0),
        np.full((2, 3), True),
        np.full((2, 2), 1),
        np.full((2, 3, 1), 1),
        np.full((), 1),
    ],
    ids=str,
)
def test_ids_of_a_cache_are_checked(ids):
    W, dout = np.ones((7, 4)), np.ones((2, 3, 4))
    raised = []
    for find in (compiled, twin):
        with pytest.raises((TypeError, ValueError, IndexError)) as error:
            find("word_embedding_backward")(dout, (ids, W))
        raised.append((error.type, str(error.value)))
    assert raised[0] == raised[1]


@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.int64, np.uint64])
def test_ids_of_a_cache_may_be_any_integers(dtype, rng):
    """The cache of the reference is accepted, too; it has negative ids."""
    x = rng.integers(0 if dtype == np.uint64 else -7, 7, (2, 3)).astype(dtype)
    W, dout = rng.standard_normal((7, 4)), rng.standard_normal((2, 3, 4))
    _, cache = twin("word_embedding_forward")(x, W)
    expected = twin("word_embedding_backward")(dout, cache)
    for given in (cache, (x, W), [x, W]):
        np.testing.assert_allclose(compiled("word_embedding_backward")(dout, given), expected)


def test_ids_of_a_cache_changed_in_place():
    _, cache = compiled("word_embedding_forward")(np.zeros((2, 3), int), np.ones((7, 4)))
    cache[0][1, 2] = 10**12
    with pytest.raises(IndexError, match="x holds the id 1000000000000"):
        compiled("word_embedding_backward")(np.ones((2, 3, 4)), cache)


@pytest.mark.parametrize("name", ["rnn", "lstm", "rnn_step", "lstm_step"])
@pytest.mark.parametrize("argument", ["x", "Wx", "Wh"])
@pytest.mark.parametrize("change", ["reshape", "flatten", "view as float32", "shrink"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of such changes
def test_arrays_of_a_cache_changed_in_their_shape(name, argument, change):
    sizes = {"N": 4, "T": 4, "D": 4, "H": 4}
    arguments, gradients = draw(name, SMALL | sizes, np.float64, np.random.default_rng(7))
    cache = compiled(f"{name}_forward")(**arguments)[-1]
    array = arguments[argument]
    if change == "reshape":
        array.shape = (array.shape[0] // 2, -1, *array.shape[2:])
    elif change == "flatten":
        array.shape = (array.size,)
    elif change == "view as float32":
        array.dtype = np.float32
    else:
        array.resize((1,), refcheck=False)
    with pytest.raises(ValueError, match=f"^cache has {argument} with .* expected {argument} as"):
        compiled(f"{name}_backward")(*gradients.values(), cache)


# ---- Arguments that change while they are read ---------------------------------------------------


class Changing:
    """An argument that changes another argument when it is converted."""

    def __init__(self, array, change):
        self.array, self.change = array, change

    def __array__(self, dtype=None, copy=None):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of such changes
            self.change()
        return self.array


class Lying:
    """An integer whose comparisons give a chosen result."""

    def __init__(self, value, less):
        self.value, self.less = value, less

    def __index__(self):
        return self.value

    __int__ = __index__

    def __lt__(self, other):
        return self.less

    def __gt__(self, other):
        return False

    def __ge__(self, other):
        return True


def as_dtype(array, dtype):
    array.dtype = dtype


def as_shape(array, shape):
    array.shape = shape


@pytest.mark.parametrize("argument", ["lengths", "b"])
@pytest.mark.parametrize("name", ["rnn", "lstm"])
def test_sequence_whose_input_changes_while_it_is_read(name, argument):
    """Read with its new dtype, and never past its end."""
    sizes = SMALL | {"N": 40, "T": 30, "D": 8}
    arguments, _ = draw(name, sizes, np.float32, np.random.default_rng(7), ragged=True)
    x = arguments["x"]
    arguments[argument] = Changing(arguments[argument], lambda: as_dtype(x, np.float64))
    with pytest.raises(ValueError, match="Wx has shape"):
        compiled(f"{name}_forward")(**arguments)


@pytest.mark.parametrize("name", ["rnn", "lstm", "rnn_step", "lstm_step"])
def test_cache_that_changes_while_the_gradient_is_read(name):
    sizes = SMALL | {"N": 20, "T": 9, "D": 64, "H": 128}
    arguments, gradients = draw(name, sizes, np.float32, np.random.default_rng(7))
    cache = compiled(f"{name}_forward")(**arguments)[-1]

    def change():
        for argument in ("x", "Wx", "Wh"):
            as_dtype(arguments[argument], np.float64)

    first, *others = gradients.values()
    with pytest.raises(ValueError, match=r"^cache has x"):
        compiled(f"{name}_backward")(Changing(first, change), *others, cache)


def test_scores_that_change_while_the_words_are_read(rng):
    for name, shape in (("softmax_loss", (500,)), ("temporal_softmax_loss", (20, 25))):
        for k in range(len(shape)):
            x, y, mask = rng.random((*shape, 8)), np.zeros(shape, int), np.ones(shape)
            rest = [y, mask][: len(shape)]
            rest[k] = Changing(rest[k], lambda x=x: as_dtype(x, np.int8))
            loss, dx = compiled(name)(x, *rest)
            assert dx.shape == (*shape, 64) and dx.dtype == np.float64 and np.isfinite(loss)


def test_words_that_change_while_the_vectors_are_read(rng):
    x, W, dout = np.zeros((50, 40), int), rng.random((7, 4)), rng.random((50, 40, 4))
    changing = Changing(W, lambda: as_dtype(x, np.int8))
    out, _ = compiled("word_embedding_forward")(x, changing)
    np.testing.assert_array_equal(out, np.broadcast_to(W[0], (50, 40, 4)))
    x.dtype = int
    dW = compiled("word_embedding_backward")(dout, (x, changing))
    np.testing.assert_allclose(dW[0], dout.sum(axis=(0, 1)))
    with pytest.raises(ValueError, match="dout has shape"):
        compiled("word_embedding_backward")(dout, (Changing(x, lambda: as_dtype(W, "i1")), W))


def test_captions_that_change_while_the_parameters_are_read():
    sizes = SMALL | {"N": 200, "T": 99}
    for call in ("loss", "word_log_probs"):
        model, features, rng = draw_model(classifier, sizes, "rnn", np.float64)
        captions = draw_captions(sizes, rng)
        wanted = getattr(model, call)(features, captions)
        b = model.params["b"]
        model.params["b"] = Changing(b, lambda captions=captions: as_dtype(captions, np.int32))
        found = getattr(model, call)(features, captions)
        if call == "loss":
            wanted, found = wanted[0], found[0]
        np.testing.assert_array_equal(found, wanted)


def test_features_that_change_while_the_parameters_are_read():
    """The captions have as many rows as the features that are decoded."""
    model, features, _ = draw_model(classifier, SMALL | {"N": 100}, "rnn", np.float64)

    class Params(dict):
        read = False

        def __getitem__(self, name):
            if name != "W_proj":
                return super().__getitem__(name)
            if self.read:
                as_shape(features, (200, 2))
            self.read = True
            return super().__getitem__(name)[: features.shape[1]]

    model.params = Params(model.params)
    assert model.sample(features, 300).shape == (200, 300)


def test_numbers_that_compare_as_they_are_not(model):
    """The value that is checked is the value that is used."""
    model, features, _ = model
    for count in (0, -1, 10**6):
        with pytest.raises(ValueError, match="expected 1 to 1024"):
            fastrnn.set_num_threads(Lying(count, False))
    for value in (0, -1):
        with pytest.raises(ValueError, match=r"width is .*; expected at least 1"):
            decoding.beam_search(model, features, Lying(value, False), 5)
        with pytest.raises(ValueError, match=r"count is .*; expected at least 1"):
            decoding.sample(model, features, 5, count=Lying(value, False))
    for value in (10**9, -(10**9), -1):
        model.word_to_idx["<START>"] = Lying(value, True)
        with pytest.raises(IndexError, match="<START> has the id"):
            decoding.beam_search(model, features, 2, 5)


@pytest.mark.parametrize("name", ["rnn", "lstm", "rnn_step", "lstm_step"])
def test_cache_without_a_forward_pass(name):
    cache, gradients = cache_of(name)
    for bare in (type(cache)(), type(cache).__new__(type(cache))):
        with pytest.raises(ValueError, match=r"^cache is that of"):
            compiled(f"{name}_backward")(*gradients.values(), bare)


# ---- Sizes ---------------------------------------------------------------------------------------

HUGE = 2**61 - 1


@pytest.mark.parametrize("cell", ["rnn", "lstm"])
@pytest.mark.parametrize("H", [0, 1])
@pytest.mark.parametrize("shape", [(1, HUGE, 0), (1, 2**58, 0), (2**58, 3, 0), (0, HUGE, 0)])
def test_sequences_longer_than_memory(cell, H, shape):
    k = 4 if cell == "lstm" else 1
    weights = np.zeros((0, k * H), "f4"), np.zeros((H, k * H), "f4"), np.zeros(k * H, "f4")
    h0 = np.zeros((min(shape[0], 3), H), "f4")
    with pytest.raises(MemoryError):
        compiled(f"{cell}_forward")(np.empty(shape, "f4"), h0, *weights)


@pytest.mark.parametrize("cell", ["rnn", "lstm"])
@pytest.mark.parametrize(
    ("shape", "H"), [((1, 2**55, 0), 0), ((0, 2**50, 3), 4), ((3, 2**50, 0), 0), ((0, 2**50, 0), 2)]
)
def test_sequences_without_elements_end_at_once(cell, shape, H):
    k = 4 if cell == "lstm" else 1
    weights = np.ones((shape[2], k * H), "f4"), np.ones((H, k * H), "f4"), np.ones(k * H, "f4")
    h, cache = compiled(f"{cell}_forward")(
        np.empty(shape, "f4"), np.ones((shape[0], H), "f4"), *weights
    )
    assert h.shape == (*shape[:2], H)
    dx, dh0, dWx, dWh, db = compiled(f"{cell}_backward")(h, cache)
    assert dx.shape == shape and dh0.shape == (shape[0], H)
    assert not dWx.any() and not dWh.any() and not db.any()


def test_steps_past_memory_with_lengths():
    x, weights = np.empty((2, 2**50, 0), "f4"), (np.zeros((0, 3), "f4"), np.eye(3, dtype="f4"))
    with pytest.raises(MemoryError):
        compiled("rnn_forward")(
            x, np.zeros((2, 3), "f4"), *weights, np.zeros(3, "f4"), lengths=[2**50, 2**50]
        )


@pytest.mark.parametrize("n", [2**59, 2**56])
def test_affine_of_rows_without_elements(n):
    x = np.empty((n, 0))
    if n < 2**57:
        out, cache = compiled("affine_forward")(x, np.zeros((0, 0)), np.zeros(0))
        assert out.shape == (n, 0)
        dx, dw, db = compiled("affine_backward")(out, cache)
        assert dx.shape == (n, 0) and dw.shape == (0, 0) and db.shape == (0,)
    else:
        with pytest.raises(MemoryError):
            compiled("affine_forward")(x, np.zeros((0, 0)), np.zeros(0))
    with pytest.raises(MemoryError):
        compiled("affine_forward")(x, np.zeros((0, 3)), np.zeros(3))


def test_affine_of_rows_larger_than_memory():
    x = np.empty((0, 2**30, 2**29), "f4")
    with pytest.raises(MemoryError, match=r"x has shape \(0, 1073741824, 536870912\)"):
        compiled("affine_forward")(x, np.zeros((0, 3)), np.zeros(3))


@pytest.mark.parametrize("V", [HUGE, 2**58])
def test_embedding_of_more_words_than_memory(V):
    x, W = np.zeros((2, 3), int), np.empty((V, 0), "f4")
    with pytest.raises(MemoryError):
        compiled("word_embedding_forward")(x, W)
    with pytest.raises(MemoryError):
        compiled("word_embedding_backward")(np.empty((2, 3, 0), "f4"), (x, W))


def test_embedding_without_elements_ends_at_once():
    x, W = np.zeros((2, 3), int), np.empty((2**55, 0), "f4")
    out, cache = compiled("word_embedding_forward")(x, W)
    assert out.shape == (2, 3, 0)
    assert compiled("word_embedding_backward")(out, cache).shape == W.shape
    with pytest.raises(IndexError):
        compiled("word_embedding_backward")(out, (x + 2**55, W))


@pytest.fixture
def model():
    return draw_model(classifier, SMALL, "lstm", np.float64)


@pytest.mark.parametrize("size", [2**40, 2**57, 2**61, 2**63 - 1, 2**63, 2**64, 2**100])
def test_decoding_larger_than_memory(model, size):
    model, features, _ = model
    for call in (
        lambda: decoding.beam_search(model, features, width=size),
        lambda: decoding.beam_search(model, features, width=size, n_best=size),
        lambda: decoding.beam_search(model, features, width=size, groups=size),
        lambda: decoding.beam_search(model, features, max_length=size),
        lambda: decoding.sample(model, features, count=size),
        lambda: decoding.sample(model, features, size),
        lambda: model.sample(features, size),
    ):
        with pytest.raises(MemoryError):
            call()
    best = decoding.beam_search(model, features, no_repeat_ngram=size)
    np.testing.assert_array_equal(best.ids, decoding.beam_search(model, features).ids)


# ---- Workspaces ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "take", [copy.copy, copy.deepcopy, lambda a: pickle.loads(pickle.dumps(a))]
)
def test_copy_of_a_workspace_is_empty(model, take):
    model, features, rng = model
    captions = draw_captions(SMALL, rng)
    workspace = CaptioningWorkspace()
    _, wanted_grads = model.loss(features, captions, workspace=workspace)
    wanted_grads = {name: grad.copy() for name, grad in wanted_grads.items()}
    other, memory = take(workspace), take(workspace.memory)
    assert other.nbytes == memory.nbytes == 0 and other.grads is None
    model.loss(-features, captions, workspace=other)
    for name, grad in workspace.grads.items():
        np.testing.assert_array_equal(grad, wanted_grads[name])
    assert type(memory) is runtime.Workspace


def test_copy_of_a_solver(rng):
    model, features, rng = draw_model(classifier, SMALL, "rnn", np.float64)
    data = {
        "train_captions": draw_captions(SMALL, rng),
        "train_features": features,
        "train_image_idxs": np.arange(SMALL["N"]),
        "train_urls": np.array(["a", "b"]),
    }
    solver = CaptioningSolver(model, data, num_epochs=3, batch_size=2, verbose=False)
    solver.train()
    losses = []
    for twin_solver in (copy.deepcopy(solver), pickle.loads(pickle.dumps(solver)), solver):
        np.random.seed(3)
        twin_solver.train()
        losses.append(twin_solver.loss_history[-3:])
    assert losses[0] == losses[1] == losses[2]


def test_workspace_that_two_threads_use():
    """One call succeeds and the other raises RuntimeError; never both succeed."""
    sizes = {"N": 64, "T": 8, "D": 50, "H": 64, "V": 500, "W": 30}
    model, features, rng = draw_model(classifier, sizes, "lstm", np.float32)
    captions = draw_captions(sizes, rng)
    wanted, _ = model.loss(features, captions)
    workspace = CaptioningWorkspace()
    found, refused = [], []

    def work():
        for _ in range(40):
            try:
                found.append(model.loss(features, captions, workspace=workspace)[0])
            except RuntimeError as error:
                refused.append(str(error))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) + len(refused) == 160 and set(found) == {wanted}
    assert set(refused) <= {
        "workspace is in use by another call; expected one workspace for each thread"
    }
    assert refused  # with four threads, some calls must overlap
    assert model.loss(features, captions, workspace=workspace)[0] == wanted


def test_workspace_serves_after_an_error(model):
    model, features, rng = model
    captions = draw_captions(SMALL, rng)
    workspace = CaptioningWorkspace()
    wanted, _ = model.loss(features, captions, workspace=workspace)
    with pytest.raises(IndexError):
        model.loss(features, captions + 100, workspace=workspace)
    assert model.loss(features, captions, workspace=workspace)[0] == wanted


def test_workspace_serves_after_want_of_memory():
    """The error comes while the workspace is in use: no call may find it in use ever after."""
    pytest.importorskip("resource")
    code = f"""
import sys
sys.path[:0] = {sys.path!r}
import pathlib, resource
import numpy as np
from equivalence import draw_captions, draw_model
from fastrnn.classifiers import rnn
model, features, rng = draw_model(rnn, {{**{SMALL!r}, "N": 2, "T": 16, "H": 256}}, "lstm", "f4")
captions = draw_captions({{**{SMALL!r}, "N": 2, "T": 16}}, rng)
workspace = rnn.CaptioningWorkspace()
wanted = model.loss(features, captions, workspace=workspace)[0]
taken = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + (400 << 20), resource.RLIM_INFINITY))
try:
    model.loss(np.tile(features, (20_000, 1)), np.tile(captions, (20_000, 1)), workspace=workspace)
except MemoryError as error:
    print(error)
assert model.loss(features, captions, workspace=workspace)[0] == wanted
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("no memory for a workspace of ")


GRADS = {
    "not contiguous": lambda a, p: np.empty((a.shape[0], 2 * a.shape[1]))[:, ::2],
    "Fortran": lambda a, p: np.asfortranarray(a),
    "too small": lambda a, p: np.empty((1, 1)),
    "another dtype": lambda a, p: a.astype(np.float32),
    "read-only": lambda a, p: np.broadcast_to(np.zeros(1), a.shape),
    "bytes": lambda a, p: np.frombuffer(bytes(a.nbytes)).reshape(a.shape),
    "unaligned": lambda a, p: np.ndarray(a.shape, buffer=np.zeros(a.nbytes + 1, "u1"), offset=1),
    "the parameter": lambda a, p: p["Wh"],
    "another gradient": lambda a, p: None,
    "a memory map": lambda a, p: a.view(np.memmap),
    "a list": lambda a, p: a.tolist(),
}


@pytest.mark.parametrize("kind", GRADS)
def test_gradients_that_cannot_be_written_over(model, kind):
    model, features, rng = model
    captions = draw_captions(SMALL, rng)
    workspace = CaptioningWorkspace()
    model.loss(features, captions, workspace=workspace)
    if kind == "another gradient":
        workspace.grads["Wx"] = workspace.grads["Wh"] = np.empty((5, 20))
        model.params["Wx"] = model.params["Wh"].copy()
        model.params["W_embed"] = np.ones((7, 5))
    else:
        workspace.grads["Wh"] = GRADS[kind](workspace.grads["Wh"], model.params)
    weights = {name: w.copy() for name, w in model.params.items()}
    wanted, wanted_grads = model.loss(features, captions)
    loss, grads = model.loss(features, captions, workspace=workspace)
    assert loss == wanted
    for name, grad in grads.items():
        np.testing.assert_array_equal(grad, wanted_grads[name])
        np.testing.assert_array_equal(model.params[name], weights[name])


@pytest.mark.parametrize("wrong", [{}, {"Wh": None}, [1, 2], 3, "grads"])
def test_grads_that_are_none(model, wrong):
    model, features, rng = model
    captions = draw_captions(SMALL, rng)
    workspace = CaptioningWorkspace()
    workspace.grads = wrong
    wanted, _ = model.loss(features, captions)
    assert model.loss(features, captions, workspace=workspace)[0] == wanted


# ---- The captioner and its twin ------------------------------------------------------------------


def test_empty_captions_of_each_group():
    model, twin_model, features, _ = draw_pair(SMALL, "lstm", np.float64)
    for groups, n_best in ((1, 1), (3, 1), (3, 2), (3, 3), (1, 3)):
        found = decoding.beam_search(model, features, 3, 0, groups=groups, n_best=n_best)
        wanted = twin_decoding.beam_search(twin_model, features, 3, 0, groups=groups, n_best=n_best)
        counts = np.isfinite(found.log_probs).sum(axis=1).tolist()
        assert counts == [len(row) for row in wanted]
        assert (found.scores[:, : min(groups, n_best)] == 0).all()


@pytest.mark.parametrize("rule", ["power", "wu"])
@pytest.mark.parametrize("penalty", [1000.0, -1000.0, 1e300, -1e300])
def test_length_penalty_past_the_range_of_a_float(penalty, rule):
    """Scores become 0 or -inf; neither search breaks off."""
    model, twin_model, features, _ = draw_pair(SMALL, "lstm", np.float64)
    options = {"width": 2, "max_length": 6, "length_penalty": penalty, "length_rule": rule}
    found = decoding.beam_search(model, features, **options)
    wanted = twin_decoding.beam_search(twin_model, features, **options)
    for score, ((_, best), *_) in zip(found.scores[:, 0], wanted, strict=True):
        np.testing.assert_allclose(score, best, rtol=1e-9)


@pytest.mark.parametrize("weights_dtype", [np.float32, np.float64])
@pytest.mark.parametrize("features_dtype", [np.float16, np.float32, np.float64, np.int32])
def test_features_of_another_dtype(features_dtype, weights_dtype):
    """Results have the dtype to which NumPy promotes features and parameters."""
    model, twin_model, features, captions = draw_pair(SMALL, "rnn", weights_dtype)
    features = (8 * features).astype(features_dtype)
    loss, grads = model.loss(features, captions)
    wanted, wanted_grads = twin_model.loss(features, captions)
    assert loss == pytest.approx(wanted, rel=1e-5)
    for name, grad in grads.items():
        assert grad.dtype == wanted_grads[name].dtype
        np.testing.assert_allclose(grad, wanted_grads[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["W_embed", "W_proj", "b_proj", "Wx", "Wh", "b", "W_vocab"])
@pytest.mark.parametrize("cell", ["rnn", "lstm"])
def test_masked_places_add_nothing_whatever_the_weights(cell, name, bad):
    """NaN appears in the same gradients as in the twin."""
    sizes = SMALL | {"N": 6, "T": 5}
    model, twin_model, features, captions = draw_pair(sizes, cell, np.float64)
    captions[0, 1:], captions[1, 2:], captions[2, 2] = 0, 0, 0  # no word, one word, a gap
    weights = np.array([1.0, 1, 1, 0, 2, -1])
    regularisations = (None, Regularisation(embed_dropout=0.5, vocab_dropout=0.5, seed=3))
    for regularisation in regularisations:
        for m in (model, twin_model):
            m.params[name] = m.params[name].copy()
            m.params[name].flat[-1] = bad
        with np.errstate(all="ignore"):
            loss, grads = model.loss(
                features, captions, weights=weights, regularisation=regularisation
            )
            wanted, wanted_grads = twin_model.loss(
                features, captions, weights=weights, regularisation=regularisation
            )
        np.testing.assert_allclose(loss, wanted, rtol=1e-12)
        for key, grad in grads.items():
            np.testing.assert_allclose(grad, wanted_grads[key], rtol=1e-9, atol=1e-12, err_msg=key)


def test_caption_of_weight_zero_takes_no_part():
    model, _, features, captions = draw_pair(SMALL | {"N": 3}, "lstm", np.float64)
    captions[1] = 3
    features[1] = np.nan
    loss, grads = model.loss(features[[0, 2]], captions[[0, 2]])
    found, found_grads = model.loss(features, captions, weights=[1, 0, 1])
    assert found == pytest.approx(loss * 2 / 3, rel=1e-12)
    for name in ("Wx", "Wh", "W_vocab", "W_embed"):
        np.testing.assert_allclose(found_grads[name], grads[name] * 2 / 3, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("word", range(0, 37, 4))
def test_scores_that_are_no_numbers_are_not_drawn_from(word):
    """Scheduled sampling then keeps the words of the caption, wherever the NaN is."""
    sizes = SMALL | {"V": 37}
    model, twin_model, features, captions = draw_pair(sizes, "rnn", np.float32)
    for m in (model, twin_model):
        m.params["W_vocab"][0, word] = np.nan
        with np.errstate(all="ignore"):
            _, grads = m.loss(
                features, captions, regularisation=Regularisation(scheduled_sampling=1.0)
            )
        seen = np.isnan(grads["W_embed"]).any(axis=1)
        assert set(np.flatnonzero(seen)) <= set(captions[:, :-1].ravel())


def test_order_of_checks_of_a_batch():
    """Dtypes, then shapes, then ids, then weights that are not finite, as in the twin."""
    model, twin_model, features, captions = draw_pair(SMALL, "rnn", np.float64)
    bad_ids, bad_weights = captions + 100, [np.nan, 1.0]
    for m in (model, twin_model):
        for no_numbers in ((features, []), (features, {}), ({}, captions), (["a"], captions[:1])):
            with pytest.raises(TypeError, match=r"captions|features"):
                m.loss(*no_numbers)
        with pytest.raises(ValueError, match="captions"):
            m.loss(features, captions[:, :0])
        with pytest.raises(IndexError, match="captions holds the id"):
            m.loss(features, bad_ids, weights=bad_weights)
        with pytest.raises(ValueError, match="weights holds nan"):
            m.loss(features, captions, weights=bad_weights)
