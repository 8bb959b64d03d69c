"""The results of every op and of a small training with all options, to the last bit.

As a program it prints that as JSON, with the instruction set that FASTRNN_MAX_ISA allows. The
training is told twice: as a whole, and resumed from tests/recorded/checkpoint.npz. ``--record``
writes tests/recorded/<isa>.json (and the checkpoint where there is none): do so with the code whose
results are to stay.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import shutil
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from coco_layout import write_layout
from equivalence import MODELS, OPS, SIZES, compiled, draw, run, run_model

import fastrnn
from fastrnn import decoding, rnn_layers
from fastrnn._core import runtime
from fastrnn.captioning_solver import CaptioningSolver
from fastrnn.checkpoint import checkpoint_path, load_model
from fastrnn.classifiers import rnn as classifier
from fastrnn.classifiers.rnn import CaptioningRNN
from fastrnn.coco_utils import read_captioning_directory
from fastrnn.training import TrainConfig, Trainer, start_model

OPTIONS: dict[str, Any] = {
    "epochs": 3, "reward_epochs": 2, "batch_size": 7, "learning_rate": 0.02,
    "schedule": "exponential", "lr_decay": 0.9, "warmup_steps": 3, "clip_norm": 1.0,
    "clip_value": 0.5, "weight_decay": 0.01, "embed_dropout": 0.2, "vocab_dropout": 0.3,
    "label_smoothing": 0.1, "scheduled_sampling": 0.3, "feature_noise": 0.2, "consensus": 1.0,
    "weight_average": 0.95, "bucket_by_length": True, "monitor": "loss", "keep_last": 100,
    "record_every": 2, "seed": 3,
}  # fmt: skip
RESUMED_AT = 2  # epochs
RECORDED = Path(__file__).resolve().parent / "recorded"
CHECKPOINT = RECORDED / "checkpoint.npz"


def told(array: Any) -> str:
    """A short hash of the bits of an array."""
    array = np.ascontiguousarray(array)
    return hashlib.sha256(array.tobytes()).hexdigest()[:16]


def about_arrays(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """The bits of arrays, and numbers that are comparable where bits are not."""
    return {
        name: {
            "bits": told(a),
            "sum": float(a.sum(dtype=np.float64)),
            "square": float((a * a).sum()),
        }
        for name, a in sorted(arrays.items())
    }


def without_times(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if "second" not in name}


def arithmetic() -> str:
    """Bits of results outside the core, which depend on how the processor and BLAS round."""
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 61, 61))
    parts = [a @ b, np.exp(a), a.sum(axis=0), a.var(axis=0), np.log(np.abs(a)), rng.random(5)]
    parts += [rnn_layers.sigmoid(20 * a), rnn_layers.sigmoid(20 * a.astype(np.float32))]
    return told(np.concatenate([part.ravel() for part in parts]))


def about_model(model: CaptioningRNN, features: np.ndarray) -> dict[str, Any]:
    best = decoding.beam_search(model, features, 3, 8, n_best=2, min_length=0)
    drawn = decoding.sample(model, features, 8, count=2, top_p=0.9, seed=5, min_length=0)
    return {
        "params": about_arrays(model.params),
        "greedy": model.sample(features, 8).tolist(),
        "beam": best.ids.tolist(),
        "drawn": drawn.ids.tolist(),
        "log_probs": [best.log_probs.tolist(), drawn.log_probs.tolist()],
    }


def about_training(folder: Path) -> dict[str, Any]:
    """The results of a training of each cell, uninterrupted and resumed, and of a solver."""
    write_layout(folder / "data")
    data = read_captioning_directory(folder / "data")
    features = data["val_features"]
    found: dict[str, Any] = {}
    for cell in ("rnn", "lstm"):
        losses: list[float | None] = []
        trainer = Trainer(
            start_model(data, cell, 6, 9, seed=1), data, TrainConfig(**OPTIONS), run=folder / cell,
            on_step=lambda _, record, to=losses: to.append(record["loss"]),
        )  # fmt: skip
        trainer.fit()
        found[cell] = {
            "losses": losses,
            "history": [without_times(record) for record in trainer.history],
            "model": about_model(load_model(folder / cell), features),
        }
    steps = trainer.steps_per_epoch * RESUMED_AT
    resumed_run = folder / "resumed"
    (resumed_run / "checkpoints").mkdir(parents=True)
    shutil.copy(folder / "lstm" / "settings.json", resumed_run)
    own = checkpoint_path(folder / "lstm", steps)
    if not CHECKPOINT.exists():
        RECORDED.mkdir(exist_ok=True)
        shutil.copy(own, CHECKPOINT)
    shutil.copy(CHECKPOINT, checkpoint_path(resumed_run, steps))
    resumed = Trainer.resume(resumed_run, data)
    resumed.fit()
    found["resumed"] = {
        "history": [without_times(record) for record in resumed.history],
        "params": about_arrays(resumed.model.params),
    }
    np.random.seed(5)
    solver = CaptioningSolver(
        CaptioningRNN(data["word_to_idx"], features.shape[1], 6, 9, "lstm"), data,
        update_rule="adam", num_epochs=2, batch_size=5, verbose=False,
    )  # fmt: skip
    solver.train()
    found["solver"] = {
        "losses": [float(loss) for loss in solver.loss_history],
        "params": about_arrays(solver.model.params),
    }
    return found


def about_ops() -> dict[str, str]:
    """The bits of every op, forward and backward, and of larger captioners."""
    found = {}
    for dtype in (np.float32, np.float64):
        for name in OPS:
            for k in (1, 3, 4):
                for ragged in (False, True) if name in ("rnn", "lstm") else (False,):
                    arguments, gradients = draw(
                        name, SIZES[k], dtype, np.random.default_rng(231), ragged
                    )
                    results = run(compiled, name, arguments, gradients)
                    key = f"{name} {dtype.__name__} {k}{' ragged' * ragged}"
                    found[key] = told(np.concatenate([np.ravel(a) for a in results]))
        for cell in ("rnn", "lstm"):
            results = run_model(classifier, MODELS[-1], cell, dtype)
            key = f"captioner {cell} {dtype.__name__}"
            found[key] = told(np.concatenate([np.ravel(a) for a in results]))
    return found


def run_all() -> dict[str, Any]:
    fastrnn.set_num_threads(2)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with contextlib.redirect_stdout(io.StringIO()):
            training = about_training(Path(folder))
    return {
        "isa": runtime.isa(),
        "compiler": runtime.compiler(),
        "arithmetic": arithmetic(),
        "ops": about_ops(),
        "training": training,
    }


if __name__ == "__main__":
    everything = run_all()
    if sys.argv[1:] == ["--record"]:
        text = json.dumps(everything, indent=1) + "\n"
        (RECORDED / f"{everything['isa']}.json").write_text(text)
    print(json.dumps(everything))
