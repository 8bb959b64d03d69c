"""Measure the pieces of a training step in one thread, for `bench.scaling_model`.

The pieces are the phases that the core times itself, and what Python does between them: drawing a
minibatch, calling the core, and Adam. How a piece is divided among threads is what the core does
(``fastrnn/_core``); its bytes are those of its operands and results, each moved once.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from .data import NULL, draw_pool
from .scaling_model import Cut, Machine, Piece
from .shapes import GATES, Shape

FLOAT = 4  # bytes
# As in the core: elements of Adam's blocks (optim.pyx), rows and weights from which on threads
# divide the rows of a batch rather than the columns of each step (time_loop.pyx), and the blocks of
# a product for each thread (products.pyx).
ADAM_BLOCK = 16384
ROWS_PER_THREAD, LARGE_WEIGHTS = 20, 1 << 18
TASKS = 16
LARGE = 1 << 24  # elements of the arrays that measure the bandwidth
REGIONS = 2000


class Stepper:
    """A training that is timed piece by piece.

    It takes the steps of `fastrnn.captioning_solver.CaptioningSolver`, with the same calls.
    """

    def __init__(self, shape: Shape, cell: str) -> None:
        from fastrnn.captioning_solver import CaptioningSolver
        from fastrnn.classifiers.rnn import CaptioningRNN

        self.shape, self.cell = shape, cell
        self.data, self.source = draw_pool(shape)
        model = CaptioningRNN(self.data["word_to_idx"], shape.F, shape.D, shape.H, cell, np.float32)
        self.solver: Any = CaptioningSolver(
            model, self.data, update_rule="adam", optim_config={"learning_rate": 1e-3},
            batch_size=shape.N, verbose=False,
        )  # fmt: skip

    def whole(self) -> float:
        """Take a step; return its seconds."""
        return timed(self.solver._step)

    def first_pass(self) -> float:
        """Return the seconds of Adam's first step, which allocates the moments."""
        from fastrnn import optim

        params = {name: w.copy() for name, w in self.solver.model.params.items()}
        grads = {name: np.zeros_like(w) for name, w in params.items()}
        configs: dict[str, dict[str, Any]] = {name: {} for name in params}
        return timed(lambda: optim.update_all(optim.adam, params, grads, configs))

    def pieces(self) -> dict[str, float]:
        """Take a step; return the seconds of each piece, and of the whole step."""
        from fastrnn import optim
        from fastrnn._core import captioner
        from fastrnn.coco_utils import sample_coco_minibatch

        solver = self.solver
        captioner.profile()
        began = time.perf_counter()
        captions, features, _ = sample_coco_minibatch(self.data, solver.batch_size, "train")
        drawn = time.perf_counter()
        loss, grads = solver.model.loss(features, captions, workspace=solver._workspace)
        solver.loss_history.append(loss)
        differentiated = time.perf_counter()
        optim.update_all(optim.adam, solver.model.params, grads, solver.optim_configs)
        ended = time.perf_counter()
        phases = captioner.profile()
        return {
            "draw a minibatch": drawn - began,
            "call the core": differentiated - drawn - sum(phases.values()),
            **phases,
            "Adam": ended - differentiated,
        }

    def work(self) -> dict[str, float]:
        """Return the means over minibatches of the tokens, scored tokens and distinct words."""
        from fastrnn.coco_utils import sample_coco_minibatch

        counts: dict[str, list[int]] = {"tokens": [], "words": []}
        for _ in range(20):
            captions = sample_coco_minibatch(self.data, self.shape.N)[0]
            asked = captions[:, 1:] != NULL
            counts["tokens"].append(int(asked.sum()))
            counts["words"].append(len(np.unique(captions[:, :-1][asked])))
        return {name: statistics.fmean(values) for name, values in counts.items()}


