"""The contenders of `bench.peers`, each in a separate process.

``python -m bench.contenders NAME THREADS`` reads requests from standard input and writes answers
to standard output, one JSON object per line. Separate processes keep the threads of one library,
which spin for a while after their work, from slowing another.

A job is opened, run a number of times, and closed. It is timed in this process, and only the call
itself is timed.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from . import calls, machine
from .data import NULL, START, draw_batch, draw_pool, first_params
from .shapes import Shape

LEARNING_RATE = 1e-3

# The function to time (a training step returns its loss), and facts about the job to report.
Job = tuple[Callable[[], Any], dict[str, Any]]


def layer_arrays(shape: Shape, cell: str, dtype: str) -> SimpleNamespace:
    """Draw the arguments of a dense layer: x, h0, Wx, Wh, b and the gradient of its output."""
    dtype = "float32" if dtype == "bfloat16" else dtype
    rng = np.random.default_rng(231)
    params = {name: w.astype(dtype) for name, w in first_params(shape, cell).items()}
    return SimpleNamespace(
        x=rng.standard_normal((shape.N, shape.T, shape.D)).astype(dtype),
        h0=rng.standard_normal((shape.N, shape.H)).astype(dtype),
        dh=rng.standard_normal((shape.N, shape.T, shape.H)).astype(dtype),
        **{name: params[name] for name in ("Wx", "Wh", "b")},
    )


def embedding_arrays(shape: Shape) -> tuple[np.ndarray, np.ndarray]:
    """Return word ids (N, T) of a batch and a gradient (N, T, D) of their word vectors."""
    data, _ = draw_pool(shape, shape.N)
    rng = np.random.default_rng(231)
    dout = rng.standard_normal((shape.N, shape.T, shape.D)).astype(np.float32)
    return data["train_captions"][:, :-1].copy(), dout


class Fastrnn:
    """The compiled core, through fastrnn's public functions."""

    library = "fastrnn"

    def __init__(self, threads: int) -> None:
        import fastrnn
        from fastrnn.captioning_solver import CaptioningSolver
        from fastrnn.classifiers.rnn import CaptioningRNN

        fastrnn.set_num_threads(threads)
        self.Model, self.Solver = CaptioningRNN, CaptioningSolver
        self.functions = calls.library(self.library)

    def facts(self) -> dict[str, Any]:
        return machine.describe()

    def peak(self, dtype: str, threads: int, seconds: float) -> float:
        return machine.fma_peak(dtype, threads, seconds)

    def _solver(
        self, shape: Shape, cell: str, precision: str = "float32"
    ) -> tuple[Any, dict[str, Any]]:
        data, source = draw_pool(shape)
        np.random.seed(231)
        words = data["word_to_idx"]
        model = self.Model(words, shape.F, shape.D, shape.H, cell, dtype=np.float32)
        if precision != "float32" and not hasattr(model, "precision"):
            raise ValueError(f"precision is {precision!r}; this version has only 'float32'")
        model.precision = precision
        solver = self.Solver(
            model,
            data,
            update_rule="adam",
            optim_config={"learning_rate": LEARNING_RATE},
            batch_size=shape.N,
            verbose=False,
        )
        return solver, {"captions": source}

    def step(self, shape: Shape, cell: str, precision: str = "float32") -> Job:
        solver, facts = self._solver(shape, cell, precision)

        def step() -> float:
            solver._step()
            return float(solver.loss_history[-1])

        return step, facts

    def layer(self, shape: Shape, cell: str, dtype: str) -> Job:
        a = layer_arrays(shape, cell, dtype)
        forward = getattr(self.functions, f"{cell}_forward")
        backward = getattr(self.functions, f"{cell}_backward")

        rounded = {"precision": "bfloat16"} if dtype == "bfloat16" else {}

        def both() -> None:
            _, cache = forward(a.x, a.h0, a.Wx, a.Wh, a.b, **rounded)
            backward(a.dh, cache)

        return both, {}

    def embedding(self, shape: Shape) -> Job:
        ids, dout = embedding_arrays(shape)
        weights = np.zeros((shape.V, shape.D), dtype=np.float32)
        _, cache = self.functions.word_embedding_forward(ids, weights)
        return lambda: self.functions.word_embedding_backward(dout, cache), {}

    def call(self, shape: Shape, function: str) -> Job:
        return calls.prepare(self.functions, function, shape, "float32"), {}

    def sample(
        self, shape: Shape, images: int, steps: int, trained: int = 0, precision: str = "float32"
    ) -> Job:
        """Greedy decoding. If `trained` > 0, train that many steps first and stop at <END>."""
        solver, facts = self._solver(shape, "lstm", precision)
        for _ in range(trained):
            solver._step()
        model, features = solver.model, solver.data["train_features"][:images].copy()
        stop = {"stop_at_end": True} if trained else {}
        if trained:
            lengths = (model.sample(features, steps, **stop) != NULL).sum(1)
            facts |= {"trained_steps": trained, "mean_length": float(lengths.mean())}

        def sample() -> None:
            model.sample(features, steps, **stop)

        return sample, facts


