"""Time a training step of `CaptioningSolver` with Adam, compiled and in NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from bench import work
from bench.data import draw_pool
from bench.shapes import SHAPES
from bench.test_layers import SIZES


def solver_of(implementation: str, shape: str, dtype: str, cell: str):
    """Return a solver and the source of its captions; both implementations get the same data."""
    if implementation == "fastrnn":
        from fastrnn.captioning_solver import CaptioningSolver
        from fastrnn.classifiers.rnn import CaptioningRNN
    else:
        from fastrnn.reference import CaptioningRNN, CaptioningSolver
    sizes = SHAPES[shape]
    data, source = draw_pool(sizes)
    data["train_features"] = data["train_features"].astype(dtype)
    np.random.seed(231)
    words = data["word_to_idx"]
    model = CaptioningRNN(words, sizes.F, sizes.D, sizes.H, cell, dtype=np.dtype(dtype))
    solver = CaptioningSolver(
        model,
        data,
        update_rule="adam",
        optim_config={"learning_rate": 1e-3},
        batch_size=sizes.N,
        verbose=False,
    )
    return solver, source


@pytest.mark.parametrize("implementation", ["fastrnn", "reference"])
@pytest.mark.parametrize(("shape", "dtype"), SIZES)
@pytest.mark.parametrize("cell", ["rnn", "lstm"])
def test_step(benchmark, cell: str, shape: str, dtype: str, implementation: str) -> None:
    solver, source = solver_of(implementation, shape, dtype, cell)
    captions = solver.data["train_captions"][: SHAPES[shape].N]
    benchmark.group = f"step {cell} {shape} {dtype}"
    benchmark.extra_info["captions"] = source
    benchmark.extra_info["gflop"] = work.step_work(captions, SHAPES[shape], cell) / 1e9
    benchmark(solver._step)
    assert np.isfinite(solver.loss_history).all()
