"""Shared code of the trainer's tests."""

from __future__ import annotations

from fastrnn.classifiers.rnn import CaptioningRNN


class Recorder(CaptioningRNN):
    """Records its training batches."""

    def loss(self, features, captions, **kwargs):
        self.seen.append((features.copy(), captions.copy()))
        return super().loss(features, captions, **kwargs)


def recorder(data: dict) -> Recorder:
    model = Recorder(data["word_to_idx"], data["train_features"].shape[1], 4, 5, "lstm")
    model.seen = []
    return model


def untimed(history: list[dict]) -> list[dict]:
    timed = ("seconds", "captions_per_second", "validation_seconds")
    return [{k: v for k, v in record.items() if k not in timed} for record in history]