class Reference(Fastrnn):
    """The NumPy reference, with NumPy's own BLAS."""

    library = "reference"

    def __init__(self, threads: int) -> None:
        from fastrnn import reference

        self.Model, self.Solver = reference.CaptioningRNN, reference.CaptioningSolver
        self.functions = calls.library(self.library)

    def facts(self) -> dict[str, Any]:
        return {"numpy": np.__version__}


def add_at(dW: np.ndarray, ids: np.ndarray, dout: np.ndarray) -> None:
    """``np.add.at``."""
    np.add.at(dW, ids, dout)


def sort_reduceat(dW: np.ndarray, ids: np.ndarray, dout: np.ndarray) -> None:
    """Sort the ids, then apply ``np.add.reduceat`` to each run of equal ids."""
    flat = ids.ravel()
    order = np.argsort(flat, kind="stable")
    ordered = flat[order]
    first = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    dW[ordered[first]] = np.add.reduceat(dout.reshape(ids.size, -1)[order], first, axis=0)


class NumPy:
    """A scatter-add in plain NumPy, without argument checks."""

    def __init__(self, scatter: Callable[..., None]) -> None:
        self.scatter = scatter

    def facts(self) -> dict[str, Any]:
        return {"numpy": np.__version__}

    def embedding(self, shape: Shape) -> Job:
        ids, dout = embedding_arrays(shape)
        return lambda: self.scatter(np.zeros((shape.V, shape.D), dout.dtype), ids, dout), {}