def timed(call: Callable[[], object]) -> float:
    """Return the seconds of a call."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def calling_adam(params: dict[str, np.ndarray], calls: int = 200) -> float:
    """Return the seconds that Adam takes for parameters of a single element: all but the pass."""
    from fastrnn import optim

    small = {name: np.zeros(1, np.float32) for name in params}
    grads = {name: np.zeros(1, np.float32) for name in params}
    configs: dict[str, dict[str, Any]] = {name: {} for name in params}
    return statistics.median(
        timed(lambda: optim.update_all(optim.adam, small, grads, configs)) for _ in range(calls)
    )


def measure_machine(bandwidth: float | None = None, fork_join: float | None = None) -> Machine:
    """Measure the bandwidth of a core, and a fork and join of two threads, where there are two.

    `bandwidth`, of all cores together, and `fork_join` are taken as given if they are.
    """
    import fastrnn
    from fastrnn import optim
    from fastrnn._core import runtime

    mean, w = np.zeros(LARGE, np.float32), np.ones(LARGE, np.float32)
    threads, moved = fastrnn.get_num_threads(), 3 * FLOAT * LARGE
    fastrnn.set_num_threads(1)
    optim.average(mean, w, 0.5)  # touches the pages
    per_core = moved / min(timed(lambda: optim.average(mean, w, 0.5)) for _ in range(5))
    fastrnn.set_num_threads(threads)
    if fork_join is None:
        fork_join = min(runtime.fork_join(2, REGIONS) for _ in range(5)) / REGIONS
    return Machine(fork_join, per_core, max(bandwidth or 0.0, per_core))


def describe(
    shape: Shape, cell: str, seconds: dict[str, float], work: dict[str, float], adam_call: float
) -> list[Piece]:
    """Return the pieces of a step from the seconds of each in one thread.

    Parameters
    ----------
    shape, cell
        Of the model.
    seconds : dict of str to float
        As `Stepper.pieces` returns them.
    work : dict of str to float
        As `Stepper.work` returns it.
    adam_call : float
        The part of Adam that is not the pass over the weights, as `calling_adam` returns it.
    """
    from fastrnn._core import captioner, runtime

    N, T, D, H, V, F = shape.N, shape.T, shape.D, shape.H, shape.V, shape.F
    G = GATES[cell] * H
    tokens, words = work["tokens"], work["words"]
    width = runtime.panel_columns(FLOAT)

    def panels(columns: int) -> int:
        return -(-columns // width)

    def products(count: int = 1) -> tuple[Cut, ...]:
        """Two packings and a product, each; the threads come for its tasks, so none waits."""
        return tuple(Cut(p, TASKS * p, 3 * count) for p in (2, 4, 8, 16, 32, 64))

    def loop(columns: int) -> tuple[Cut, ...]:
        by_rows = Cut(2, N, 1)
        first = N // ROWS_PER_THREAD + 1
        if N < 4 or H * G < LARGE_WEIGHTS:
            return (by_rows,)
        return (by_rows, Cut(max(first, 2), panels(columns), 2 * T))

    def packing(K: int, columns: int) -> Piece:
        share = K * columns / (2 * H * (G + V))
        return Piece(
            f"pack {K} x {columns}", share * seconds["pack weights"],
            (Cut(2, panels(columns), 1),), 2 * FLOAT * K * columns,
        )  # fmt: skip

    params = V * D + F * H + H + (D + H + 1) * G + (H + 1) * V
    blocks = -(-params // ADAM_BLOCK)
    serial = ["draw a minibatch", "call the core", *captioner.SERIAL_PHASES]
    adam = max(seconds["Adam"] - adam_call, 0.0)
    state = tokens * (G + 2 * H)  # gates, h and c
    return [
        *(Piece(name, seconds[name]) for name in serial),
        Piece("call Adam", adam_call),
        Piece(
            "input product", seconds["input product"], products(2),
            FLOAT * (N * (F + H) + F * H + words * (D + G) + D * G),
        ),
        packing(H, G), packing(G, H), packing(H, V), packing(V, H),
        Piece(
            "time loop forward", seconds["time loop forward"], loop(G), FLOAT * (state + H * G)
        ),
        Piece(
            "vocabulary and softmax", seconds["vocabulary and softmax"],
            (Cut(2, max(int(tokens), 1), 1),), FLOAT * (tokens * (2 * H + V) + 2 * H * V),
        ),
        Piece(
            "time loop backward", seconds["time loop backward"], loop(H),
            FLOAT * (2 * state + tokens * H + H * G),
        ),
        Piece("dWh", seconds["dWh"], products(), FLOAT * (tokens * (H + G) + H * G)),
        Piece(
            "dWx and dW_embed", seconds["dWx and dW_embed"], products(4),
            FLOAT * (tokens * G + 2 * words * (G + D) + 2 * D * G + V * D + N * (F + H) + F * H),
        ),
        Piece("dW_vocab", seconds["dW_vocab"], products(), FLOAT * (tokens * (H + V) + H * V)),
        Piece("Adam", adam, (Cut(2, blocks, 1),), 7 * FLOAT * params),
    ]  # fmt: skip
