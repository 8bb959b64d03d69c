"""The results of ``fastrnn train``: captions and metrics of the best model, plot and page."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .. import runs
from ..checkpoint import load_model
from ..evaluation import (
    Evaluator,
    longest_caption,
    loss_per_word,
    perplexity,
    shorten,
    shown_perplexity,
    truth_of,
)
from ..files import write_aside
from ..metrics import METRIC_NAMES
from ..terminal import duration, say
from ..training import Trainer
from ..training.trainer import seconds_since
from .evaluate import NO_WORDS

PAGE_WORDS = 30
"""The largest number of words in a caption on the page."""


def write_results(trainer: Trainer, directory: Path, began: float, *, page: bool) -> None:
    """Caption the validation images with the best model, once; write and print the results."""
    from ..report import draw_loss, write_report  # loads matplotlib, which takes its time

    out, data, best = trainer.run, trainer.data, trainer.best
    assert out is not None
    newest = best is not None and best["step"] == trainer.step
    model = trainer.model if newest else load_model(out)
    evaluator, longest = Evaluator(data), longest_caption(data)
    greedy = evaluator.decode(model, max(longest, PAGE_WORDS))
    captions = [text for (text,) in shorten(greedy, longest).captions(model.idx_to_word)]
    true = truth_of(directory, len(captions))
    marks = None if true is None else [true(*each) for each in enumerate(captions)]
    loss = loss_per_word(model, data)
    epochs = runs.epoch_records(trainer.history)
    metrics = {
        **evaluator.evaluate(captions, marks),
        "val_loss": loss,
        "val_perplexity": perplexity(loss),
        "epoch": best and best["epoch"],
        "captions_per_second": float(
            np.average(
                [record["captions_per_second"] for record in epochs],
                weights=[record["seconds"] for record in epochs],
            )
        ),
    }
    if page:
        picture = draw_loss(trainer.history)
        write_aside(out / runs.PLOT_FILE, lambda file: file.write(picture))
    metrics["seconds"] = seconds_since(began)
    runs.write_metrics(out, metrics)
    if page:
        write_report(
            out, directory=directory, data=data, model=model, greedy=shorten(greedy, PAGE_WORDS)
        )

    figures = {}
    for name in ("bleu_1", "bleu_4", "cider"):
        if metrics[name] is not None:
            figures[METRIC_NAMES[name]] = f"{100 * metrics[name]:.1f}"
    if marks is not None:
        figures["true captions"] = f"{metrics['true_share']:.1%}"
    if loss is not None:
        figures["perplexity"] = shown_perplexity(metrics["val_perplexity"])
    figures["distinct captions"] = f"{metrics['distinct_captions']:,} of {metrics['images']:,}"
    figures["captions/s in training"] = f"{metrics['captions_per_second']:,.0f}"
    print()
    say(f"on {metrics['images']:,} unseen images, after {duration(metrics['seconds'])}:")
    for name, value in figures.items():
        say(f"  {name:<24}{value}", indent=26)
    for row, caption in enumerate(captions[:3]):
        false = "" if marks is None or marks[row] else "  (false)"
        say(f"  says: {caption or NO_WORDS}{false}", indent=8)
    written = [name for name in runs.RUN_FILES if (out / name).exists()]
    say(f"best of {len(epochs)} epoch{'' if len(epochs) == 1 else 's'}: {metrics['epoch']}")
    say(f"written to {out}: {', '.join(written)}, checkpoints")