class Torch:
    """PyTorch: nn.LSTM or nn.RNN over padded batches, time-major, with the fused Adam.

    Vocabulary scores are computed only at steps whose target is not <NULL>, as in `TorchPacked`.
    In bfloat16, the forward pass runs under autocast.
    """

    def __init__(self, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self.torch = torch

    def facts(self) -> dict[str, Any]:
        return {"torch": self.torch.__version__, "threads": self.torch.get_num_threads()}

    def _autocast(self, precision: str) -> Any:
        """Return a context in which products are computed in a precision."""
        if precision == "bfloat16":
            return self.torch.autocast("cpu", self.torch.bfloat16)
        return contextlib.nullcontext()

    def _cell(self, shape: Shape, cell: str, dtype: str = "float32") -> Any:
        kind = {"lstm": self.torch.nn.LSTM, "rnn": self.torch.nn.RNN}[cell]
        return kind(shape.D, shape.H, dtype=getattr(self.torch, dtype))

    def _gates(self, w: np.ndarray, cell: str) -> Any:
        """Transpose weights and reorder the gates from i, f, o, g to i, f, g, o."""
        w = w.T
        if cell == "lstm":
            i, f, o, g = np.split(w, 4)
            w = np.concatenate([i, f, g, o])
        return self.torch.from_numpy(w.copy())

    def _captioner(self, shape: Shape, cell: str) -> Any:
        nn = self.torch.nn
        p = first_params(shape, cell)
        model = nn.ModuleDict(
            {
                "embed": nn.Embedding(shape.V, shape.D),
                "proj": nn.Linear(shape.F, shape.H),
                "cell": self._cell(shape, cell),
                "vocab": nn.Linear(shape.H, shape.V),
            }
        )
        model.load_state_dict(
            {
                "embed.weight": self.torch.from_numpy(p["W_embed"]),
                "proj.weight": self.torch.from_numpy(p["W_proj"].T.copy()),
                "proj.bias": self.torch.from_numpy(p["b_proj"]),
                "cell.weight_ih_l0": self._gates(p["Wx"], cell),
                "cell.weight_hh_l0": self._gates(p["Wh"], cell),
                "cell.bias_ih_l0": self._gates(p["b"], cell),
                "cell.bias_hh_l0": self._gates(0 * p["b"], cell),
                "vocab.weight": self.torch.from_numpy(p["W_vocab"].T.copy()),
                "vocab.bias": self.torch.from_numpy(p["b_vocab"]),
            }
        )
        return model

    def _hidden(self, model: Any, state: Any, captions: np.ndarray) -> tuple[Any, Any]:
        """Return the hidden state for each target that is not <NULL>, and the target."""
        words = self.torch.from_numpy(captions.T.astype(np.int64))
        h, _ = model["cell"](model["embed"](words[:-1]), state)
        asked = words[1:] != NULL
        return h[asked], words[1:][asked]

    def step(self, shape: Shape, cell: str, precision: str = "float32") -> Job:
        torch = self.torch
        data, source = draw_pool(shape)
        model = self._captioner(shape, cell)
        adam = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, fused=True)

        def step() -> float:
            captions, features = draw_batch(data, shape.N)
            with self._autocast(precision):
                h0 = model["proj"](torch.from_numpy(features))[None]
                state = (h0, torch.zeros_like(h0)) if cell == "lstm" else h0
                h, words = self._hidden(model, state, captions)
                scores = model["vocab"](h)
                total = torch.nn.functional.cross_entropy(scores, words, reduction="sum")
            loss = total / shape.N
            adam.zero_grad(set_to_none=True)
            loss.backward()
            adam.step()
            return loss.item()

        return step, {"captions": source}

    def layer(self, shape: Shape, cell: str, dtype: str) -> Job:
        torch = self.torch
        a = layer_arrays(shape, cell, dtype)
        rounded = dtype == "bfloat16"
        layer = self._cell(shape, cell, "float32" if rounded else dtype)
        x = torch.from_numpy(a.x).transpose(0, 1).contiguous().requires_grad_()
        h0 = torch.from_numpy(a.h0)[None].requires_grad_()
        c0 = torch.zeros_like(h0)
        dh = torch.from_numpy(a.dh).transpose(0, 1).contiguous()
        wanted = [x, h0, *layer.parameters()]

        def both() -> None:
            with self._autocast("bfloat16" if rounded else "float32"):
                h, _ = layer(x, (h0, c0) if cell == "lstm" else h0)
            torch.autograd.grad(h, wanted, dh.to(h.dtype))

        return both, {}

    def embedding(self, shape: Shape) -> Job:
        ids, dout = embedding_arrays(shape)
        x = self.torch.from_numpy(ids.astype(np.int64))
        d = self.torch.from_numpy(dout)
        backward = self.torch.ops.aten.embedding_dense_backward
        return lambda: backward(d, x, shape.V, -1, False), {}

    def sample(
        self, shape: Shape, images: int, steps: int, trained: int = 0, precision: str = "float32"
    ) -> Job:
        """Decode by a loop over nn.LSTMCell. It runs all steps, as rows cannot stop early."""
        torch = self.torch
        data, source = draw_pool(shape)
        model = self._captioner(shape, "lstm")
        cell = torch.nn.LSTMCell(shape.D, shape.H)
        cell.load_state_dict(
            {name.removesuffix("_l0"): w for name, w in model["cell"].state_dict().items()}
        )
        features = torch.from_numpy(data["train_features"][:images].copy())

        def sample() -> None:
            with torch.no_grad(), self._autocast(precision):
                h = model["proj"](features)
                c = torch.zeros_like(h)
                words = torch.full((images,), START)
                captions = torch.empty((images, steps), dtype=torch.int64)
                for t in range(steps):
                    h, c = cell(model["embed"](words), (h, c))
                    words = model["vocab"](h).argmax(1)
                    captions[:, t] = words

        return sample, {"captions": source}


