"""The history of a run of two epochs, as `fastrnn.runs` reads it."""

from __future__ import annotations

HISTORY = [
    {"step": 5, "epoch": 0.5, "loss": 3.0, "learning_rate": 0.1},
    {"step": 10, "epoch": 1.0, "loss": 2.0, "learning_rate": 0.1},
    {"step": 10, "epoch": 1, "loss": 2.5, "learning_rate": 0.1, "val_loss": 2.2,
     "val_perplexity": 9.0, "val_bleu_4": 0.1, "val_cider": 0.25, "captions_per_second": 1000.0},
    {"step": 15, "epoch": 1.5, "loss": 1.5, "learning_rate": 0.05},
    {"step": 20, "epoch": 2.0, "loss": 1.25, "learning_rate": 0.05},
    {"step": 20, "epoch": 2, "loss": 1.4, "learning_rate": 0.05, "val_loss": 2.4,
     "val_perplexity": 11.0, "val_bleu_4": 0.15, "val_cider": 0.375, "captions_per_second": 1100.0},
]  # fmt: skip
