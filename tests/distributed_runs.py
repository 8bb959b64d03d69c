"""What a rank does in the tests of training over MPI, as a program: ``MODE FOLDER``.

``steps`` trains with every option and writes what rank 0 has seen; ``refused`` writes the errors
where something differs between ranks.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from fastrnn.coco_utils import read_captioning_directory
from fastrnn.training import TrainConfig, Trainer, start_model
from fastrnn.training import trainer as module
from fastrnn.training.distributed import Ranks

OPTIONS: dict[str, Any] = {
    "batch_size": 7, "learning_rate": 0.02, "schedule": "exponential", "lr_decay": 0.9,
    "warmup_steps": 3, "clip_norm": 1.0, "clip_value": 0.5, "weight_decay": 0.01,
    "embed_dropout": 0.2, "vocab_dropout": 0.3, "label_smoothing": 0.1, "feature_noise": 0.2,
    "consensus": 1.0, "weight_average": 0.95, "bucket_by_length": True, "record_every": 2,
    "seed": 3,
}  # fmt: skip


def trained(folder: Path, ranks: Ranks | None, cell: str, sampling: float) -> dict[str, Any]:
    """The losses, the validation and the weights of a training on captions, then on rewards."""
    data = read_captioning_directory(folder / "data")
    model = start_model(data, cell, 6, 9, dtype=np.float64)
    steps = -(-len(data["train_captions"]) // OPTIONS["batch_size"])
    config = TrainConfig(
        epochs=-(-50 // steps), reward_epochs=1, scheduled_sampling=sampling, **OPTIONS
    )
    losses: list[float] = []
    trainer = Trainer(
        model, data, config, ranks=ranks,
        on_step=lambda _, record: losses.append(record.get("reward", record["loss"])),
    )  # fmt: skip
    if ranks is not None and ranks.rank:
        for weights in trainer._learner.network.params.values():
            weights += 1  # rank 0's are taken
    history = trainer.fit(verbose=False)
    timed = ("seconds", "captions_per_second", "validation_seconds")
    return {
        "losses": losses,
        "history": [{k: v for k, v in r.items() if k not in timed} for r in history],
        "weights": {name: w.ravel().tolist() for name, w in model.params.items()},
    }


DIFFERENCES = ("settings", "version", "captions", "vocabulary", "weights")


def why(folder: Path, ranks: Ranks, what: str) -> str:
    """The error of a training in which something differs on rank 1."""
    data = read_captioning_directory(folder / "data")
    if what == "captions":
        data["train_captions"] = data["train_captions"][:: 1 - 2 * ranks.rank]
    if what == "vocabulary" and ranks.rank:
        data["word_to_idx"] = {f"{w}x" * (i > 4) or w: i for w, i in data["word_to_idx"].items()}
    config = TrainConfig(epochs=2 + (what == "settings" and ranks.rank), batch_size=7)
    model = start_model(data, "lstm", 6, 9)

    def on_step(trainer: Trainer, record: dict[str, Any]) -> None:
        if what == "weights" and ranks.rank:  # as if a processor had made an error
            trainer._learner.network.params["b"][0] += 1e-3

    trainer = Trainer(model, data, config, ranks=ranks, on_step=on_step)
    version, module.__version__ = module.__version__, f"9.{ranks.rank * (what == 'version')}"
    try:
        trainer.fit(verbose=False)
    except ValueError as error:
        return str(error)
    finally:
        module.__version__ = version
    return "nothing was refused"


def main(mode: str, folder: Path) -> None:
    from mpi4py import MPI

    ranks = Ranks(MPI.COMM_WORLD)
    if mode == "steps":
        found = {
            f"{cell} {sampling}": trained(folder, ranks, cell, sampling)
            for cell, sampling in (("lstm", 0.3), ("rnn", 0.0))
        }
        if ranks.is_root:
            (folder / f"{ranks.size}.json").write_text(json.dumps(found))
    elif mode == "refused":
        refused = {what: why(folder, ranks, what) for what in DIFFERENCES}
        if ranks.is_root:
            (folder / "refused.json").write_text(json.dumps(refused))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