class TorchPacked(Torch):
    """PyTorch over packed sequences: masked steps are skipped, in the embedding too."""

    def _hidden(self, model: Any, state: Any, captions: np.ndarray) -> tuple[Any, Any]:
        torch, rnn = self.torch, self.torch.nn.utils.rnn
        lengths = torch.from_numpy((captions[:, 1:] != NULL).sum(1))
        words = torch.from_numpy(captions.T.astype(np.int64))
        ids = rnn.pack_padded_sequence(words[:-1], lengths, enforce_sorted=False)
        targets = rnn.pack_padded_sequence(words[1:], lengths, enforce_sorted=False)
        x = rnn.PackedSequence(
            model["embed"](ids.data), ids.batch_sizes, ids.sorted_indices, ids.unsorted_indices
        )
        h, _ = model["cell"](x, state)
        return h.data, targets.data


class Jax:
    """JAX on padded batches: the whole step is one jit; the input product is before the scan."""

    def __init__(self, threads: int) -> None:
        import jax

        jax.config.update("jax_enable_x64", True)
        self.jax = jax

    def facts(self) -> dict[str, Any]:
        return {"jax": self.jax.__version__}

    def _sequence(self, cell: str) -> Callable[..., Any]:
        jnp, lax, nn = self.jax.numpy, self.jax.lax, self.jax.nn

        def rnn(x: Any, h0: Any, Wx: Any, Wh: Any, b: Any) -> Any:
            """Run over time-major x (T, N, D); return h (T, N, H)."""

            def tick(h: Any, a: Any) -> tuple[Any, Any]:
                h = jnp.tanh(a + h @ Wh)
                return h, h

            return lax.scan(tick, h0, x @ Wx + b)[1]

        def lstm(x: Any, h0: Any, Wx: Any, Wh: Any, b: Any) -> Any:
            def tick(state: Any, a: Any) -> tuple[Any, Any]:
                h, c = state
                i, f, o, g = jnp.split(a + h @ Wh, 4, axis=1)
                c = nn.sigmoid(f) * c + nn.sigmoid(i) * jnp.tanh(g)
                h = nn.sigmoid(o) * jnp.tanh(c)
                return (h, c), h

            return lax.scan(tick, (h0, jnp.zeros_like(h0)), x @ Wx + b)[1]

        return {"rnn": rnn, "lstm": lstm}[cell]

    def step(self, shape: Shape, cell: str, precision: str = "float32") -> Job:
        if precision != "float32":
            raise ValueError(f"precision is {precision!r}; expected 'float32'")
        jax, jnp = self.jax, self.jax.numpy
        data, source = draw_pool(shape)
        sequence = self._sequence(cell)
        params = {name: jnp.asarray(w) for name, w in first_params(shape, cell).items()}
        moments = {name: (jnp.zeros_like(w), jnp.zeros_like(w)) for name, w in params.items()}

        def loss_of(p: Any, features: Any, words: Any) -> Any:
            h0 = features @ p["W_proj"] + p["b_proj"]
            h = sequence(p["W_embed"][words[:-1]], h0, p["Wx"], p["Wh"], p["b"])
            scores = jax.nn.log_softmax(h @ p["W_vocab"] + p["b_vocab"])
            picked = jnp.take_along_axis(scores, words[1:, :, None], axis=2)[..., 0]
            return -jnp.where(words[1:] != NULL, picked, 0).sum() / shape.N

        def train(p: Any, moments: Any, rate: Any, features: Any, words: Any) -> Any:
            loss, grads = jax.value_and_grad(loss_of)(p, features, words)
            new, new_moments = {}, {}
            for name, w in p.items():
                m, v = moments[name]
                m = 0.9 * m + 0.1 * grads[name]
                v = 0.999 * v + 0.001 * grads[name] ** 2
                new[name] = w - (rate * m / (jnp.sqrt(v) + 1e-8)).astype(w.dtype)
                new_moments[name] = (m, v)
            return loss, new, new_moments

        train = jax.jit(train, donate_argnums=(0, 1))
        state = {"params": params, "moments": moments, "t": 0}

        def step() -> float:
            captions, features = draw_batch(data, shape.N)
            state["t"] += 1
            rate = LEARNING_RATE * np.sqrt(1 - 0.999 ** state["t"]) / (1 - 0.9 ** state["t"])
            loss, state["params"], state["moments"] = train(
                state["params"], state["moments"], np.float32(rate), features, captions.T.copy()
            )
            jax.block_until_ready(state["params"])
            return float(loss)

        return step, {"captions": source}

    def layer(self, shape: Shape, cell: str, dtype: str) -> Job:
        jax, jnp = self.jax, self.jax.numpy
        a = layer_arrays(shape, cell, dtype)
        x, dh = (jnp.asarray(v.transpose(1, 0, 2)) for v in (a.x, a.dh))
        inputs = (x, *(jnp.asarray(v) for v in (a.h0, a.Wx, a.Wh, a.b)))

        @jax.jit
        def forward_backward(inputs: Any, dh: Any) -> Any:
            h, backward = jax.vjp(self._sequence(cell), *inputs)
            return h, backward(dh)

        return lambda: jax.block_until_ready(forward_backward(inputs, dh)), {}


CONTENDERS: dict[str, Callable[[int], Any]] = {
    "fastrnn": Fastrnn,
    "reference": Reference,
    "torch padded": Torch,
    "torch packed": TorchPacked,
    "jax": Jax,
    "add.at": lambda threads: NumPy(add_at),
    "sort+reduceat": lambda threads: NumPy(sort_reduceat),
}


def timed(job: Callable[[], Any], steps: int, inner: int) -> tuple[list[float], list[Any]]:
    """Run a job `steps` times; return seconds per call, each over `inner` calls, and results."""
    seconds, results = [], []
    for _ in range(steps):
        start = time.perf_counter()
        for _ in range(inner):
            result = job()
        seconds.append((time.perf_counter() - start) / inner)
        results.append(result)
    return seconds, results


def slowed(job: Callable[[], Any], share: float) -> Callable[[], Any]:
    """Return a job that takes longer by a share of its time."""

    def slow() -> Any:
        start = time.perf_counter()
        result = job()
        end = start + (1 + share) * (time.perf_counter() - start)
        while time.perf_counter() < end:
            pass
        return result

    return slow


def answer(contender: Any, jobs: dict[str, Any], request: dict[str, Any]) -> dict[str, Any]:
    """Handle one request and return the answer."""
    arguments = request.get("arguments", {})
    if "shape" in arguments:
        arguments["shape"] = Shape(**arguments["shape"])
    if request["do"] == "peak":
        return {"flops": contender.peak(**arguments)}
    if request["do"] == "open":
        job, facts = getattr(contender, request["kind"])(**arguments)
        if request.get("slow"):
            job = slowed(job, request["slow"])
        jobs["open"] = job
        np.random.seed(0)
        seconds, first = timed(job, 1, 1)
        if request.get("settle", True):
            # the first call compiles and allocates, so time the second
            seconds, _ = timed(job, 1, 1)
        loss = first[0] if isinstance(first[0], float) else None
        return {"seconds": seconds[0], "loss": loss, "facts": facts}
    if request["do"] == "run":
        np.random.seed(request["seed"])
        timed(jobs["open"], request["warm"], 1)
        return {"seconds": timed(jobs["open"], request["steps"], request["inner"])[0]}
    if request["do"] == "close":
        jobs.clear()
        return {}
    raise ValueError(f"do is {request['do']!r}; expected open, run, close or peak")


def serve(name: str, threads: int) -> None:
    """Answer requests for one contender until the input ends."""
    # send prints of libraries to standard error, so that they do not mix with the answers
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def say(message: dict[str, Any]) -> None:
        answers.write(json.dumps(message) + "\n")

    try:
        contender = CONTENDERS[name](threads)
    except ImportError as error:
        say({"absent": str(error)})
        return
    say({"facts": contender.facts()})
    jobs: dict[str, Any] = {}
    for line in sys.stdin:
        try:
            say(answer(contender, jobs, json.loads(line)))
        except Exception as error:
            say({"error": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this one
    serve(sys.argv[1], int(sys.argv[2]))
